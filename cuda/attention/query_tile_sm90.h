#pragma once
// What the kernels for compute capability 9.0 that keep queries and stream keys have in common.
#include "attention/attention_sm90.h"
#include "attention/block_order.h"
#include "attention/key_blocks.h"

namespace longseq {

/** The queries that a block takes, of a head or of those that are packed: theirs side by side, a row each. */
template <int kRows, int kKeys, bool kHasMask>
struct QueryTile {
  using Blocks = KeyBlocks<kKeys, kHasMask ? Masking::Given : Masking::None>;
  int first_query, batch, head, part;
  int begin, end;  // keys that they see

  __device__ QueryTile(const ForwardSm80& op, const BlockOrder& order, int index) {
    const int tiles = order.tiles * order.heads;
    part = index / tiles;
    const auto [place, of] = order.place(index % tiles);
    const int row_heads = op.heads / op.packed;
    first_query = (order.tiles - 1 - place) * query_of(op, kRows);
    batch = of / row_heads;
    head = of % row_heads * op.packed;
    begin = interval(op, 0).x;
    end = interval(op, kRows - 1).y;
    if (op.splits > 1) {
      const int length = ((end - begin + op.splits - 1) / op.splits + kKeys - 1) / kKeys * kKeys;
      begin += part * length;
      end = min(end, begin + length);
    }
  }
  /** The query of a row; of rows behind the last, that one's. */
  __device__ int query(const ForwardSm80& op, int row) const {
    return min(first_query + query_of(op, row), op.queries - 1);
  }
  __device__ int head_of(const ForwardSm80& op, int row) const { return head + place_of(op, row); }
  /** Among the tile's queries. */
  __device__ static int query_of(const ForwardSm80& op, int row) { return op.packed_query(row); }
  /** Among the packed heads. */
  __device__ static int place_of(const ForwardSm80& op, int row) {
    return row - query_of(op, row) * op.packed;
  }
  /** Rows that have a query. */
  __device__ int rows(const ForwardSm80& op) const {
    return min(query_of(op, kRows), op.queries - first_query) * op.packed;
  }
  /** How far a row lies behind the first. */
  __device__ static int64_t offset(const ForwardSm80& op, const GpuRows& of, int row) {
    return query_of(op, row) * of.row + place_of(op, row) * of.head;
  }
  __device__ int2 interval(const ForwardSm80& op, int row) const {
    return visible_keys(op.visible, query(op, row), op.keys);
  }
  __device__ Blocks blocks(const ForwardSm80& op) const {
    return Blocks(op.mask, first_query / 128, op.keys_in_parts ? begin / kKeys * kKeys : begin, end);
  }
};

/** Which of a block's keys a query sees, from a lane's first column on, whose bit is 0; its next is 1, then 8
 * and 9. */
template <int kKeys, bool kHasMask>
class SeenKeys {
 public:
  template <class Tile>
  __device__ SeenKeys(const ForwardSm80& op, const Tile& tile, const KeyBlock& block, int row, int column) {
    const int query = tile.query(op, row);
    const int2 seen = visible_keys(op.visible, query, op.keys);
    begin_ = max(seen.x, tile.begin) - block.first - column;
    end_ = min(seen.y, tile.end) - block.first - column;
    if constexpr (kHasMask) {
#pragma unroll
      for (int i = 0; i < kKeys / 32; i++) {
        words_[i] = mask_bits(op.mask, block.tile, query, block.first + 32 * i) >> column;
      }
    }
  }
  __device__ bool operator()(int at) const {
    return at >= begin_ && at < end_ && (!kHasMask || (words_[at / 32] >> at % 32 & 1) != 0);
  }

 private:
  int begin_, end_;
  uint32_t words_[kKeys / 32];
};

}  // namespace longseq
