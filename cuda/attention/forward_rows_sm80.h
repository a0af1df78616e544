#pragma once
// Which queries a block of the forward kernel (forward_tile_sm80.h) takes, what they see, and what lies where
// in its shared memory. Included by .cu files alone.
#include "attention/attention_sm80.h"
#include "attention/block_order.h"
#include "attention/key_blocks.h"

namespace longseq {

template <class Element, int kHeadDim_, int kWarps_, int kRowTiles_, int kKeys_, int kStages_, int kBlocks_,
          int kHeldSteps_>
struct ForwardShape {
  using T = Element;
  static constexpr int kHeadDim = kHeadDim_, kWarps = kWarps_, kRowTiles = kRowTiles_, kKeys = kKeys_,
                       kStages = kStages_, kBlocks = kBlocks_;
  static constexpr bool kIsRing = kStages > 2;  // of stages: forward_keys_sm80.h
  static constexpr int kThreads = 32 * kWarps, kRows = 16 * kRowTiles * kWarps;
  static constexpr int kDepthSteps = kHeadDim / 16, kHeldSteps = kHeldSteps_;  // of the queries, in registers
  static constexpr bool kHoldsQueries = kHeldSteps == kDepthSteps;
  static constexpr int kColumnTiles = kHeadDim / 8, kGroups = kKeys / 16;
  // An odd number of 16-byte chunks a row: the eight rows of a matrix then lie in different banks.
  static constexpr int kPitch = (kHeadDim / 8 | 1) * 16;  // in bytes
  static constexpr int kTileBytes = kKeys * kPitch, kStageBytes = 2 * kTileBytes;
  static constexpr int kStreamBytes = kStages * kStageBytes;
  static constexpr int kQueryBytes = kRows * kPitch;
  // Queries that go to registers stand where later stages will be.
  static constexpr int kQueriesAt = kHoldsQueries ? 0 : kStreamBytes;
  static constexpr int kTilesBytes =
      kHoldsQueries ? (kStreamBytes > kQueryBytes ? kStreamBytes : kQueryBytes) : kStreamBytes + kQueryBytes;
  static constexpr int kSharedBytes = kTilesBytes + kRows * 8 + 16 * (kWarps + kStages) + 48;
};

/**
 * What a block knows of its tile. It stays in shared memory and is read where it is needed: the registers are
 * all taken by operands.
 */
template <class S>
struct TileMemory {
  int first_query, first_place;  // the first row's: its query, and its head among those that are packed
  int rows, batch, head;
  int begin, end;  // keys that the tile sees
  bool is_exact;   // rows have the maxima of their scores
  const typename S::T *k, *v;
  struct {
    int seen_begin, seen_end, full_begin, full_end;  // keys that one row of the warp sees, and all of them
  } warps[S::kWarps];
  int2 intervals[S::kRows];  // none where there is no row
  uint64_t barriers[2 * S::kStages];
};

/** The rows of a tile: a query of a head each, packed heads side by side. */
template <class S>
class ForwardRows {
  using T = typename S::T;

 public:
  static_assert(S::kTilesBytes + sizeof(TileMemory<S>) <= S::kSharedBytes);

  __device__ ForwardRows(const ForwardSm80& op, const BlockOrder& order)
      : op_(op), warp_(threadIdx.x / 32), lane_(threadIdx.x % 32) {
    if (threadIdx.x == 0) {
      const auto [index, head] = order.place(blockIdx.x);
      const int row_heads = op.heads / op.packed;
      TileMemory<S>& tile = memory();
      const int first_row = (order.tiles - 1 - index) * S::kRows;
      tile.first_query = first_row / op.packed;
      tile.first_place = first_row % op.packed;
      tile.batch = head / row_heads;
      tile.head = head % row_heads * op.packed;
      tile.is_exact = false;
      tile.rows = min(S::kRows, op.queries * op.packed - first_row);
      const int key_head = tile.head / op.group;
      tile.k = static_cast<const T*>(op.k.data) + tile.batch * op.k.batch + key_head * op.k.head;
      tile.v = static_cast<const T*>(op.v.data) + tile.batch * op.v.batch + key_head * op.v.head;
    }
    __syncthreads();
  }

