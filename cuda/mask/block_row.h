#pragma once
// 128 query rows of a mask that is no interval a row: its blocks of 128 x 128 keys, the empty ones left out,
// equal neighbours as one run. So the complement of 4,096 documents is a few runs a block row, not 4,096
// entries, and only blocks that are neither empty nor full carry bits.
#include <cstdint>

#include "core/memory.h"

namespace longseq {

inline constexpr int64_t kMaskBlock = 128;

/** Bit c of words[r][w] is key 64 w + c of the block, seen from its row r. Bits outside the mask are 0. */
struct BitTile {
  uint64_t words[kMaskBlock][2];
};

/** Block columns [begin, end): all full (tile is -1), or all partial, their bits from tiles[tile] on. */
struct BlockRun {
  int32_t begin, end, tile;

  [[gnu::always_inline]] bool full() const { return tile < 0; }
};

/** Its runs in ascending order. A block at the mask's edge is full when its part inside the mask is. */
struct BlockRow {
  const BitTile* tiles = nullptr;
  const BlockRun* runs = nullptr;
  int32_t run_count = 0;
  uint64_t visible = 0;  // set bits inside the mask
  HostBlock storage;     // none: the tiles and runs are somebody else's

  /** The first run that ends behind block column `column`; runs + run_count where none does. */
  [[gnu::always_inline]] const BlockRun* run_from(int64_t column) const {
    const BlockRun* run = runs;
    for (int32_t left = run_count; left > 0;) {
      const int32_t half = left / 2;
      if (run[half].end <= column) {
        run += half + 1;
        left -= half + 1;
      } else {
        left = half;
      }
    }
    return run;
  }

  /** The bits of keys 64 panel .. 64 panel + 63 in row `row` of these 128; all ones in a full block. */
  [[gnu::always_inline]] uint64_t word(int64_t row, int64_t panel) const {
    const int64_t column = panel / 2;
    const BlockRun* const run = run_from(column);
    if (run == runs + run_count || run->begin > column) return 0;
    return run->full() ? ~uint64_t{0} : tiles[run->tile + column - run->begin].words[row][panel % 2];
  }
};

}  // namespace longseq
