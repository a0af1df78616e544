// What surrounds the backward kernels, bound by memory: each query's statistics before them, dq from their
// sums behind them. A block takes rows of one head, the heads of a batch entry side by side, whose rows are
// neighbours in memory. Rows that do not lie on 16 bytes are read or written by elements, in the same order.
#include "attention/gpu_call.h"
#include "attention/gpu_passes.h"
#include "attention/query_sums.h"
#include "core/division.h"
#include "tile/row_group.h"
#include "tile/sum.h"

namespace longseq {
namespace {

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

template <class T, bool kAligned, class Load>
__device__ void load_chunk(const T* p, float (&values)[kChunk], const Load& load) {
  if constexpr (kAligned) {
    constexpr int kCount = RowPack<T>::kCount;
    RowPack<T> packs[kChunk / kCount];
#pragma unroll
    for (int i = 0; i < kChunk / kCount; i++) packs[i] = load(p + i * kCount);
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
        // Of the two, the kernel behind this reads dout alone.
        load_chunk<T, kAligned>(out + query * op.out.row + d, a, [](const T* p) { return load_last(p); });
        load_chunk<T, kAligned>(dout + query * op.dout.row + d, b, [](const T* p) { return load_once(p); });
#pragma unroll
        for (int e = 0; e < kChunk; e++) sum = fmaf(a[e], b[e], sum);
      }
    }
    for (int distance = op.lanes / 2; distance > 0; distance /= 2) {
      sum += __shfl_xor_sync(~0u, sum, distance);
    }
    if (lane != 0) continue;
    if (inside && op.dlog_sum_exp.data != nullptr) sum -= tile.statistics(op.dlog_sum_exp)[query];
    op.to[tile.before + query] = row_statistics(log_sum_exp, sum);
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

constexpr int kFinishRows = kThreads / 32 * kSumRows;  // of a block: a warp takes kSumRows

/** What is left of dq, of 16 bits and on 16 bytes. `is_of_sm90`: who made the sums. */
template <class T>
__global__ void __launch_bounds__(kThreads)
    finish_kernel(const __grid_constant__ BackwardSm80 op, bool is_of_sm90) {
  const int pairs = op.forward.batch * op.forward.heads, group = op.forward.group;
  const int pair = static_cast<int>(blockIdx.x % pairs);
  const int row = static_cast<int>(blockIdx.x / pairs * kFinishRows + threadIdx.x / 32 * kSumRows);
  if (row >= op.forward.queries) return;
  const int tile = pair % group * sum_tiles(op.forward) + row / kSumRows;
  if (op.progress != nullptr && tile < op.progress[pair / group].taken) return;
  finish_rows<T, 4>(op, pair, row, is_of_sm90);
}

/** Of dq whose rows lie anywhere, or that is float32, whose pairs may be aligned. */
template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    finish_elements_kernel(const __grid_constant__ BackwardSm80 op, bool is_of_sm90) {
  const int pairs = op.forward.batch * op.forward.heads, lane = static_cast<int>(threadIdx.x) % 32;
  const int pair = static_cast<int>(blockIdx.x % pairs);
  const int first_row = static_cast<int>(blockIdx.x / pairs * kFinishRows + threadIdx.x / 32 * kSumRows);
  if (first_row >= op.forward.queries) return;
  const float* const sums = sums_of(op, pair, first_row);
  T* const to = static_cast<T*>(op.dq.data) + pair / op.forward.heads * op.dq.batch +
                pair % op.forward.heads * op.dq.head;
#pragma unroll 4
  for (int column = 0; column < op.forward.head_dim; column += 8) {
    float values[4];
    load_four(sums + sum_offset(0, column, op.dq_columns), lane, values, is_of_sm90);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = first_row + lane / 4 + 8 * half;
      if (row >= op.forward.queries) continue;
      const float low = values[2 * half] * op.sum_scale, high = values[2 * half + 1] * op.sum_scale;
      T* const two = to + row * op.dq.row + column + lane % 4 * 2;
      if constexpr (kAligned) {
        put_two(two, low, high, op.adds_to_dq);
      } else if (std::is_same_v<T, float> && op.adds_to_dq) {
        add_one(reinterpret_cast<float*>(two), low);
        add_one(reinterpret_cast<float*>(two) + 1, high);
      } else {
        two[0] = from_float<T>(low);
        two[1] = from_float<T>(high);
      }
    }
  }
}

/** Of a key head's shares, which lie side by side. */
struct ShareRows {
  const float* of_shares;
  GpuRows to;
  int64_t elements;  // of `to`
  int32_t shares, keys, heads, head_dim;
  bool adds;
};

template <class T>
__global__ void sum_shares_kernel(ShareRows rows) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < rows.elements;
       i += int64_t{gridDim.x} * kThreads) {
    const int64_t row = i / rows.head_dim, column = i % rows.head_dim;
    const float* const from = rows.of_shares + row * rows.shares * rows.head_dim + column;
    float sum = 0;
    for (int share = 0; share < rows.shares; share++) sum += from[int64_t{share} * rows.head_dim];
    const int64_t key = row / rows.heads;
    T* const to = static_cast<T*>(rows.to.data) + key / rows.keys * rows.to.batch +
                  key % rows.keys * rows.to.row + row % rows.heads * rows.to.head + column;
    *to = from_float<T>(rows.adds ? sum + static_cast<float>(*to) : sum);
  }
}

}  // namespace