  __device__ static char* shared() {
    extern __shared__ __align__(16) char bytes[];
    return bytes;
  }
  __device__ static TileMemory<S>& memory() {
    return *reinterpret_cast<TileMemory<S>*>(shared() + S::kTilesBytes);
  }
  /** Volatile: to be read again each time. */
  __device__ static const volatile TileMemory<S>& tile() { return memory(); }
  /** The warp's. */
  __device__ const volatile auto& limits() const { return tile().warps[warp_]; }

  __device__ int query_of(int row) const { return tile().first_query + queries_before(row); }
  __device__ int head_of(int row) const { return tile().head + place_of(row, queries_before(row)); }
  /** How far a row lies behind start_of. */
  __device__ int64_t offset(const GpuRows& of, int row) const {
    const int queries = queries_before(row);
    return queries * of.row + place_of(row, queries) * of.head;
  }
  /** use(offset), for many rows: a multiple of a stride where no heads are packed. */
  template <class Use>
  __device__ void with_offsets(const GpuRows& of, const Use& use) const {
    if (op_.packed == 1) {
      use([&](int row) { return row * of.row; });
    } else {
      use([&](int row) { return offset(of, row); });
    }
  }
  /** Where its first query lies, of its first head. */
  __device__ int64_t start_of(const GpuRows& of) const {
    return tile().batch * of.batch + tile().first_query * of.row + tile().head * of.head;
  }
  __device__ int last_row() const { return tile().rows - 1; }
  /** The row of the tile of this lane's elements 2 half and 2 half + 1 in fragments of row tile i. */
  __device__ int row_of(int i, int half) const {
    return warp_ * 16 * S::kRowTiles + 16 * i + lane_ / 4 + 8 * half;
  }

  /** Of the row that is this thread's, if there is one: none behind the last. */
  __device__ int2 own_interval() const {
    const int row = threadIdx.x;
    if (row > last_row()) return make_int2(INT32_MAX, 0);
    return visible_keys(op_.visible, query_of(row), op_.keys);
  }
  __device__ void share_intervals(int2 own) const {
    static_assert(S::kRows <= S::kThreads);
    TileMemory<S>& tile = memory();
    if (threadIdx.x < S::kRows) tile.intervals[threadIdx.x] = own;
    __syncthreads();
    int begin = tile.intervals[0].x, end = tile.intervals[last_row()].y;
    if (op_.splits > 1) {
      const int length = ((end - begin + op_.splits - 1) / op_.splits + S::kKeys - 1) / S::kKeys * S::kKeys;
      begin += static_cast<int>(blockIdx.y) * length;
      end = min(end, begin + length);
    }
    if (threadIdx.x < S::kWarps) {
      const int first = static_cast<int>(threadIdx.x) * 16 * S::kRowTiles,
                last = min(first + 16 * S::kRowTiles - 1, last_row());
      tile.warps[threadIdx.x] = {max(tile.intervals[first].x, begin), min(tile.intervals[last].y, end),
                                 max(tile.intervals[last].x, begin), min(tile.intervals[first].y, end)};
    }
    if (threadIdx.x == 0) {
      tile.begin = begin;
      tile.end = end;
    }
    __syncthreads();
  }

 private:
  /** The tile's queries before a row's. */
  __device__ int queries_before(int row) const { return op_.packed_query(tile().first_place + row); }
  /** Its head among those that are packed. */
  __device__ int place_of(int row, int queries) const {
    return tile().first_place + row - queries * op_.packed;
  }

 protected:
  const ForwardSm80& op_;
  const int warp_, lane_;
};

}  // namespace longseq
