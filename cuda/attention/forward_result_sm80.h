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
  const float* const before = static_cast<const float*>(op.before.data) + rows.tile().batch * op.before.batch;
#pragma unroll
  for (int r = 0; r < 2 * S::kRowTiles; r++) {
    const int row = rows.row_of(r / 2, r % 2);
    if (row >= rows.tile().rows) continue;
    const float* const from =
        before + rows.query_of(row) * op.before.row + rows.head_of(row) * op.before.head;
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
  float* const out = static_cast<float*>(op.out.data) + (part * op.batch + rows.tile().batch) * op.out.batch;
#pragma unroll
  for (int r = 0; r < 2 * S::kRowTiles; r++) {
    const int row = rows.row_of(r / 2, r % 2);
    if (row >= rows.tile().rows) continue;
    float* const to = out + rows.query_of(row) * op.out.row + rows.head_of(row) * op.out.head;
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
  T* const out = static_cast<T*>(op.out.data) + rows.tile().batch * op.out.batch;
  constexpr int kWarpRows = 16 * S::kRowTiles;
#pragma unroll 1
  for (int chunk = lane; chunk < kWarpRows * kChunks; chunk += 32) {
    const int row = warp * kWarpRows + chunk / kChunks, column = chunk % kChunks;
    if (row >= rows.tile().rows || column * 8 >= op.head_dim) continue;
    *reinterpret_cast<uint4*>(out + rows.query_of(row) * op.out.row + rows.head_of(row) * op.out.head +
                              column * 8) =
        *reinterpret_cast<const uint4*>(rows.shared() + row * S::kPitch + column * 16);
  }
}

/** Of a block: sums of weighted values, and per row the weights' base and total. The sums are scaled in
 * place. */
template <class S>
__device__ void write_result(const ForwardSm80& op, const ForwardRows<S>& rows, ForwardSums<S>& sums,
                             const float (&base)[2 * S::kRowTiles], const float (&total)[2 * S::kRowTiles]) {
  constexpr float kLn2 = 0.6931471805599453f;
  const int lane = threadIdx.x % 32;
  __syncthreads();  // the last stages are read: results may take their place
  const int64_t part = op.splits > 1 ? blockIdx.y : 0;
  float kept[2 * S::kRowTiles];  // of what is there already
#pragma unroll
  for (int r = 0; r < 2 * S::kRowTiles; r++) {
    const int row = rows.row_of(r / 2, r % 2);
    float inverse = total[r] == 0 ? 0 : 1 / total[r];
    float value = total[r] == 0 ? -INFINITY : (base[r] + log2f(total[r])) * kLn2;
    float* const at = op.log_sum_exp.data + (part * op.batch + rows.tile().batch) * op.log_sum_exp.batch +
                      rows.head_of(row) * op.log_sum_exp.head + rows.query_of(row);
    kept[r] = 0;
    if (op.before.data != nullptr) {
      const float before = row < rows.tile().rows ? *at : -INFINITY;
      __syncwarp();  // all have read it
      kept[r] = merge_row(before, value, inverse);
    }
    if (row < rows.tile().rows && lane % 4 == 0) *at = value;
#pragma unroll
    for (int n = 0; n < S::kColumnTiles; n++) {
      sums[r / 2][n][r % 2 * 2] *= inverse;
      sums[r / 2][n][r % 2 * 2 + 1] *= inverse;
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
