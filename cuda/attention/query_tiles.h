#pragma once
// Which queries a block of keys streams, tile after tile.
#include "attention/attention_sm80.h"
#include "attention/key_blocks.h"

namespace longseq {

/** A warp's search for the first query that holds, for all behind it do; 32 are looked at at a time. */
class QuerySearch {
 public:
  __device__ explicit QuerySearch(int queries) : length_(queries) {}
  __device__ bool is_over() const { return length_ <= 0; }
  /** It is one of [first, first + length]. */
  __device__ int first() const { return low_; }
  /** The query that this lane looks at. */
  __device__ int query() const { return max(low_ + min((lane() + 1) * step(), length_) - 1, 0); }
  __device__ void narrow(bool holds) {
    const int before =
        min(__popc(~__ballot_sync(~0u, holds || lane() * step() >= length_)) * step(), length_);
    low_ += before;
    length_ = max(min(step(), length_ - before) - 1, 0);
  }

 private:
  __device__ static int lane() { return static_cast<int>(threadIdx.x % 32); }
  __device__ int step() const { return (length_ + 31) / 32; }
  int low_ = 0, length_;
};

/** The queries outside of which none sees a key of [first_key, last_key]; by a whole warp, for both ends at
 * once, since documents' are behind a chain of loads. */
__device__ inline int2 seeing_queries(const ForwardSm80& op, int first_key, int last_key) {
  QuerySearch begin(op.queries), end(op.queries);
  while (!begin.is_over() || !end.is_over()) {
    const int end_of_first = visible_keys(op.visible, begin.query(), op.keys).y,
              begin_of_last = visible_keys(op.visible, end.query(), op.keys).x;
    begin.narrow(end_of_first > first_key);
    end.narrow(begin_of_last > last_key);
  }
  return make_int2(begin.first(), end.first());
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
