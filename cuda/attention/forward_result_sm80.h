#pragma once
// What the forward kernel writes at its end: out and log-sum-exp, or what they become with those of other
// keys, which are there. Included by .cu files alone.
#include "attention/forward_rows_sm80.h"
#include "attention/merged_row.h"
#include "tile/sm80.h"

namespace longseq {

template <class S>
using ForwardSums = float[S::kRowTiles][S::kColumnTiles][4];

/** sums += kept times what the call merges with. */
template <class S>
__device__ void add_before(const ForwardSm80& op, const ForwardRows<S>& rows, ForwardSums<S>& sums,
                           const float (&kept)[2 * S::kRowTiles]) {
  const int lane = threadIdx.x % 32;
  const float* const before = static_cast<const float*>(op.before.data) + rows.start_of(op.before);
#pragma unroll
  for (int r = 0; r < 2 * S::kRowTiles; r++) {
    const int row = rows.row_of(r / 2, r % 2);
    if (row >= rows.tile().rows) continue;
    const float* const from = before + rows.offset(op.before, row);
    // On their way at once: a row's, but at D 256 of eight tiles.
    constexpr int kTogether = S::kHeadDim > 128 ? 8 : S::kColumnTiles;
#pragma unroll
    for (int first = 0; first < S::kColumnTiles; first += kTogether) {
      float2 terms[kTogether] = {};
#pragma unroll
      for (int i = 0; i < kTogether; i++) {
        const int column = 8 * (first + i) + lane % 4 * 2;
        if (column < op.head_dim) terms[i] = *reinterpret_cast<const float2*>(from + column);
      }
#pragma unroll
      for (int i = 0; i < kTogether; i++) {
        float* const to = sums[r / 2][first + i] + r % 2 * 2;
        to[0] = fmaf(terms[i].x, kept[r], to[0]);
        to[1] = fmaf(terms[i].y, kept[r], to[1]);
      }
    }
  }
}

template <class S>
__device__ void write_float32(const ForwardSm80& op, const ForwardRows<S>& rows, int64_t part,
                              const ForwardSums<S>& sums) {
  const int lane = threadIdx.x % 32;
  float* const out =
      static_cast<float*>(op.out.data) + part * op.batch * op.out.batch + rows.start_of(op.out);
#pragma unroll
  for (int r = 0; r < 2 * S::kRowTiles; r++) {
    const int row = rows.row_of(r / 2, r % 2);
    if (row >= rows.tile().rows) continue;
    float* const to = out + rows.offset(op.out, row);
#pragma unroll
    for (int n = 0; n < S::kColumnTiles; n++) {
      const int column = 8 * n + lane % 4 * 2;
      if (column >= op.head_dim) continue;
      *reinterpret_cast<float2*>(to + column) =
          make_float2(sums[r / 2][n][r % 2 * 2], sums[r / 2][n][r % 2 * 2 + 1]);
    }
  }
}

/** Through shared memory, so that rows leave in 16-byte pieces. */
template <class S>
__device__ void write_elements(const ForwardSm80& op, const ForwardRows<S>& rows,
                               const ForwardSums<S>& sums) {
  using T = typename S::T;
  constexpr int kChunks = S::kHeadDim / 8;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < 2 * S::kRowTiles; r++) {
    char* const to = rows.shared() + rows.row_of(r / 2, r % 2) * S::kPitch + lane % 4 * 4;
#pragma unroll
    for (int n = 0; n < S::kColumnTiles; n++) {
      *reinterpret_cast<uint32_t*>(to + 16 * n) =
          sm80::pack<T>(sums[r / 2][n][r % 2 * 2], sums[r / 2][n][r % 2 * 2 + 1]);
    }
  }
  __syncwarp();
  constexpr int kRowsAPass = sm80::rows_a_pass(32, kChunks), kWarpRows = 16 * S::kRowTiles;
  const int first = warp * kWarpRows + lane / kChunks, column = lane % kChunks;
  if (lane / kChunks >= kRowsAPass || column * 8 >= op.head_dim) return;
  T* const out = static_cast<T*>(op.out.data) + rows.start_of(op.out) + column * 8;
  const char* const from = rows.shared() + first * S::kPitch + column * 16;
  const int count = rows.tile().rows - first;
  constexpr int kPasses = kWarpRows / kRowsAPass, kTogether = kPasses % 8 == 0 ? 8 : 4;
  rows.with_offsets(op.out, [&](const auto& offset) {
#pragma unroll 1
    for (int pass = 0; pass < kPasses; pass += kTogether) {
      uint4 pieces[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; i++) {
        pieces[i] = *reinterpret_cast<const uint4*>(from + (pass + i) * kRowsAPass * S::kPitch);
      }
#pragma unroll
      for (int i = 0; i < kTogether; i++) {
        const int row = (pass + i) * kRowsAPass;
        if (row < count) *reinterpret_cast<uint4*>(out + offset(first + row)) = pieces[i];
      }
    }
  });
}

/** Of a block: sums of weighted values, and per row the weights' base and total. The sums are scaled in
 * place. */
template <class S>
__device__ void write_result(const ForwardSm80& op, const ForwardRows<S>& rows, ForwardSums<S>& sums,
                             const float (&base)[2 * S::kRowTiles], const float (&total)[2 * S::kRowTiles]) {
  constexpr float kLn2 = 0.6931471805599453f;
  constexpr int kLaneRows = 2 * S::kRowTiles;
  __syncthreads();  // the last stages are read: results may take their place
  const int64_t part = op.splits > 1 ? blockIdx.y : 0;
  // Four lanes have the same rows: each finds what becomes of one of them.
  const int lane = threadIdx.x % 32, own = lane % kLaneRows, row = rows.row_of(own / 2, own % 2);
  float own_base = base[0], own_total = total[0];
#pragma unroll
  for (int r = 1; r < kLaneRows; r++) {
    if (own == r) {
      own_base = base[r];
      own_total = total[r];
    }
  }
  float inverse = own_total == 0 ? 0 : 1 / own_total;
  float value = own_total == 0 ? -INFINITY : (own_base + log2f(own_total)) * kLn2;
  float* const at = op.log_sum_exp.data + (part * op.batch + rows.tile().batch) * op.log_sum_exp.batch +
                    rows.head_of(row) * op.log_sum_exp.head + rows.query_of(row);
  float own_kept = 0;  // of what is there already
  if (op.before.data != nullptr) {
    const float before = row < rows.tile().rows ? *at : -INFINITY;
    __syncwarp();  // all have read it
    own_kept = merge_row(before, value, inverse);
  }
  if (row < rows.tile().rows && lane % 4 < kLaneRows) *at = value;
  float kept[kLaneRows];
#pragma unroll
  for (int r = 0; r < kLaneRows; r++) {
    kept[r] = __shfl_sync(~0u, own_kept, lane / 4 * 4 + r);
    const float scale = __shfl_sync(~0u, inverse, lane / 4 * 4 + r);
#pragma unroll
    for (int n = 0; n < S::kColumnTiles; n++) {
      sums[r / 2][n][r % 2 * 2] *= scale;
      sums[r / 2][n][r % 2 * 2 + 1] *= scale;
    }
  }
  if (op.before.data != nullptr) add_before(op, rows, sums, kept);
  if (op.out_float32) {
    write_float32(op, rows, part, sums);
  } else {
    write_elements(op, rows, sums);
  }
}

}  // namespace longseq
