#pragma once
// Operands packed for the register tile: panels of kWidth lanes (rows of A, columns of B), each
// [depth][kWidth], so that a product reads both from front to back. Where kWidth is no multiple of a vector,
// whole vectors are written all the same, and the next depth's overwrite what is too much: a panel needs room
// for a vector more.
#include <cstring>

#include "tile/product.h"

namespace longseq::LONGSEQ_ISA {

LONGSEQ_INLINE void transpose(Vec (&rows)[kLanes]) {
#pragma GCC unroll 4
  for (int round = 1; round < kLanes; round *= 2) {
    Vec next[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; i++) {
      next[2 * i] = interleave_low(rows[i], rows[i + kLanes / 2]);
      next[2 * i + 1] = interleave_high(rows[i], rows[i + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++) rows[i] = next[i];
  }
}

/** The next elements along the depth, of a lane whose depth lies in a row: p[0, left) are its values. */
template <class Product, class T>
LONGSEQ_INLINE Vec load_depth(const T* p, int64_t left) {
  if constexpr (Product::kPair == 1) {
    return load_part(p, left);
  } else {
    T part[Product::kPair * kLanes] = {};
    if (left >= Product::kPair * kLanes) return load(reinterpret_cast<const float*>(p));
    if (left > 0) memcpy(part, p, static_cast<size_t>(left) * sizeof(T));
    return load(reinterpret_cast<const float*>(part));
  }
}

/** The next elements along the lanes, `left` of them, of values whose lanes lie in a row; `last`: the depth
 * has no second value for a pair. */
template <class Product, class T>
LONGSEQ_INLINE Vec load_lanes(const T* p, [[maybe_unused]] int64_t depth_stride, int64_t left,
                              [[maybe_unused]] bool last) {
  if constexpr (Product::kPair == 1) {
    return load_part(p, left);
  } else {
#if defined(__AVX512BF16__)
    const auto words = [&](const T* from) {
      const auto some = static_cast<__mmask16>(left >= kLanes ? 0xffff : (1 << left) - 1);
      return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, from));
    };
    const __m512i even = words(p), odd = last ? _mm512_setzero_si512() : words(p + depth_stride);
    return _mm512_castsi512_ps(_mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
#endif
  }
}

/**
 * One panel of the lanes at x, of which `lanes` are there and the rest is 0, and of `depth` values along the
 * other axis. One of the strides is 1.
 */
template <class Product, int kWidth, class T>
inline void pack_panel(const T* x, int64_t lane_stride, int64_t depth_stride, int64_t lanes, int64_t depth,
                       typename Product::Element* out) {
  constexpr int kGroups = (kWidth + kLanes - 1) / kLanes;
  auto* const to = reinterpret_cast<float*>(out);  // elements move as 32 bits, whatever they are
  if (lane_stride == 1) {
    for (int64_t k = 0; k < depth; k += Product::kPair) {
      for (int group = 0; group < kGroups; group++) {
        const int64_t left = lanes - group * kLanes;
        store(to + k / Product::kPair * kWidth + group * kLanes,
              load_lanes<Product>(x + k * depth_stride + group * kLanes, depth_stride, left > 0 ? left : 0,
                                  k + 1 == depth));
      }
    }
    return;
  }
  for (int64_t k = 0; k < depth; k += Product::kPair * kLanes) {
    const int64_t left = depth - k, elements = (left + Product::kPair - 1) / Product::kPair;
    // The last group first: what it writes too much is the next depth's first group's.
    for (int group = kGroups - 1; group >= 0; group--) {
      Vec block[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; i++) {
        const int lane = group * kLanes + i;
        block[i] =
            lane < lanes && lane < kWidth ? load_depth<Product>(x + lane * lane_stride + k, left) : zero();
      }
      transpose(block);
      float* const at = to + k / Product::kPair * kWidth + group * kLanes;
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; i++) {
        if (i < elements) store(at + i * kWidth, block[i]);
      }
    }
  }
}

}  // namespace longseq::LONGSEQ_ISA
