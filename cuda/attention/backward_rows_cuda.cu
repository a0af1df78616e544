// What surrounds the backward kernels, bound by memory: each query's statistics before them, dq from their
// sums behind them. A block takes rows of one head, the heads of a batch entry side by side, whose rows are
// neighbours in memory. Rows that do not lie on 16 bytes are read or written by elements, in the same order.
#include "attention/gpu_call.h"
#include "attention/gpu_passes.h"
#include "core/division.h"
#include "tile/row_group.h"
#include "tile/sum.h"

namespace longseq {
namespace {

constexpr float kLog2e = 1.4426950408889634f;
constexpr int kThreads = 256;
constexpr int kChunk = 8;  // elements that a thread takes at a time; a head dimension is a multiple

/** Which rows of which head a block takes. */
struct HeadTile {
  int batch, head;
  int64_t first_row, before;  // before: rows of the heads before this one, padded

  __device__ HeadTile(int heads, int pairs, int rows, int64_t padded) {
    const int pair = static_cast<int>(blockIdx.x % pairs);
    batch = pair / heads;
    head = pair % heads;
    first_row = int64_t{blockIdx.x / pairs} * rows;
    before = pair * padded;
  }
  template <class T>
  __device__ T* rows(const GpuRows& x) const {
    return static_cast<T*>(x.data) + batch * x.batch + head * x.head;
  }
  __device__ float* statistics(const GpuStatistics& x) const {
    return x.data + batch * x.batch + head * x.head;
  }
};

template <class T, bool kAligned>
__device__ void load_chunk(const T* p, float (&values)[kChunk]) {
  if constexpr (kAligned) {
    constexpr int kCount = RowPack<T>::kCount;
    RowPack<T> packs[kChunk / kCount];
#pragma unroll
    for (int i = 0; i < kChunk / kCount; i++) packs[i] = load_once(p + i * kCount);
#pragma unroll
    for (int i = 0; i < kChunk / kCount; i++) {
      float part[kCount];
      packs[i].get(part);
#pragma unroll
      for (int e = 0; e < kCount; e++) values[i * kCount + e] = part[e];
    }
  } else {
#pragma unroll
    for (int e = 0; e < kChunk; e++) values[e] = static_cast<float>(p[e]);
  }
}

struct StatisticsRows {
  GpuRows out, dout;
  GpuStatistics log_sum_exp, dlog_sum_exp;
  int32_t queries, heads, pairs, head_dim;
  int32_t lanes;  // that share a row: a power of two
  int64_t padded;
  float2* to;
};
constexpr int kStatisticsRows = 64;  // of a block

template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads) statistics_kernel(const __grid_constant__ StatisticsRows op) {
  const HeadTile tile(op.heads, op.pairs, kStatisticsRows, op.padded);
  const int lane = static_cast<int>(threadIdx.x) & (op.lanes - 1);
  const T *const out = tile.rows<const T>(op.out), *const dout = tile.rows<const T>(op.dout);
  // The lanes of 64 rows are whole warps: all of a warp have a row, or none.
  for (int row = static_cast<int>(threadIdx.x) / op.lanes; row < kStatisticsRows;
       row += kThreads / op.lanes) {
    const int64_t query = tile.first_row + row;
    const bool inside = query < op.queries;
    float sum = 0, log_sum_exp = -INFINITY;
    if (inside) {
      log_sum_exp = tile.statistics(op.log_sum_exp)[query];
      for (int d = kChunk * lane; d < op.head_dim; d += kChunk * op.lanes) {
        float a[kChunk], b[kChunk];
        load_chunk<T, kAligned>(out + query * op.out.row + d, a);
        load_chunk<T, kAligned>(dout + query * op.dout.row + d, b);
#pragma unroll
        for (int e = 0; e < kChunk; e++) sum = fmaf(a[e], b[e], sum);
      }
    }
    for (int distance = op.lanes / 2; distance > 0; distance /= 2) {
      sum += __shfl_xor_sync(~0u, sum, distance);
    }
    if (lane != 0) continue;
    if (inside && op.dlog_sum_exp.data != nullptr) sum -= tile.statistics(op.dlog_sum_exp)[query];
    op.to[tile.before + query] =
        log_sum_exp == -INFINITY ? make_float2(INFINITY, 0) : make_float2(log_sum_exp * kLog2e, sum);
  }
}

template <class T>
void launch_statistics(const Cuda& cuda, const StatisticsRows& op, bool is_aligned) {
  const dim3 blocks(static_cast<unsigned>(op.padded / kStatisticsRows * op.pairs));
  if (is_aligned) {
    launch<statistics_kernel<T, true>>(cuda, blocks, kThreads, 0, op);
  } else {
    launch<statistics_kernel<T, false>>(cuda, blocks, kThreads, 0, op);
  }
}

struct FinishRows {
  const float* sum;
  GpuRows dq;
  float scale;
  int32_t queries, heads, pairs, head_dim;
  int32_t columns;  // of the sums
  int64_t padded;
  bool adds;  // to what is there, of float32
};
constexpr int kFinishRows = kThreads / 32 * 16;  // of a block: a warp takes 16

/** Of the four lanes that share a row: lane i's word j goes to lane j as its word i. */
__device__ void transpose_of_four(uint32_t (&words)[4]) {
  const bool odd = (threadIdx.x & 1) != 0, upper = (threadIdx.x & 2) != 0;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t taken = __shfl_xor_sync(~0u, odd ? words[i] : words[i + 1], 1);
    (odd ? words[i] : words[i + 1]) = taken;
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const uint32_t taken = __shfl_xor_sync(~0u, upper ? words[i] : words[i + 2], 2);
    (upper ? words[i] : words[i + 2]) = taken;
  }
}

