#pragma once
// The register tile that every product is made of: kRows x (1 or 2 vectors) of C (+)= A B.
// B is a packed panel, [depth][columns of the tile] in a row; A's elements are broadcast, so it may lie
// either way.
#include "tile/vec.h"

namespace longseq::LONGSEQ_ISA {

/** Products of float32. */
struct Float32Product {
  using Element = float;
  static constexpr int kPair = 1;  // values of the depth axis in an element
  LONGSEQ_INLINE static Vec broadcast(const float* a) { return set(*a); }
  LONGSEQ_INLINE static Vec load_b(const float* b) { return load(b); }
  LONGSEQ_INLINE static Vec multiply_add(Vec a, Vec b, Vec c) { return fma(a, b, c); }
};

#if defined(__AVX512BF16__)
/** Products of bfloat16, two along the depth at a time; sums in float32. */
struct BFloat16Product {
  using Element = uint32_t;
  static constexpr int kPair = 2;
  LONGSEQ_INLINE static Vec broadcast(const uint32_t* a) {
    return _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(*a)));
  }
  LONGSEQ_INLINE static Vec load_b(const uint32_t* b) { return _mm512_loadu_ps(b); }
  LONGSEQ_INLINE static Vec multiply_add(Vec a, Vec b, Vec c) {
    return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};
#endif

enum class Lay { RowMajor, DepthMajor };  // of A: a[row * stride + depth], or a[depth * stride + row]

/**
 * sum[kRows][kVectors * kLanes] += A[kRows][depth] B[depth][kVectors * kLanes], in registers.
 * `depth` counts elements. Unrolled by 4: with short loops the misprediction at a loop's end is what costs
 * (measured at depth 64: 189 -> 200 GFLOP/s of 208 in float32, 356 -> 404 in bfloat16).
 */
template <class Product, int kVectors, Lay kLay>
LONGSEQ_INLINE void multiply_add_tile(const typename Product::Element* a, int64_t a_stride,
                                      const typename Product::Element* b, int depth,
                                      Vec (&sum)[kRows][kVectors]) {
#pragma GCC unroll 4
  for (int i = 0; i < depth; i++) {
    Vec bs[kVectors];
#pragma GCC unroll 2
    for (int n = 0; n < kVectors; n++) bs[n] = Product::load_b(b + (i * kVectors + n) * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) {
      const Vec as = Product::broadcast(kLay == Lay::RowMajor ? a + r * a_stride + i : a + i * a_stride + r);
#pragma GCC unroll 2
      for (int n = 0; n < kVectors; n++) sum[r][n] = Product::multiply_add(as, bs[n], sum[r][n]);
    }
  }
}

/** C[kRows][kVectors * kLanes] = or += A[kRows][depth] B[depth][kVectors * kLanes]. */
template <class Product, int kVectors, Lay kLay, bool kAccumulate>
LONGSEQ_INLINE void multiply_tile(const typename Product::Element* a, int64_t a_stride,
                                  const typename Product::Element* b, int depth, float* c, int64_t c_stride) {
  Vec sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; r++) {
#pragma GCC unroll 2
    for (int n = 0; n < kVectors; n++) sum[r][n] = kAccumulate ? load(c + r * c_stride + n * kLanes) : zero();
  }
  multiply_add_tile<Product, kVectors, kLay>(a, a_stride, b, depth, sum);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; r++) {
#pragma GCC unroll 2
    for (int n = 0; n < kVectors; n++) store(c + r * c_stride + n * kLanes, sum[r][n]);
  }
}

/**
 * The same over all columns of C: B is panels of kTileColumns columns (the last one may have kLanes),
 * `panel_stride` elements apart; their rows [depth_begin, depth_begin + depth) are meant.
 */
template <class Product, Lay kLay, bool kAccumulate>
__attribute__((noinline)) void multiply_strip(const typename Product::Element* a, int64_t a_stride,
                                              const typename Product::Element* b, int64_t panel_stride,
                                              int64_t depth_begin, int depth, int columns, float* c,
                                              int64_t c_stride) {
  int column = 0;
  for (; column + kTileColumns <= columns; column += kTileColumns, b += panel_stride) {
    multiply_tile<Product, 2, kLay, kAccumulate>(a, a_stride, b + depth_begin * kTileColumns, depth,
                                                 c + column, c_stride);
  }
  if (column < columns) {
    multiply_tile<Product, 1, kLay, kAccumulate>(a, a_stride, b + depth_begin * kLanes, depth, c + column,
                                                 c_stride);
  }
}

}  // namespace longseq::LONGSEQ_ISA
