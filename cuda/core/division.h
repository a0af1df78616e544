#pragma once
#include <cstdint>

namespace longseq {

inline constexpr int64_t ceil_div(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }
inline constexpr int64_t round_up(int64_t value, int64_t unit) { return ceil_div(value, unit) * unit; }

}  // namespace longseq
