#pragma once
// And, or, not of masks, bit by bit: ((a ^ flip_a) & (b ^ flip_b)) ^ flip_result, so that words, tiles and
// intervals have one code for all. A pair that neither operand holds is never in the result.
#include <cstdint>

namespace longseq {

struct SetOperation {
  const char* name;  // for messages
  uint64_t flip_a, flip_b, flip_result;

  uint64_t operator()(uint64_t a, uint64_t b) const { return ((a ^ flip_a) & (b ^ flip_b)) ^ flip_result; }
  bool holds(bool a, bool b) const { return (*this)(a ? ~uint64_t{0} : 0, b ? ~uint64_t{0} : 0) != 0; }
};

inline constexpr SetOperation kIntersection{"and", 0, 0, 0};
inline constexpr SetOperation kUnion{"or", ~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0}};
inline constexpr SetOperation kDifference{"not", 0, ~uint64_t{0}, 0};  // everything but b

}  // namespace longseq
