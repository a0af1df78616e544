#pragma once
// Element types, and the one place where 16-bit floats are converted in plain code.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/host_device.h"

namespace longseq {

enum class DType : uint8_t { Float32, BFloat16, Float16, Int32, UInt8 };

inline constexpr const char* kDTypeNames[] = {"float32", "bfloat16", "float16", "int32", "uint8"};
inline constexpr int kDTypes = 5;

inline const char* name_of(DType dtype) { return kDTypeNames[static_cast<int>(dtype)]; }
inline int64_t size_of(DType dtype) {
  constexpr int64_t sizes[] = {4, 2, 2, 4, 1};
  return sizes[static_cast<int>(dtype)];
}
inline bool is_float(DType dtype) { return dtype <= DType::Float16; }

LONGSEQ_HOST_DEVICE inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
LONGSEQ_HOST_DEVICE inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

struct BFloat16 {
  uint16_t bits;
  LONGSEQ_HOST_DEVICE static BFloat16 from(float value) {
    const uint32_t u = float_to_bits(value);
    if ((u & 0x7fffffff) > 0x7f800000) return {static_cast<uint16_t>(u >> 16 | 0x40)};  // NaN stays NaN
    return {static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16)};
  }
  LONGSEQ_HOST_DEVICE operator float() const { return bits_to_float(static_cast<uint32_t>(bits) << 16); }
};

struct Float16 {
  uint16_t bits;
  LONGSEQ_HOST_DEVICE static Float16 from(float value) {
    const uint32_t u = float_to_bits(value), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
    if (magnitude > 0x7f800000) return {static_cast<uint16_t>(sign | 0x7e00)};
    if (magnitude >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};  // rounds to 65536 or above
    if (magnitude < 0x38800000) {
      // Subnormal: adding 0.5 lines the 10 fraction bits up with the end of a float's, and rounds to even.
      const uint32_t shifted = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000;
      return {static_cast<uint16_t>(sign | shifted)};
    }
    const uint32_t rebased = magnitude - 0x38000000;
    return {static_cast<uint16_t>(sign | (rebased + 0xfff + (rebased >> 13 & 1)) >> 13)};
  }
  LONGSEQ_HOST_DEVICE operator float() const {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
    if (magnitude >= 0x7c00) return bits_to_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    if (magnitude >= 0x400) return bits_to_float(sign | ((magnitude << 13) + 0x38000000));
    return bits_to_float(sign | float_to_bits(static_cast<float>(magnitude) * 0x1p-24f));
  }
};

/** Calls `f` with a value of the C++ type that holds the dtype: `visit_float(dtype, [](auto t) { ... })`. */
template <class F>
void visit_float(DType dtype, F&& f) {
  switch (dtype) {
    case DType::BFloat16:
      return f(BFloat16{});
    case DType::Float16:
      return f(Float16{});
    default:
      return f(float{});
  }
}

template <class T>
LONGSEQ_HOST_DEVICE T from_float(float value) {
  if constexpr (std::is_same_v<T, float>)
    return value;
  else
    return T::from(value);
}

}  // namespace longseq
