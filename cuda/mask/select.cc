// Rows and columns of a mask, as what a shard's queries see of another shard's keys. Intervals stay
// intervals. Of block rows, stretches that are all full or all empty in every block row that a new one is
// made of pass as they are; else a new block's bits are shifted together from those of the blocks it lies in.
#include <algorithm>
#include <utility>

#include "core/error.h"
#include "mask/mask.h"

namespace longseq {
namespace {

/** Rows or columns that are selected, [begin, end) each; the first of them is number `first` of the
 * selection. */
struct Run {
  int64_t begin, end, first;
};

class Selection {
 public:
  Selection(const char* name, std::span<const int64_t> flat, int64_t size) {
    check(flat.size() % 2 == 0, Code::Option, "AttentionMask.select: ", name,
          " must be pairs of start and length");
    int64_t behind = 0;
    for (size_t i = 0; i < flat.size(); i += 2) {
      const int64_t start = flat[i], length = flat[i + 1];
      check(start >= behind && length >= 0 && start <= size && length <= size - start, Code::Option,
            "AttentionMask.select: ", name, " has a piece of ", length, " from ", start,
            ", expected pieces that are ascending, disjoint and within 0 to ", size);
      behind = start + length;
      if (length == 0) continue;
      if (runs_.empty() || runs_.back().end != start) runs_.push_back({start, start, size_});
      runs_.back().end = behind;
      size_ += length;
    }
  }

  int64_t size() const { return size_; }

  /** What of the selection lies before `source`. */
  int64_t before(int64_t source) const {
    const auto next = std::upper_bound(runs_.begin(), runs_.end(), source,
                                       [](int64_t at, const Run& run) { return at < run.begin; });
    if (next == runs_.begin()) return 0;
    const Run& run = *(next - 1);
    return run.first + std::min(source, run.end) - run.begin;
  }

  /** The run that holds number `at` of the selection. */
  const Run* run_of(int64_t at) const {
    const auto next = std::upper_bound(runs_.begin(), runs_.end(), at,
                                       [](int64_t number, const Run& run) { return number < run.first; });
    return &*(next - 1);
  }

 private:
  std::vector<Run> runs_;
  int64_t size_ = 0;
};

/** A row of a block: bit c is its key c. */
__extension__ using RowBits = unsigned __int128;

RowBits bits_of(const uint64_t (&words)[2]) { return RowBits{words[1]} << 64 | words[0]; }
RowBits low_bits(int64_t count) { return ~RowBits{0} >> (kMaskBlock - count); }

/** `count` rows that neighbour each other in one block row, from its row `from` on: rows `to` on of a new
 * one. */
struct Band {
  const BlockRow* source;
  int64_t from, to, count;
};

/** Makes new block rows one after the other. */
class Selector {
 public:
  Selector(const Mask& mask, const Selection& queries, const Selection& keys)
      : mask_(mask), queries_(queries), keys_(keys), writer_(keys.size()) {}

  BlockRow make(int64_t block, int64_t rows) {
    find_bands(block * kMaskBlock, rows);
    writer_.start(rows);
    for (int64_t key = 0; key < keys_.size();) {
      const auto [blocks, full] = uniform_blocks(key);
      if (blocks == 0) {
        writer_.add(key / kMaskBlock, gather(key));
        key += kMaskBlock;
        continue;
      }
      if (full) writer_.add_full(key / kMaskBlock, key / kMaskBlock + blocks);
      key += blocks * kMaskBlock;
    }
    return writer_.finish();
  }

 private:
  struct Uniform {
    int64_t blocks;
    bool full;
  };

  void find_bands(int64_t first, int64_t rows) {
    bands_.clear();
    for (int64_t to = 0; to < rows;) {
      const Run& run = *queries_.run_of(first + to);
      const int64_t row = run.begin + first + to - run.first, from = row % kMaskBlock;
      const int64_t count = std::min({run.end - row, kMaskBlock - from, rows - to});
      bands_.push_back({&mask_.block_row(row / kMaskBlock), from, to, count});
      to += count;
    }
  }

