#pragma once
// Which keys each query may look at. A mask whose rows are all one interval, moving forward from row to row
// (causal, windows, documents, prefixes, their intersections), is two integers a row; any other is block rows
// (block_row.h). Immutable once made, and shared between threads. rules.cc makes masks, combine.cc joins
// them, select.cc takes parts of them, kernels ask mask.cc.
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "core/memory.h"
#include "mask/block_row.h"
#include "mask/block_row_writer.h"
#include "mask/interval.h"
#include "mask/set_operation.h"

namespace longseq {

/** Row i sees the keys [begin[i], end[i]). Neither ever decreases: an empty row lies wherever that holds. */
struct IntervalRows {
  IntervalRows() = default;
  explicit IntervalRows(int64_t queries);

  /** Puts empty rows (begin >= end) in order. False where the other rows are not in order. */
  bool normalise(int64_t queries);

  HostBlock storage;
  int32_t *begin = nullptr, *end = nullptr;
};

class Mask {
 public:
  using Pointer = std::shared_ptr<const Mask>;
  enum class Kind { Intervals, Blocks };
  enum class Coverage { None, Some, All };

  /** Query i stands at position i + keys - queries, and sees the keys up to there. */
  static Pointer causal(int64_t queries, int64_t keys);
  /** Query i at position p = i + keys - queries sees [p - left, p + right]; -1 is unbounded. */
  static Pointer window(int64_t queries, int64_t keys, int64_t left, int64_t right);
  /** Document d is the tokens [boundaries[d], boundaries[d + 1]), which see each other and nothing else. */
  static Pointer documents(std::span<const int64_t> boundaries);
  /** Everybody sees the first `prefix` tokens, and what came before. */
  static Pointer prefix(int64_t tokens, int64_t prefix);
  /** values [queries, keys]: visible where not 0. */
  static Pointer dense(int64_t queries, int64_t keys, std::span<const uint8_t> values);

  Pointer intersect(const Mask& other) const;
  Pointer unite(const Mask& other) const;
  Pointer complement() const;
  /** Some rows and columns as a mask of their own: runs of neighbours, start and length each, ascending and
   * disjoint. */
  Pointer select(std::span<const int64_t> query_runs, std::span<const int64_t> key_runs) const;

  int64_t queries() const { return queries_; }
  int64_t keys() const { return keys_; }
  Kind kind() const { return blocks_ == nullptr ? Kind::Intervals : Kind::Blocks; }
  /** Memory held. */
  int64_t bytes() const;
  /** Visible pairs of a query and a key. */
  uint64_t visible() const { return visible_; }
  /** Writes 0 or 1 for each pair to out [queries, keys]. */
  void to_dense(uint8_t* out) const;

  // What kernels ask. Inlined always: see interval.h.

  /** Of kind Intervals. */
  const IntervalRows& intervals() const { return intervals_; }
  [[gnu::always_inline]] Interval interval(int64_t row) const {
    return {intervals_.begin[row], intervals_.end[row]};
  }
  /** What an engine keeps with the mask, such as a GPU's copy, by a key of its own: made when first asked
   * for. */
  template <class Make>
  std::shared_ptr<void> kept(const void* key, Make make) const {
    const std::lock_guard lock(kept_mutex_);
    std::shared_ptr<void>& item = kept_[key];
    if (!item) item = make();
    return item;
  }

  /** Of kind Blocks: the rows 128 index .. 128 index + 127. */
  [[gnu::always_inline]] const BlockRow& block_row(int64_t index) const { return blocks_[index]; }
  /** Keys 64 panel .. 64 panel + 63 of a row as bits. Those behind the last key are undefined. */
  [[gnu::always_inline]] uint64_t word(int64_t row, int64_t panel) const {
    if (blocks_ == nullptr) return interval(row).word(64 * panel);
    return blocks_[row / kMaskBlock].word(row % kMaskBlock, panel);
  }
  [[gnu::always_inline]] bool test(int64_t row, int64_t key) const {
    return word(row, key / 64) >> key % 64 & 1;
  }

  /**
   * How much of a tile is visible. Some may also be said of None and All: of kind Blocks, whole blocks are
   * looked at, and partial ones are not read. Neither range may be empty; keys may reach behind the last key.
   */
  Coverage coverage(Interval rows, Interval keys) const;
  /** Keys outside of this are seen by none of the rows. */
  Interval key_range(Interval rows) const;
  /** Queries outside of this see none of the keys. */
  Interval query_range(Interval keys) const;
  /**
   * Of kind Blocks: the first stretch of whole blocks, at or behind `key`, of which the rows see something.
   * Empty, at the last key, where there is none.
   */
  Interval seen_from(Interval rows, int64_t key) const;

 private:
  friend class MaskBuilder;
  Mask(int64_t queries, int64_t keys, IntervalRows intervals);
  Mask(int64_t queries, int64_t keys, std::vector<BlockRow> blocks);
  static Pointer make(int64_t queries, int64_t keys, IntervalRows intervals);
  /** Of kind Intervals where it can be. */
  static Pointer make(int64_t queries, int64_t keys, std::vector<BlockRow> blocks);
  static Pointer combine(const SetOperation& operation, const Mask& a, const Mask& b);

  int64_t queries_, keys_;
  uint64_t visible_ = 0;
  IntervalRows intervals_;
  std::vector<BlockRow> block_storage_;
  const BlockRow* blocks_ = nullptr;         // null: of kind Intervals
  mutable std::recursive_mutex kept_mutex_;  // what is made may ask for what it is made of
  mutable std::map<const void*, std::shared_ptr<void>> kept_;
};

/** Makes a mask from 128 rows of bytes at a time, so that an array of queries x keys never exists. */
class MaskBuilder {
 public:
  MaskBuilder(int64_t queries, int64_t keys);

  /** How many rows the next call of add takes: 128, or what is left. */
  int64_t next_rows() const;
  /** values [next_rows(), keys]: visible where not 0. */
  void add(std::span<const uint8_t> values);
  /** After the last row. */
  Mask::Pointer finish();

 private:
  int64_t queries_, keys_;
  std::vector<BlockRow> rows_;
  BlockRowWriter writer_;
};

}  // namespace longseq
