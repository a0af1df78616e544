#pragma once
// What two warps of a backward kernel for compute capability 9.0 do that have neither tiles to copy nor
// products to make: they prepare the rows of the heads that come next, and finish those of complete heads.
// Rows pass through shared memory, since such warps have few registers. S::kScratchAt and S::kScratchBytes
// say where, or that there is no room for it.
#include "attention/attention_sm90.h"
#include "attention/key_stream_sm90.h"
#include "attention/query_sums.h"
#include "tile/row_group.h"
#include "tile/sm90.h"

namespace longseq {

/** Of a warp, for kSumRows rows of out and dout, whose pitch leaves no two lanes' 16 bytes on the same banks,
 * or for as many rows of sums. */
template <int kHeadDim>
struct RowScratch {
  static constexpr int kPitch = 2 * kHeadDim + 32, kTensorBytes = kSumRows * kPitch;
  static constexpr int kBytes = 2 * kTensorBytes;
  static_assert(kSumRows * kHeadDim * 4 <= kBytes);
};

template <class S>
class Meanwhile {
  using T = typename S::T;
  using Scratch = RowScratch<S::kHeadDim>;
  using Element = std::conditional_t<std::is_same_v<T, sm80::Half>, Float16, BFloat16>;
  using Chunk = RowPack<Element>;
  static constexpr bool kHasScratch = S::kScratchBytes > 0;

 public:
  /** Of the warps that do this, the one with this index. */
  __device__ Meanwhile(const BackwardSm90& launch, int index)
      : order_(launch.order),
        op_(launch.op),
        index_(index),
        lane_(static_cast<int>(threadIdx.x) % 32),
        scratch_(sm90::aligned_memory() + S::kScratchAt + index * Scratch::kBytes) {}

  /** A share of the rows of the second section behind the block's. */
  __device__ void prepare() const {
    const BlockOrder::Section section = order_.section_of(blockIdx.x),
                              next = order_.behind(order_.behind(section));
    const int workers = warps_preparing(order_, section);
    const int worker =
        (static_cast<int>(blockIdx.x) - section.first * order_.tiles) * kMeanwhileWarps + index_;
    if (next.count == 0 || worker >= workers) return;
    const int tiles = static_cast<int>(op_.padded_queries) / kSumRows, group = op_.forward.group;
    for (int tile = worker; tile < next.count * group * tiles; tile += workers) {
      const int pair = next.first * group + tile / tiles, first_row = tile % tiles * kSumRows;
      auto* const sums = reinterpret_cast<float4*>(sums_of(op_, pair, first_row)) + lane_;
#pragma unroll 4
      for (int i = 0; i < kSumRows * S::kHeadDim / 128; i++) sums[32 * i] = make_float4(0, 0, 0, 0);
      prepare_rows(pair, first_row);
    }
    sm90::publish_global_writes();
    __syncwarp();
    if (lane_ == 0) sm80::add_release(&op_.progress[next.first].prepared, 1);
  }

  /** The rows of heads that are complete, until there are none, or ends(). */
  template <class Ends>
  __device__ void finish(const Ends& ends) const {
    finish_complete_heads(
        op_, order_.tiles,
        [&](int pair, int first_row) {
          if constexpr (kHasScratch) {
            finish_copied_rows(pair, first_row);
          } else {
            finish_rows<T, 2>(op_, pair, first_row);
          }
        },
        ends);
  }

 private:
  /** Statistics of rows, two lanes a row. */
  __device__ void prepare_rows(int pair, int first_row) const {
    copy_rows(op_.forward.out, pair, first_row, 0);
    copy_rows(op_.dout, pair, first_row, Scratch::kTensorBytes);
    sm80::commit_copies();
    sm80::wait_copies<0>();
    __syncwarp();
    float delta = 0;
    const char* const row = scratch_ + lane_ / 2 * Scratch::kPitch;
#pragma unroll 1
    for (int chunk = lane_ % 2; chunk < op_.forward.head_dim / 8; chunk += 2) {
      delta += dot(reinterpret_cast<const Chunk*>(row)[chunk],
                   reinterpret_cast<const Chunk*>(row + Scratch::kTensorBytes)[chunk]);
    }
    delta += __shfl_xor_sync(~0u, delta, 1);  // and what was copied has been read by all
    if (lane_ % 2 == 0) write_statistics(pair, first_row + lane_ / 2, delta);
  }

  __device__ static float dot(const Chunk& x, const Chunk& y) {
    float a[8], b[8], sum = 0;
    x.get(a);
    y.get(b);
#pragma unroll
    for (int e = 0; e < 8; e++) sum = fmaf(a[e], b[e], sum);
    return sum;
  }

  __device__ void write_statistics(int pair, int query, float delta) const {
    const auto of = [&](const GpuStatistics& x) {
      return x.data[pair / op_.forward.heads * x.batch + pair % op_.forward.heads * x.head + query];
    };
    const bool inside = query < op_.forward.queries;
    if (inside && op_.dlog_sum_exp.data != nullptr) delta -= of(op_.dlog_sum_exp);
    op_.statistics[pair * op_.padded_queries + query] =
        row_statistics(inside ? of(op_.forward.log_sum_exp) : -INFINITY, delta);
  }

  __device__ const T* row_of(const GpuRows& x, int pair) const {
    return static_cast<const T*>(x.data) + pair / op_.forward.heads * x.batch +
           pair % op_.forward.heads * x.head;
  }

  __device__ void copy_rows(const GpuRows& x, int pair, int first_row, int to) const {
    constexpr int kChunks = S::kHeadDim / 8;
    const T* const from = row_of(x, pair);
    const uint32_t scratch = sm80::shared_address(scratch_) + to;
#pragma unroll 2
    for (int i = lane_; i < kSumRows * kChunks; i += 32) {
      const int row = i / kChunks, chunk = i % kChunks, query = min(first_row + row, op_.forward.queries - 1);
      if (8 * chunk >= op_.forward.head_dim) continue;
      sm80::copy_async(scratch + row * Scratch::kPitch + 16 * chunk, from + query * x.row + 8 * chunk);
    }
  }

  __device__ void finish_copied_rows(int pair, int first_row) const {
    const float* const from = sums_of(op_, pair, first_row) + 4 * lane_;
    const uint32_t to = sm80::shared_address(scratch_) + 16 * lane_;
#pragma unroll 4
    for (int tile = 0; tile < S::kHeadDim / 8; tile++) sm80::copy_async(to + 512 * tile, from + 128 * tile);
    sm80::commit_copies();
    sm80::wait_copies<0>();
    __syncwarp();
    finish_rows<T, 2>(op_, pair, first_row, [&](int column, float(&values)[4]) {
      const float4 four = reinterpret_cast<const float4*>(scratch_)[column / 8 * 32 + lane_];
      values[0] = four.x;
      values[1] = four.y;
      values[2] = four.z;
      values[3] = four.w;
    });
    __syncwarp();
  }

  const BlockOrder& order_;
  const BackwardSm80& op_;
  const int index_, lane_;
  char* const scratch_;
};

}  // namespace longseq
