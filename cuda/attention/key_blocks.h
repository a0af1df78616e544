#pragma once
// Which keys a tile of queries goes through, for compute capability 8.0 and later.
#include "attention/attention_sm80.h"

namespace longseq {

/** The keys that a query sees, as far as the intervals go. */
__device__ inline int2 visible_keys(const GpuIntervals& visible, int query, int keys) {
  if (visible.begin != nullptr) return make_int2(visible.begin[query], visible.end[query]);
  const int64_t position = int64_t{query} + visible.shift, all = keys;
  const int64_t begin = max(position - visible.left, int64_t{0});
  const int64_t end = min(position + visible.right + 1, all);
  return make_int2(static_cast<int>(min(begin, all)), static_cast<int>(max(end, int64_t{0})));
}

/** The first query where holds(the keys it sees), or the number of queries: intervals only move forward. */
template <class Holds>
__device__ int first_query(const ForwardSm80& op, const Holds& holds) {
  int low = 0, high = op.queries;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (holds(visible_keys(op.visible, middle, op.keys))) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

/** A block of keys that a tile of queries sees something of. */
struct KeyBlock {
  int32_t first = -1;  // key; -1: none
  int32_t tile = -1;   // of the mask, or -1
};

enum class Masking { None, Given, Optional };

/**
 * The key blocks of one tile of queries, the last first: the current one and the next. With rows and columns
 * exchanged, the blocks of queries of a tile of keys.
 */
template <int kKeys, Masking kMasking>
class KeyBlocks {
 public:
  __device__ KeyBlocks(const GpuMask& mask, int block_row, int begin, int end)
      : mask_(&mask), least_(begin / kKeys * kKeys), walk_(begin < end ? (end - 1) / kKeys * kKeys : -1) {
    if (kMasking == Masking::Given || mask.first_run != nullptr) {
      first_run_ = mask.first_run[block_row];
      run_ = mask.first_run[block_row + 1] - 1;
    }
    for (KeyBlock& block : blocks_) block = find();
  }
  __device__ const KeyBlock& current() const { return blocks_[0]; }
  __device__ const KeyBlock& next() const { return blocks_[1]; }
  __device__ void advance() {
    blocks_[0] = blocks_[1];
    blocks_[1] = find();
  }

 private:
  __device__ GpuBlockRun run() const {
    if (kMasking == Masking::Optional && mask_->first_run == nullptr) return {0, INT32_MAX / 128, -1};
    return mask_->runs[run_];
  }
  __device__ KeyBlock find() {
    for (; run_ >= first_run_; run_--) {
      const GpuBlockRun run = this->run();
      walk_ = min(walk_, run.end * 128 - kKeys);
      if (walk_ < least_) break;
      if (walk_ < run.begin * 128) continue;
      const KeyBlock block{walk_, run.tile < 0 ? -1 : run.tile + walk_ / 128 - run.begin};
      walk_ -= kKeys;
      return block;
    }
    return {};
  }
  const GpuMask* mask_;
  int least_, walk_, first_run_ = 0, run_ = 0;
  KeyBlock blocks_[2];
};

/** Without a mask, whose tiles lie where they lie, the first block begins at the first key that is seen. */
template <int kKeys>
class KeyBlocks<kKeys, Masking::None> {
 public:
  __device__ KeyBlocks(const GpuMask&, int, int begin, int end)
      : first_(begin < end ? begin + (end - 1 - begin) / kKeys * kKeys : -1), least_(begin) {}
  __device__ KeyBlock current() const { return {first_, -1}; }
  __device__ KeyBlock next() const { return {behind(1), -1}; }
  __device__ void advance() { first_ = behind(1); }

 private:
  __device__ int behind(int blocks) const {
    const int first = first_ - blocks * kKeys;
    return first_ >= 0 && first >= least_ ? first : -1;
  }
  int first_, least_;
};

/** The bits of a row of a tile, from its column `first` on, as far as its word of 32 goes; no tile: all. */
__device__ inline uint32_t mask_bits(const GpuMask& mask, int tile, int row, int first) {
  if (tile < 0) return ~0u;
  return mask.tiles[(int64_t{tile} * 128 + row % 128) * 4 + first / 32 % 4] >> first % 32;
}

__device__ inline int query_position(const GpuScore& score, const GpuIntervals& visible, int query) {
  return score.query_positions != nullptr ? score.query_positions[query] : query + visible.shift;
}
__device__ inline int key_position(const GpuScore& score, int key) {
  return score.key_positions != nullptr ? score.key_positions[key] : key;
}

}  // namespace longseq
