#pragma once
// Which queries a block of keys streams, tile after tile.
#include "attention/attention_sm80.h"
#include "attention/key_blocks.h"

namespace longseq {

/** As `first_query`, by a whole warp, which looks at 32 queries at a time. */
template <class Holds>
__device__ int first_query_by_warp(const ForwardSm80& op, const Holds& holds) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  int low = 0, length = op.queries;  // it is one of [low, low + length]
  while (length > 0) {
    const int step = (length + 31) / 32, last = min((lane + 1) * step, length) - 1;
    const bool here = lane * step >= length || holds(visible_keys(op.visible, low + last, op.keys));
    const int before = min(__popc(~__ballot_sync(~0u, here)) * step, length);
    low += before;
    length = max(min(step, length - before) - 1, 0);
  }
  return low;
}

/** A tile of queries that see something of a block of keys. */
struct RowTile {
  int32_t first = -1;  // query; -1: none
  int32_t head = 0;
  int32_t tile = -1;  // of the mask, or -1
};

/** Of a block of keys, the first at first_key; kApart: blocks of a head begin at different tiles. */
template <int kRows, bool kHasMask, bool kApart>
class RowTiles;

template <int kRows, bool kApart>
class RowTiles<kRows, false, kApart> {
 public:
  __device__ RowTiles(const BackwardSm80& op, int first_key, int2 seen, int first_head)
      : begin_(seen.x / kRows * kRows),
        tiles_((seen.y - begin_ + kRows - 1) / kRows),
        head_(first_head),
        left_(tiles_ * op.forward.group) {
    if (kApart && tiles_ > 0 && op.dq_turns == nullptr) walk_ = first_ = first_key / kRows % tiles_;
  }
  __device__ RowTile next() {
    if (left_-- <= 0) return {};
    const RowTile tile{begin_ + walk_ * kRows, head_, -1};
    if (++walk_ == tiles_) walk_ = 0;
    if (walk_ == first_) head_++;
    return tile;
  }

 private:
  int begin_, tiles_, head_, left_, walk_ = 0, first_ = 0;
};

template <int kRows, bool kApart>
class RowTiles<kRows, true, kApart> {
 public:
  __device__ RowTiles(const BackwardSm80& op, int first_key, int2 seen, int first_head)
      : columns_(op.mask_columns),
        block_(first_key / 128),
        begin_(seen.x / kRows * kRows),
        end_(seen.y),
        head_(first_head),
        end_head_(first_head + op.forward.group) {
    restart();
  }
  __device__ RowTile next() {
    for (; head_ < end_head_; head_++, restart()) {
      while (run_ < columns_.first_run[block_ + 1]) {
        const GpuBlockRun run = columns_.runs[run_];
        walk_ = max(walk_, run.begin * 128);
        if (walk_ >= end_) break;
        if (walk_ >= run.end * 128) {
          run_++;
          continue;
        }
        const int tile = run.tile < 0 ? -1 : columns_.tile_index[run.tile + walk_ / 128 - run.begin];
        walk_ += kRows;
        return {walk_ - kRows, head_, tile};
      }
    }
    return {};
  }

 private:
  __device__ void restart() {
    walk_ = begin_;
    run_ = columns_.first_run[block_];
  }

  const GpuMask& columns_;
  int block_, begin_, end_, head_, end_head_, walk_, run_;
};

}  // namespace longseq
