#pragma once
// Makes block rows from intervals, bytes, or two other block rows.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/thread_pool.h"
#include "mask/block_row.h"
#include "mask/interval.h"
#include "mask/set_operation.h"

namespace longseq {

/** One block row after the other: the scratch memory is kept from one to the next. */
class BlockRowWriter {
 public:
  explicit BlockRowWriter(int64_t keys) : keys_(keys) {}

  /** Row i sees the keys [begin[i], end[i]), both nondecreasing. The result lies in scratch: the next call
   * ends it. */
  BlockRow from_intervals(int64_t rows, const int32_t* begin, const int32_t* end);
  /** values [rows, keys]: visible where not 0. */
  BlockRow from_bytes(int64_t rows, const uint8_t* values);
  /** Of two block rows that this writer did not lend. */
  BlockRow combine(const SetOperation& operation, int64_t rows, const BlockRow& a, const BlockRow& b);

  // Block by block: start, then what is not empty in ascending order, then finish.

  void start(int64_t rows);
  void add_full(int64_t begin, int64_t end);
  /** Adds a block as what it is: empty, full or partial. Bits outside the mask are ignored. */
  void add(int64_t column, BitTile bits);
  BlockRow finish() const;

 private:
  BlockRow borrowed() const;

  int64_t keys_, rows_ = 0;
  uint64_t visible_ = 0;
  std::vector<BlockRun> runs_;
  std::vector<BitTile> tiles_;
};

/** The keys of each row, where they are one interval in every row; else false. */
bool read_intervals(const BlockRow& block_row, int64_t rows, int64_t keys, Interval* out);

inline int64_t block_count(int64_t size) { return (size + kMaskBlock - 1) / kMaskBlock; }
inline int64_t rows_of_block(int64_t block, int64_t queries) {
  return std::min(kMaskBlock, queries - block * kMaskBlock);
}

/** make(block, its rows, slot) for each block row, in parallel; a slot as parallel_for has it. */
template <class Make>
std::vector<BlockRow> build_block_rows(int64_t queries, Make make) {
  std::vector<BlockRow> blocks(static_cast<size_t>(block_count(queries)));
  parallel_for(block_count(queries), [&](int64_t block, int slot) {
    blocks[static_cast<size_t>(block)] =
        make(block, rows_of_block(block, queries), static_cast<size_t>(slot));
  });
  return blocks;
}

}  // namespace longseq