void find_row_statistics(const Cuda& cuda, const AttentionBackward& op, int64_t padded_queries, int64_t pairs,
                         float2* to) {
  static_assert(kGpuTileRows % kStatisticsRows == 0);
  const AttentionForward& forward = op.forward;
  const Tensor &out = forward.out, &dout = op.dout;
  StatisticsRows rows{.out = rows_of(out),
                      .dout = rows_of(dout),
                      .log_sum_exp = statistics_of(forward.log_sum_exp),
                      .dlog_sum_exp = op.dlog_sum_exp ? statistics_of(op.dlog_sum_exp) : GpuStatistics{},
                      .queries = static_cast<int32_t>(out.size(1)),
                      .heads = static_cast<int32_t>(out.size(2)),
                      .pairs = static_cast<int32_t>(pairs),
                      .head_dim = static_cast<int32_t>(out.size(3)),
                      .lanes = 1,
                      .padded = padded_queries,
                      .to = to};
  while (rows.lanes * kChunk < rows.head_dim) rows.lanes *= 2;
  const bool is_aligned = rows_aligned(out) && rows_aligned(dout);
  visit_float(out.dtype, [&]<class T>(T) { launch_statistics<T>(cuda, rows, is_aligned); });
}

void finish_query_gradient(const Cuda& cuda, const BackwardSm80& op, const Tensor& dq, Kernels made_by) {
  const int64_t pairs = int64_t{op.forward.heads} * op.forward.batch;
  const dim3 blocks(static_cast<unsigned>(ceil_div(op.forward.queries, kFinishRows) * pairs));
  const bool is_aligned = rows_aligned(dq), is_of_sm90 = made_by == Kernels::Sm90;
  visit_float(dq.dtype, [&]<class T>(T) {
    if constexpr (std::is_same_v<T, float>) {
      if (is_aligned)
        return launch<finish_elements_kernel<T, true>>(cuda, blocks, kThreads, 0, op, is_of_sm90);
    } else if (is_aligned) {
      using Packed = std::conditional_t<std::is_same_v<T, BFloat16>, sm80::Bf16, sm80::Half>;
      return launch<finish_kernel<Packed>>(cuda, blocks, kThreads, 0, op, is_of_sm90);
    }
    launch<finish_elements_kernel<T, false>>(cuda, blocks, kThreads, 0, op, is_of_sm90);
  });
}

void sum_shares(const Cuda& cuda, const float* of_shares, int shares, const Tensor& gradient, bool adds) {
  const ShareRows rows{.of_shares = of_shares,
                       .to = rows_of(gradient),
                       .elements = gradient.elements(),
                       .shares = shares,
                       .keys = static_cast<int32_t>(gradient.size(1)),
                       .heads = static_cast<int32_t>(gradient.size(2)),
                       .head_dim = static_cast<int32_t>(gradient.size(3)),
                       .adds = adds};
  const int64_t blocks = std::clamp<int64_t>(ceil_div(rows.elements, kThreads), 1, 4096);
  visit_float(gradient.dtype, [&]<class T>(T) {
    launch<sum_shares_kernel<T>>(cuda, dim3(static_cast<unsigned>(blocks)), kThreads, 0, rows);
  });
}

}  // namespace longseq
