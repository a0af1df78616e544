#pragma once
// The keys [begin, end) that one query row looks at.
#include <cstdint>

namespace longseq {

struct Interval {
  int32_t begin = 0, end = 0;

  // Files compiled for several instruction sets read this and block_row.h: what they call is inlined always,
  // or the linker could keep a copy that the machine cannot run.

  [[gnu::always_inline]] bool empty() const { return begin >= end; }
  [[gnu::always_inline]] bool contains(int64_t key) const { return begin <= key && key < end; }

  /** The 64 keys from `first` on as bits: bit c is set where key first + c is inside. */
  [[gnu::always_inline]] uint64_t word(int64_t first) const {
    const int64_t low = begin > first ? begin - first : 0, high = end - first < 64 ? end - first : 64;
    return low < high ? ~uint64_t{0} >> (64 - (high - low)) << low : 0;
  }

  /** Adds the keys [from, to), which lie behind those it has. False where that leaves a gap. */
  bool append(int64_t from, int64_t to) {
    if (empty()) {
      begin = static_cast<int32_t>(from);
    } else if (end != from) {
      return false;
    }
    end = static_cast<int32_t>(to);
    return true;
  }
};

}  // namespace longseq
