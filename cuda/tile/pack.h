#pragma once
// A GPU thread's share of a row: neighbouring elements that are read and written in one access of up to 16
// bytes, as floats in between.
#include "core/dtype.h"
#include "tile/sm80.h"

namespace longseq {

/** As many as fit into 16 bytes. */
template <class T>
inline constexpr int kWholePack = 16 / sizeof(T);

template <class T, int count>
struct alignas(sizeof(T) * count) Pack {
  T values[count];
};

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(BFloat16 x) { return x; }
__device__ inline float widen(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }

template <class T, int count>
__device__ inline void widen(const Pack<T, count>& pack, float (&out)[count]) {
#pragma unroll
  for (int i = 0; i < count; i++) out[i] = widen(pack.values[i]);
}

template <class T, int count>
__device__ inline Pack<T, count> narrow(const float (&values)[count]) {
  Pack<T, count> pack;
  if constexpr (std::is_same_v<T, float> || count % 2 != 0) {
#pragma unroll
    for (int i = 0; i < count; i++) pack.values[i] = from_float<T>(values[i]);
  } else {
    using Element = std::conditional_t<std::is_same_v<T, BFloat16>, sm80::Bf16, sm80::Half>;
#pragma unroll
    for (int i = 0; i < count; i += 2) {
      const uint32_t pair = sm80::pack<Element>(values[i], values[i + 1]);
      pack.values[i].bits = static_cast<uint16_t>(pair);
      pack.values[i + 1].bits = static_cast<uint16_t>(pair >> 16);
    }
  }
  return pack;
}

template <int count, class T>
__device__ inline Pack<T, count> read_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, count>*>(p);
}
template <class T, int count>
__device__ inline void write_pack(T* p, const float (&values)[count]) {
  *reinterpret_cast<Pack<T, count>*>(p) = narrow<T, count>(values);
}

}  // namespace longseq
