#pragma once
// What a block of the backward kernel (backward_tile_sm80.h) takes and streams, and what lies where in its
// shared memory. Included by .cu files alone.
#include "attention/attention_sm80.h"
#include "attention/block_order.h"
#include "attention/key_blocks.h"
#include "attention/query_tiles.h"
#include "tile/sm80.h"
#include "tile/swizzle.h"

namespace longseq {

/** Keys are kWarpKeys for each of kGroups pairs of warps; of dq a key warp takes kQueryRows. */
template <class Element, int kHeadDim_, int kRows_, int kWarpKeys_, int kGroups_, int kQueryRows_>
struct BackwardShape {
  using T = Element;
  static constexpr int kHeadDim = kHeadDim_, kRows = kRows_, kWarpKeys = kWarpKeys_, kGroups = kGroups_;
  static constexpr int kKeys = kWarpKeys * kGroups, kWarps = 2 * kGroups, kThreads = 32 * kWarps;
  static constexpr int kQueryRows = kQueryRows_, kQueryParts = kRows / kQueryRows,
                       kQueryColumns = kHeadDim / (kGroups / kQueryParts);
  static constexpr int kPitch = 2 * kHeadDim, kScorePitch = 2 * kRows;  // in bytes
  static constexpr int kKeyBytes = kKeys * kPitch, kRowBytes = kRows * kPitch,
                       kScoreBytes = kKeys * kScorePitch, kStatisticBytes = kRows * 8;
  // k, v, then twice: q, dout, P^T or dS^T, statistics, the keys that each query sees, and where the tile is
  // among all queries of all heads.
  static constexpr int kQueriesAt = 2 * kKeyBytes, kGradientsAt = kQueriesAt + 2 * kRowBytes,
                       kScoresAt = kGradientsAt + 2 * kRowBytes, kStatisticsAt = kScoresAt + 2 * kScoreBytes,
                       kIntervalsAt = kStatisticsAt + 2 * kStatisticBytes,
                       kFirstRowAt = kIntervalsAt + 2 * kStatisticBytes;
  static constexpr int kSharedBytes = kFirstRowAt + 16;
  /** Keys stay in registers where there are enough. */
  static constexpr bool kOwnKept = kHeadDim <= 64;
  static_assert(kQueryColumns % 16 == 0 && kWarpKeys % 16 == 0 && kRows % 16 == 0);
};

/** A block's keys and values, and the tiles of queries and gradients that go by, in two stages. */
template <class S>
class BackwardStream {
  using T = typename S::T;
  using Rows = sm80::Swizzle<S::kPitch>;

 public:
  __device__ BackwardStream(const BackwardSm80& op, const BlockOrder& order, char* shared)
      : op_(op),
        shared_(shared),
        tiles_(sm80::shared_address(shared)),
        warp_(sm80::thread_index() / 32),
        lane_(sm80::thread_index() % 32) {
    const auto [tile, head] = order.place(blockIdx.x);
    const int key_heads = op.forward.heads / op.forward.group;
    first_key_ = tile * S::kKeys;
    batch_ = head / key_heads;
    key_head_ = head % key_heads;
    group_ = warp_ % S::kGroups;
  }

 protected:
  __device__ const T* rows_of(const GpuRows& rows, int head) const {
    return static_cast<const T*>(rows.data) + batch_ * rows.batch + head * rows.head;
  }

  /** Of the value warps, or of the key warps: the others do not load what these do. */
  static constexpr int kThreads = S::kThreads / 2;
  __device__ int thread() const { return sm80::thread_index() % kThreads; }

  /** Rows [first, first + count) of [rows x D], from global to shared memory; zeros from `limit` on. */
  template <int count>
  __device__ void load_rows(uint32_t to, const T* from, int64_t stride, int first, int limit) const {
    constexpr int kChunks = S::kHeadDim / 8, kRowsAPass = sm80::rows_a_pass(kThreads, kChunks);
    const int row = thread() / kChunks, column = thread() % kChunks;
    if (kRowsAPass * kChunks != kThreads && row >= kRowsAPass) return;
    const T* const source = from + (first + row) * stride + column * 8;
    if (first + count <= limit && op_.forward.head_dim == S::kHeadDim) {
#pragma unroll
      for (int r = 0; r < count; r += kRowsAPass) {
        sm80::copy_async(to + Rows::offset(row + r, column), source + r * stride);
      }
    } else {
#pragma unroll 1
      for (int r = 0; r < count; r += kRowsAPass) {
        const bool inside = column * 8 < op_.forward.head_dim && first + row + r < limit;
        sm80::copy_async(to + Rows::offset(row + r, column), inside ? source + r * stride : from, inside);
      }
    }
  }

  /** By the value warps. */
  __device__ void load_tile(const RowTile& rows, int stage) const {
    const ForwardSm80& forward = op_.forward;
    if (thread() == 0) first_row(stage) = rows.first < 0 ? -1 : head_row(rows);
    if (rows.first >= 0) {
      load_rows<S::kRows>(tiles_ + S::kQueriesAt + stage * S::kRowBytes, rows_of(forward.q, rows.head),
                          forward.q.row, rows.first, forward.queries);
      load_rows<S::kRows>(tiles_ + S::kGradientsAt + stage * S::kRowBytes, rows_of(op_.dout, rows.head),
                          op_.dout.row, rows.first, forward.queries);
      if (thread() < S::kStatisticBytes / 16) {
        sm80::copy_async(tiles_ + S::kStatisticsAt + stage * S::kStatisticBytes + 16 * thread(),
                         op_.statistics + head_row(rows) + 2 * thread());
      }
      if (thread() < S::kRows) {
        load_interval(min(rows.first + thread(), forward.queries - 1), stage, thread());
      }
    }
    sm80::commit_copies();
  }
  __device__ void load_interval(int query, int stage, int row) const {
    const GpuIntervals& visible = op_.forward.visible;
    if (visible.begin == nullptr) {
      intervals(stage)[row] = visible_keys(visible, query, op_.forward.keys);
      return;
    }
    const uint32_t to = tiles_ + S::kIntervalsAt + stage * S::kStatisticBytes + 8 * row;
    sm80::copy_word_async(to, visible.begin + query);
    sm80::copy_word_async(to + 4, visible.end + query);
  }

  /** Of [B Hq padded_queries]: fewer than 2^31, or dq_sum would fill any memory. */
  __device__ int head_row(const RowTile& rows) const {
    return static_cast<int>((int64_t{batch_} * op_.forward.heads + rows.head) * op_.padded_queries) +
           rows.first;
  }
  __device__ int& first_row(int stage) const {
    return reinterpret_cast<int*>(shared_ + S::kFirstRowAt)[stage];
  }

  __device__ const float4* statistics(int stage) const {
    return reinterpret_cast<const float4*>(shared_ + S::kStatisticsAt + stage * S::kStatisticBytes) +
           lane_ % 4;
  }
  /** Of the tile's queries; behind the last, as the last. */
  __device__ int2* intervals(int stage) const {
    return reinterpret_cast<int2*>(shared_ + S::kIntervalsAt + stage * S::kStatisticBytes);
  }
  /** Where a pair's P^T passes, and its dS^T is left. */
  __device__ char* scores(int stage) const {
    return shared_ + S::kScoresAt + stage * S::kScoreBytes + group_ * S::kWarpKeys * S::kScorePitch;
  }

  const BackwardSm80& op_;
  char* const shared_;
  const uint32_t tiles_;
  const int warp_, lane_;
  int first_key_, batch_, key_head_, group_;
};

}  // namespace longseq