  /** How many new blocks from `key` on are all full, or all empty, as far as one run of keys tells. */
  Uniform uniform_blocks(int64_t key) const {
    const Run& run = *keys_.run_of(key);
    const int64_t source = run.begin + key - run.first, column = source / kMaskBlock;
    int64_t end = run.end;
    bool full = false;
    for (const Band& band : bands_) {
      const BlockRun* const last = band.source->runs + band.source->run_count;
      const BlockRun* const found = band.source->run_from(column);
      const bool inside = found != last && found->begin <= column;
      if (inside && !found->full()) return {0, false};
      if (&band == bands_.data()) full = inside;
      if (inside != full) return {0, false};
      if (found != last) end = std::min(end, (inside ? found->end : found->begin) * kMaskBlock);
    }
    const int64_t until = key + end - source, columns = key / kMaskBlock;
    return {(until == keys_.size() ? block_count(until) : until / kMaskBlock) - columns, full};
  }

  /** The bits of the new block that begins with `key`. */
  BitTile gather(int64_t key) const {
    BitTile bits{};
    const int64_t behind = std::min(key + kMaskBlock, keys_.size());
    for (int64_t at = key; at < behind;) {
      const Run& run = *keys_.run_of(at);
      const int64_t source = run.begin + at - run.first, from = source % kMaskBlock;
      const int64_t count = std::min({run.end - source, kMaskBlock - from, behind - at});
      for (const Band& band : bands_) copy(band, source / kMaskBlock, from, count, at - key, &bits);
      at += count;
    }
    return bits;
  }

  /** The band's keys [from, from + count) of one block column, to `to` on of the new block. */
  static void copy(const Band& band, int64_t column, int64_t from, int64_t count, int64_t to, BitTile* bits) {
    const BlockRun* const run = band.source->run_from(column);
    if (run == band.source->runs + band.source->run_count || run->begin > column) return;
    const BitTile* const tile =
        run->full() ? nullptr : band.source->tiles + run->tile + (column - run->begin);
    const RowBits mask = low_bits(count);
    for (int64_t r = 0; r < band.count; r++) {
      const RowBits seen = tile == nullptr ? mask : bits_of(tile->words[band.from + r]) >> from & mask;
      uint64_t(&words)[2] = bits->words[band.to + r];
      words[0] |= static_cast<uint64_t>(seen << to);
      words[1] |= static_cast<uint64_t>(seen << to >> 64);
    }
  }

  const Mask& mask_;
  const Selection &queries_, &keys_;
  BlockRowWriter writer_;
  std::vector<Band> bands_;
};

}  // namespace

Mask::Pointer Mask::select(std::span<const int64_t> query_runs, std::span<const int64_t> key_runs) const {
  const Selection queries("queries", query_runs, queries_), keys("keys", key_runs, keys_);
  if (keys.size() == 0) return causal(queries.size(), 0);  // no block has a column
  if (kind() == Kind::Intervals) {
    IntervalRows rows(queries.size());
    for (int64_t i = 0; i < queries.size();) {
      const Run& run = *queries.run_of(i);
      for (int64_t row = run.begin; row < run.end; row++, i++) {
        rows.begin[i] = static_cast<int32_t>(keys.before(intervals_.begin[row]));
        rows.end[i] = static_cast<int32_t>(keys.before(intervals_.end[row]));
      }
    }
    rows.normalise(queries.size());
    return make(queries.size(), keys.size(), std::move(rows));
  }
  std::vector<Selector> selectors(static_cast<size_t>(thread_count().threads),
                                  Selector(*this, queries, keys));
  return make(queries.size(), keys.size(),
              build_block_rows(queries.size(), [&](int64_t block, int64_t rows, size_t slot) {
                return selectors[slot].make(block, rows);
              }));
}

}  // namespace longseq
