#include "mask/block_row_writer.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <span>

namespace longseq {
namespace {

constexpr BitTile constant_tile(uint64_t word) {
  BitTile tile{};
  for (auto& row : tile.words) row[0] = row[1] = word;
  return tile;
}
constexpr BitTile kEmptyTile = constant_tile(0), kFullTile = constant_tile(~uint64_t{0});

/** The blocks of a row from left to right, as stretches of one kind. */
class BlockCursor {
 public:
  /** Blocks up to `end` are alike; `tile` is the first one's bits. Only partial blocks differ in theirs. */
  struct Stretch {
    int64_t end;
    const BitTile* tile;
    bool partial;

    const BitTile& at(int64_t block) const { return partial ? tile[block] : *tile; }
  };

  BlockCursor(const BlockRow& row, int64_t columns) : row_(row), run_(row.runs), columns_(columns) {}

  /** The stretch from `column` on, which must not be left of an earlier call's. */
  Stretch from(int64_t column) {
    const BlockRun* const last = row_.runs + row_.run_count;
    while (run_ != last && run_->end <= column) run_++;
    if (run_ == last) return {columns_, &kEmptyTile, false};
    if (column < run_->begin) return {run_->begin, &kEmptyTile, false};
    if (run_->full()) return {run_->end, &kFullTile, false};
    return {run_->end, row_.tiles + run_->tile + (column - run_->begin), true};
  }

 private:
  const BlockRow& row_;
  const BlockRun* run_;
  int64_t columns_;
};

/** Bit k is set where byte k is not 0. */
uint64_t nonzero_bits(const uint8_t* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, sizeof word);
  constexpr uint64_t low = 0x7f7f7f7f7f7f7f7f;
  const uint64_t flags =
      (((word & low) + low) | word) >> 7 & 0x0101010101010101;  // 1 in each byte that is not 0
  return flags * 0x0102040810204080 >> 56;  // gathers the eight flags, no two of which meet
}

uint64_t pack_word(const uint8_t* bytes, int64_t count) {
  uint64_t word = 0;
  int64_t k = 0;
  for (; k + 8 <= count; k += 8) word |= nonzero_bits(bytes + k) << k;
  for (; k < count; k++) word |= uint64_t{bytes[k] != 0} << k;
  return word;
}

/** Appends a word's runs of set bits, word bit 0 being key `first`. */
bool append_word(Interval& row, uint64_t word, int64_t first) {
  while (word != 0) {
    const int begin = std::countr_zero(word), end = begin + std::countr_one(word >> begin);
    if (!row.append(first + begin, first + end)) return false;
    word = end < 64 ? word >> end << end : 0;
  }
  return true;
}

}  // namespace

bool read_intervals(const BlockRow& block_row, int64_t rows, int64_t keys, Interval* out) {
  for (int64_t r = 0; r < rows; r++) {
    Interval row;
    for (const BlockRun& run : std::span(block_row.runs, static_cast<size_t>(block_row.run_count))) {
      if (run.full()) {
        if (!row.append(run.begin * kMaskBlock, std::min(run.end * kMaskBlock, keys))) return false;
        continue;
      }
      for (int64_t column = run.begin; column < run.end; column++) {
        const uint64_t* const words = block_row.tiles[run.tile + column - run.begin].words[r];
        if (!append_word(row, words[0], column * kMaskBlock)) return false;
        if (!append_word(row, words[1], column * kMaskBlock + 64)) return false;
      }
    }
    out[r] = row;
  }
  return true;
}

void BlockRowWriter::start(int64_t rows) {
  rows_ = rows;
  visible_ = 0;
  runs_.clear();
  tiles_.clear();
}

void BlockRowWriter::add_full(int64_t begin, int64_t end) {
  visible_ += static_cast<uint64_t>(rows_) * (std::min(end * kMaskBlock, keys_) - begin * kMaskBlock);
  if (!runs_.empty() && runs_.back().full() && runs_.back().end == begin) {
    runs_.back().end = static_cast<int32_t>(end);
  } else {
    runs_.push_back({static_cast<int32_t>(begin), static_cast<int32_t>(end), -1});
  }
}

