#pragma once
// What happens to one element, the same for every engine.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "core/dtype.h"

namespace longseq {

/** Calls `f` with a value of the C++ type that holds the dtype, integers too. */
template <class F>
void visit(DType dtype, F&& f) {
  switch (dtype) {
    case DType::Int32:
      return f(int32_t{});
    case DType::UInt8:
      return f(uint8_t{});
    default:
      return visit_float(dtype, f);
  }
}

/** Conversions saturate, and NaN becomes 0 in an integer, where C++ would leave the result undefined. */
template <class To, class From>
LONGSEQ_HOST_DEVICE To convert(From value) {
  if constexpr (std::is_same_v<To, From>) {
    return value;
  } else if constexpr (std::is_integral_v<To> && std::is_integral_v<From>) {
    return static_cast<To>(
        std::clamp<int64_t>(value, std::numeric_limits<To>::min(), std::numeric_limits<To>::max()));
  } else if constexpr (std::is_integral_v<To>) {
    const double number = static_cast<float>(value);
    if (std::isnan(number)) return 0;
    return static_cast<To>(
        std::clamp<double>(number, std::numeric_limits<To>::min(), std::numeric_limits<To>::max()));
  } else {
    return from_float<To>(static_cast<float>(value));
  }
}

template <class T>
LONGSEQ_HOST_DEVICE T sum(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    return convert<T>(int64_t{a} + b);
  } else {
    return from_float<T>(static_cast<float>(a) + static_cast<float>(b));
  }
}

/** The factor of Scale; null: 1. */
LONGSEQ_HOST_DEVICE inline float scale_of(const float* factor, const float* divisor) {
  const float whole = factor != nullptr ? *factor : 1.0f;
  return divisor != nullptr && *divisor > 1 ? whole / *divisor : whole;
}

struct FourWords {
  uint32_t words[4];
};

/** Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"): four words of a 128-bit
 * counter. */
LONGSEQ_HOST_DEVICE inline FourWords philox(uint64_t counter, uint64_t seed) {
  FourWords c{{static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0}};
  uint32_t k[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; round++) {
    const uint64_t a = uint64_t{0xD2511F53} * c.words[0], b = uint64_t{0xCD9E8D57} * c.words[2];
    c = {{static_cast<uint32_t>(b >> 32) ^ c.words[1] ^ k[0], static_cast<uint32_t>(b),
          static_cast<uint32_t>(a >> 32) ^ c.words[3] ^ k[1], static_cast<uint32_t>(a)}};
    k[0] += 0x9E3779B9;
    k[1] += 0xBB67AE85;
  }
  return c;
}

/** Box and Muller: words 2h and 2h+1 of a counter's four give the normals 2h (cosine) and 2h+1 (sine). */
LONGSEQ_HOST_DEVICE inline float normal(uint64_t index, uint64_t seed) {
  const FourWords random = philox(index / 4, seed);
  const uint64_t half = index % 4 / 2;
  const float u = (static_cast<float>(random.words[2 * half] >> 8) + 0.5f) * 0x1p-24f;
  const float v = static_cast<float>(random.words[2 * half + 1] >> 8) * 0x1p-24f;
  const float radius = std::sqrt(-2.0f * std::log(u)), angle = 6.2831853f * v;
  return radius * (index % 2 ? std::sin(angle) : std::cos(angle));
}

}  // namespace longseq
