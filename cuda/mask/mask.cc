#include "mask/mask.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "core/thread_pool.h"

namespace longseq {

IntervalRows::IntervalRows(int64_t queries)
    : storage(static_cast<size_t>(queries) * 2 * sizeof(int32_t), nullptr),
      begin(static_cast<int32_t*>(storage.data())),
      end(begin + queries) {}

bool IntervalRows::normalise(int64_t queries) {
  Interval last;
  for (int64_t i = 0; i < queries; i++) {
    if (begin[i] >= end[i]) begin[i] = end[i] = last.end;  // as far left as order allows, for the rows behind
    if (begin[i] < last.begin || end[i] < last.end) return false;
    last = {begin[i], end[i]};
  }
  return true;
}

Mask::Mask(int64_t queries, int64_t keys, IntervalRows intervals)
    : queries_(queries), keys_(keys), intervals_(std::move(intervals)) {
  for (int64_t i = 0; i < queries; i++)
    visible_ += static_cast<uint64_t>(interval(i).end - interval(i).begin);
}

Mask::Mask(int64_t queries, int64_t keys, std::vector<BlockRow> blocks)
    : queries_(queries), keys_(keys), block_storage_(std::move(blocks)), blocks_(block_storage_.data()) {
  for (const BlockRow& row : block_storage_) visible_ += row.visible;
}

Mask::Pointer Mask::make(int64_t queries, int64_t keys, IntervalRows intervals) {
  return Pointer(new Mask(queries, keys, std::move(intervals)));
}

Mask::Pointer Mask::make(int64_t queries, int64_t keys, std::vector<BlockRow> blocks) {
  IntervalRows intervals(queries);
  std::atomic<bool> possible{true};
  parallel_for(block_count(queries), [&](int64_t task) {
    if (!possible.load(std::memory_order_relaxed)) return;
    Interval found[kMaskBlock];
    const int64_t rows = rows_of_block(task, queries);
    if (!read_intervals(blocks[static_cast<size_t>(task)], rows, keys, found)) {
      possible.store(false, std::memory_order_relaxed);
      return;
    }
    for (int64_t r = 0; r < rows; r++) {
      intervals.begin[task * kMaskBlock + r] = found[r].begin;
      intervals.end[task * kMaskBlock + r] = found[r].end;
    }
  });
  if (possible && intervals.normalise(queries)) return make(queries, keys, std::move(intervals));
  return Pointer(new Mask(queries, keys, std::move(blocks)));
}

int64_t Mask::bytes() const {
  size_t bytes = sizeof(Mask) + intervals_.storage.bytes() + block_storage_.size() * sizeof(BlockRow);
  for (const BlockRow& row : block_storage_) bytes += row.storage.bytes();
  return static_cast<int64_t>(bytes);
}

void Mask::to_dense(uint8_t* out) const {
  parallel_for(queries_, [&](int64_t i) {
    uint8_t* const row = out + i * keys_;
    for (int64_t first = 0; first < keys_; first += 64) {
      const uint64_t bits = word(i, first / 64);
      for (int64_t c = 0; c < std::min<int64_t>(64, keys_ - first); c++) row[first + c] = bits >> c & 1;
    }
  });
}

Mask::Coverage Mask::coverage(Interval rows, Interval keys) const {
  const int64_t keys_end = std::min<int64_t>(keys.end, keys_);
  if (kind() == Kind::Intervals) {
    const Interval first = interval(rows.begin), last = interval(rows.end - 1);
    if (last.end <= keys.begin || first.begin >= keys_end) return Coverage::None;
    return last.begin <= keys.begin && first.end >= keys_end ? Coverage::All : Coverage::Some;
  }
  const int64_t columns_end = block_count(keys_end);
  bool any = false, all = true;
  for (int64_t block = rows.begin / kMaskBlock; block < block_count(rows.end); block++) {
    const BlockRow& row = blocks_[block];
    int64_t column = keys.begin / kMaskBlock;  // what is left of it is visible, as far as `all` still holds
    for (const BlockRun* run = row.run_from(column); run != row.runs + row.run_count; run++) {
      if (run->begin >= columns_end) break;
      any = true;
      all = all && run->full() && run->begin <= column;
      column = run->end;
    }
    all = all && column >= columns_end;
  }
  return all ? Coverage::All : any ? Coverage::Some : Coverage::None;
}

Interval Mask::seen_from(Interval rows, int64_t key) const {
  const int64_t first = rows.begin / kMaskBlock, last = block_count(rows.end), none = block_count(keys_);
  int64_t begin = none;
  for (int64_t block = first; block < last; block++) {
    const BlockRow& row = blocks_[block];
    const BlockRun* const run = row.run_from(key / kMaskBlock);
    if (run != row.runs + row.run_count)
      begin = std::min(begin, std::max<int64_t>(run->begin, key / kMaskBlock));
  }
  int64_t end = begin;
  for (bool grown = begin < none; grown;) {
    grown = false;
    for (int64_t block = first; block < last; block++) {
      const BlockRow& row = blocks_[block];
      for (auto* run = row.run_from(end); run != row.runs + row.run_count && run->begin <= end; run++) {
        end = run->end;
        grown = true;
      }
    }
  }
  const auto keys_of = [&](int64_t column) {
    return static_cast<int32_t>(std::min(column * kMaskBlock, keys_));
  };
  return {keys_of(begin), keys_of(end)};
}

Interval Mask::key_range(Interval rows) const {
  if (kind() == Kind::Intervals) return {interval(rows.begin).begin, interval(rows.end - 1).end};
  int64_t begin = keys_, end = 0;
  for (int64_t block = rows.begin / kMaskBlock; block < block_count(rows.end); block++) {
    const BlockRow& row = blocks_[block];
    if (row.run_count == 0) continue;
    begin = std::min(begin, row.runs[0].begin * kMaskBlock);
    end = std::max(end, row.runs[row.run_count - 1].end * kMaskBlock);
  }
  if (begin >= end) return {};
  return {static_cast<int32_t>(begin), static_cast<int32_t>(std::min(end, keys_))};
}

Interval Mask::query_range(Interval keys) const {
  if (kind() == Kind::Intervals) {
    const int32_t *const begins = intervals_.begin, *const ends = intervals_.end;
    const int64_t first = std::upper_bound(ends, ends + queries_, keys.begin) - ends;
    const int64_t last = std::lower_bound(begins, begins + queries_, keys.end) - begins;
    if (first >= last) return {};
    return {static_cast<int32_t>(first), static_cast<int32_t>(last)};
  }
  const int64_t columns_end = block_count(keys.end);
  int64_t begin = block_count(queries_), end = 0;
  for (int64_t block = 0; block < block_count(queries_); block++) {
    const BlockRow& row = blocks_[block];
    const BlockRun* const run = row.run_from(keys.begin / kMaskBlock);
    if (run == row.runs + row.run_count || run->begin >= columns_end) continue;
    begin = std::min(begin, block);
    end = block + 1;
  }
  if (begin >= end) return {};
  return {static_cast<int32_t>(begin * kMaskBlock),
          static_cast<int32_t>(std::min(end * kMaskBlock, queries_))};
}

}  // namespace longseq