void BlockRowWriter::add(int64_t column, BitTile bits) {
  const int64_t width = std::min(kMaskBlock, keys_ - column * kMaskBlock);
  const Interval inside{0, static_cast<int32_t>(width)};
  int64_t count = 0;
  for (int64_t r = 0; r < kMaskBlock; r++) {
    for (int w = 0; w < 2; w++) {
      bits.words[r][w] &= r < rows_ ? inside.word(64 * w) : 0;
      count += std::popcount(bits.words[r][w]);
    }
  }
  if (count == 0) return;
  if (count == rows_ * width) return add_full(column, column + 1);
  visible_ += static_cast<uint64_t>(count);
  if (!runs_.empty() && !runs_.back().full() && runs_.back().end == column) {
    runs_.back().end++;
  } else {
    runs_.push_back({static_cast<int32_t>(column), static_cast<int32_t>(column + 1),
                     static_cast<int32_t>(tiles_.size())});
  }
  tiles_.push_back(bits);
}

BlockRow BlockRowWriter::borrowed() const {
  BlockRow row;
  row.tiles = tiles_.data();
  row.runs = runs_.data();
  row.run_count = static_cast<int32_t>(runs_.size());
  row.visible = visible_;
  return row;
}

BlockRow BlockRowWriter::finish() const {
  if (runs_.empty()) return {};
  BlockRow row = borrowed();
  row.storage = HostBlock(tiles_.size() * sizeof(BitTile) + runs_.size() * sizeof(BlockRun), nullptr);
  BitTile* const tiles = static_cast<BitTile*>(row.storage.data());
  BlockRun* const runs = reinterpret_cast<BlockRun*>(tiles + tiles_.size());
  std::copy(tiles_.begin(), tiles_.end(), tiles);
  std::copy(runs_.begin(), runs_.end(), runs);
  row.tiles = tiles;
  row.runs = runs;
  return row;
}

BlockRow BlockRowWriter::from_intervals(int64_t rows, const int32_t* begin, const int32_t* end) {
  start(rows);
  // Every row sees [begin of the last, end of the first): of those blocks no bits are made.
  const int64_t common_end = end[0] == keys_ ? block_count(keys_) : end[0] / kMaskBlock;
  const int64_t common_begin = std::min(block_count(begin[rows - 1]), common_end);
  const auto add_columns = [&](int64_t first, int64_t last) {
    for (int64_t column = first; column < last; column++) {
      BitTile bits{};
      for (int64_t r = 0; r < rows; r++) {
        for (int w = 0; w < 2; w++)
          bits.words[r][w] = Interval{begin[r], end[r]}.word(column * kMaskBlock + 64 * w);
      }
      add(column, bits);
    }
  };
  add_columns(begin[0] / kMaskBlock, common_begin);
  if (common_begin < common_end) add_full(common_begin, common_end);
  add_columns(common_end, block_count(end[rows - 1]));
  return borrowed();
}

BlockRow BlockRowWriter::from_bytes(int64_t rows, const uint8_t* values) {
  start(rows);
  for (int64_t column = 0; column < block_count(keys_); column++) {
    BitTile bits{};
    for (int64_t r = 0; r < rows; r++) {
      for (int w = 0; w < 2; w++) {
        const int64_t key = column * kMaskBlock + 64 * w;
        if (key < keys_)
          bits.words[r][w] = pack_word(values + r * keys_ + key, std::min<int64_t>(64, keys_ - key));
      }
    }
    add(column, bits);
  }
  return finish();
}

BlockRow BlockRowWriter::combine(const SetOperation& operation, int64_t rows, const BlockRow& a,
                                 const BlockRow& b) {
  start(rows);
  const int64_t columns = block_count(keys_);
  BlockCursor left(a, columns), right(b, columns);
  for (int64_t column = 0; column < columns;) {
    const BlockCursor::Stretch from_a = left.from(column), from_b = right.from(column);
    const int64_t end = std::min(from_a.end, from_b.end);
    if (!from_a.partial && !from_b.partial) {
      if (operation.holds(from_a.tile == &kFullTile, from_b.tile == &kFullTile)) add_full(column, end);
    } else {
      for (int64_t block = 0; block < end - column; block++) {
        const BitTile &bits_a = from_a.at(block), &bits_b = from_b.at(block);
        BitTile bits;
        for (int64_t r = 0; r < kMaskBlock; r++) {
          for (int w = 0; w < 2; w++) bits.words[r][w] = operation(bits_a.words[r][w], bits_b.words[r][w]);
        }
        add(column + block, bits);
      }
    }
    column = end;
  }
  return finish();
}

}  // namespace longseq
