#pragma once
// A GPU thread's share of a row: neighbouring elements that are read and written in one access of up to 16
// bytes, as floats in between.
#include "core/dtype.h"
#include "tile/sm80.h"

namespace longseq {

/** As many as fit into 16 bytes. */
template <class T>
inline constexpr int kWholePack = 16 / sizeof(T);

/** One element, or whole words of them. */
template <class T, int count>
struct Pack {
  static constexpr int kWords = count * sizeof(T) / 4;
  uint32_t words[kWords];
};
template <class T>
struct Pack<T, 1> {
  T value;
};

/** `p` is a multiple of the pack's size. Written by the intrinsic: the compiler cuts up an
 * assignment that follows assembly, into stores of 4 bytes. */
template <int count, class T>
__device__ inline Pack<T, count> read_pack(const T* p) {
  using Read = Pack<T, count>;
  if constexpr (count == 1) {
    return {*p};
  } else if constexpr (Read::kWords == 1) {
    return {{*reinterpret_cast<const uint32_t*>(p)}};
  } else if constexpr (Read::kWords == 2) {
    const uint2 words = *reinterpret_cast<const uint2*>(p);
    return {{words.x, words.y}};
  } else {
    static_assert(Read::kWords == 4);
    const uint4 words = *reinterpret_cast<const uint4*>(p);
    return {{words.x, words.y, words.z, words.w}};
  }
}
template <class T, int count>
__device__ inline void write_pack(T* p, const Pack<T, count>& pack) {
  using Written = Pack<T, count>;
  if constexpr (count == 1) {
    *p = pack.value;
  } else if constexpr (Written::kWords == 1) {
    *reinterpret_cast<uint32_t*>(p) = pack.words[0];
  } else if constexpr (Written::kWords == 2) {
    __stwb(reinterpret_cast<uint2*>(p), make_uint2(pack.words[0], pack.words[1]));
  } else {
    static_assert(Written::kWords == 4);
    __stwb(reinterpret_cast<uint4*>(p),
           make_uint4(pack.words[0], pack.words[1], pack.words[2], pack.words[3]));
  }
}

template <class T, int count>
__device__ inline void widen(const Pack<T, count>& pack, float (&out)[count]) {
  if constexpr (count == 1) {
    out[0] = pack.value;
  } else {
#pragma unroll
    for (int w = 0; w < Pack<T, count>::kWords; w++) {
      const uint32_t word = pack.words[w];
      if constexpr (std::is_same_v<T, float>) {
        out[w] = __uint_as_float(word);
      } else if constexpr (std::is_same_v<T, BFloat16>) {
        out[2 * w] = __uint_as_float(word << 16);
        out[2 * w + 1] = __uint_as_float(word & 0xffff0000);
      } else {
        out[2 * w] = __half2float(__ushort_as_half(static_cast<uint16_t>(word)));
        out[2 * w + 1] = __half2float(__ushort_as_half(static_cast<uint16_t>(word >> 16)));
      }
    }
  }
}

template <class T, int count>
__device__ inline Pack<T, count> narrow(const float (&values)[count]) {
  if constexpr (count == 1) {
    return {from_float<T>(values[0])};
  } else {
    Pack<T, count> pack;
#pragma unroll
    for (int w = 0; w < Pack<T, count>::kWords; w++) {
      if constexpr (std::is_same_v<T, float>) {
        pack.words[w] = __float_as_uint(values[w]);
      } else {
        using Element = std::conditional_t<std::is_same_v<T, BFloat16>, sm80::Bf16, sm80::Half>;
        pack.words[w] = sm80::pack<Element>(values[2 * w], values[2 * w + 1]);
      }
    }
    return pack;
  }
}

template <class T, int count>
__device__ inline void read_floats(const T* p, float (&out)[count]) {
  widen(read_pack<count>(p), out);
}
template <class T, int count>
__device__ inline void write_floats(T* p, const float (&values)[count]) {
  write_pack(p, narrow<T>(values));
}

}  // namespace longseq