/**
 * Reads four tiles of 16 x 8 sums at a time. A lane has two neighbours of each in rows r and r + 8; as 16-bit
 * elements the lanes of a row exchange theirs, so that each writes 16 bytes of it.
 */
template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads) finish_kernel(const __grid_constant__ FinishRows op) {
  const HeadTile tile(op.heads, op.pairs, kFinishRows, op.padded);
  const int lane = threadIdx.x % 32, place = lane % 4;
  const int64_t first_row = tile.first_row + threadIdx.x / 32 * 16;
  if (first_row >= op.queries) return;
  const float* const sums = op.sum + (tile.before + first_row) * op.columns;
  T* const to = tile.rows<T>(op.dq) + (first_row + lane / 4) * op.dq.row;
  const bool inside[2] = {first_row + lane / 4 < op.queries, first_row + lane / 4 + 8 < op.queries};
#pragma unroll 2
  for (int first = 0; first < op.head_dim; first += 32) {
    float values[4][4] = {};
#pragma unroll
    for (int n = 0; n < 4; n++) {
      if (first + 8 * n < op.head_dim) {
        load_four(sums + sum_offset(0, first + 8 * n, op.columns), lane, values[n]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      T* const row = to + 8 * half * op.dq.row + first;
      if constexpr (kAligned && sizeof(T) == 2) {
        using Packed = std::conditional_t<std::is_same_v<T, BFloat16>, sm80::Bf16, sm80::Half>;
        uint32_t words[4];
#pragma unroll
        for (int n = 0; n < 4; n++) {
          words[n] = sm80::pack<Packed>(values[n][2 * half] * op.scale, values[n][2 * half + 1] * op.scale);
        }
        transpose_of_four(words);
        if (inside[half] && first + 8 * place < op.head_dim) {
          store(row + 8 * place, RowPack<T>{words[0], words[1], words[2], words[3]});
        }
      } else if (inside[half]) {
#pragma unroll
        for (int n = 0; n < 4; n++) {
          if (first + 8 * n >= op.head_dim) continue;
          const float low = values[n][2 * half] * op.scale, high = values[n][2 * half + 1] * op.scale;
          T* const pair = row + 8 * n + 2 * place;
          if constexpr (kAligned) {
            put_two(pair, low, high, op.adds);
          } else if (std::is_same_v<T, float> && op.adds) {
            add_one(reinterpret_cast<float*>(pair), low);
            add_one(reinterpret_cast<float*>(pair) + 1, high);
          } else {
            pair[0] = from_float<T>(low);
            pair[1] = from_float<T>(high);
          }
        }
      }
    }
  }
}

template <class T>
void launch_finish(const Cuda& cuda, const FinishRows& op, bool is_aligned) {
  const dim3 blocks(static_cast<unsigned>(ceil_div(op.queries, kFinishRows) * op.pairs));
  if (is_aligned) {
    launch<finish_kernel<T, true>>(cuda, blocks, kThreads, 0, op);
  } else {
    launch<finish_kernel<T, false>>(cuda, blocks, kThreads, 0, op);
  }
}

}  // namespace

void find_row_statistics(const Cuda& cuda, const AttentionBackward& op, int64_t padded_queries, float2* to) {
  static_assert(kGpuTileRows % kStatisticsRows == 0);
  const AttentionForward& forward = op.forward;
  const Tensor &out = forward.out, &dout = op.dout;
  StatisticsRows rows{.out = rows_of(out),
                      .dout = rows_of(dout),
                      .log_sum_exp = statistics_of(forward.log_sum_exp),
                      .dlog_sum_exp = op.dlog_sum_exp ? statistics_of(op.dlog_sum_exp) : GpuStatistics{},
                      .queries = static_cast<int32_t>(out.size(1)),
                      .heads = static_cast<int32_t>(out.size(2)),
                      .pairs = static_cast<int32_t>(out.size(0) * out.size(2)),
                      .head_dim = static_cast<int32_t>(out.size(3)),
                      .lanes = 1,
                      .padded = padded_queries,
                      .to = to};
  while (rows.lanes * kChunk < rows.head_dim) rows.lanes *= 2;
  const bool is_aligned = rows_aligned(out) && rows_aligned(dout);
  visit_float(out.dtype, [&]<class T>(T) { launch_statistics<T>(cuda, rows, is_aligned); });
}

void finish_query_gradient(const Cuda& cuda, const BackwardSm80& op, float scale, const Tensor& dq) {
  const ForwardSm80& forward = op.forward;
  const FinishRows rows{.sum = op.dq_sum,
                        .dq = rows_of(dq),
                        .scale = scale,
                        .queries = forward.queries,
                        .heads = forward.heads,
                        .pairs = forward.heads * forward.batch,
                        .head_dim = forward.head_dim,
                        .columns = op.dq_columns,
                        .padded = op.padded_queries,
                        .adds = op.adds_to_dq};
  visit_float(dq.dtype, [&]<class T>(T) { launch_finish<T>(cuda, rows, rows_aligned(dq)); });
}

}  // namespace longseq
