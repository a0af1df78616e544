#pragma once
// The CPU's vector of floats, and the few verbs that kernels use, for each instruction set. Everything here
// lives in the instruction set's own namespace (see core/cpu.h for why). `mask_of` takes one bit a lane, lane
// 0 the lowest; `sign_of` is set where the sign bit is. `max` and `min` pass on a NaN in their second
// argument.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cmath>
#include <cstdint>

#include "core/dtype.h"

namespace longseq::LONGSEQ_ISA {

#define LONGSEQ_INLINE inline __attribute__((always_inline))

#if defined(__AVX512F__)

inline constexpr int kLanes = 16;
inline constexpr int kRows =
    12;  // rows of a register tile: 12 x 2 accumulators, 2 loads, 1 broadcast of 32 registers
using Vec = __m512;
using LaneMask = __mmask16;

LONGSEQ_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
LONGSEQ_INLINE void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
LONGSEQ_INLINE Vec set(float x) { return _mm512_set1_ps(x); }
LONGSEQ_INLINE Vec zero() { return _mm512_setzero_ps(); }
LONGSEQ_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
LONGSEQ_INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
LONGSEQ_INLINE Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
LONGSEQ_INLINE Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
LONGSEQ_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
LONGSEQ_INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
LONGSEQ_INLINE Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
LONGSEQ_INLINE Vec sqrt(Vec a) { return _mm512_sqrt_ps(a); }
LONGSEQ_INLINE Vec abs(Vec a) { return _mm512_abs_ps(a); }
LONGSEQ_INLINE float sum_of(Vec v) { return _mm512_reduce_add_ps(v); }
LONGSEQ_INLINE float max_of(Vec v) { return _mm512_reduce_max_ps(v); }
LONGSEQ_INLINE LaneMask mask_of(uint64_t bits) { return static_cast<LaneMask>(bits); }
/** `a` where the mask is set, else `b`. */
LONGSEQ_INLINE Vec select(LaneMask mask, Vec a, Vec b) { return _mm512_mask_blend_ps(mask, b, a); }
LONGSEQ_INLINE LaneMask sign_of(Vec v) { return _mm512_movepi32_mask(_mm512_castps_si512(v)); }
LONGSEQ_INLINE Vec swap_pairs(Vec v) { return _mm512_permute_ps(v, 0xb1); }
LONGSEQ_INLINE Vec from_int(const int32_t* p) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(p)); }
LONGSEQ_INLINE Vec load(const BFloat16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
LONGSEQ_INLINE Vec load(const Float16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
LONGSEQ_INLINE void store(Float16* p, Vec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
LONGSEQ_INLINE void store(BFloat16* p, Vec v) {
  const __m512i bits = _mm512_castps_si512(v), one = _mm512_set1_epi32(1);
  const __m512i rounded = _mm512_add_epi32(
      bits, _mm512_add_epi32(_mm512_set1_epi32(0x7fff), _mm512_and_si512(_mm512_srli_epi32(bits, 16), one)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __m512i kept = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), rounded, quiet);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
}

/** x - floor(x); 0 for an infinite x. */
LONGSEQ_INLINE Vec fraction(Vec x) { return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
/** p * 2^floor(x), 0 where that underflows, so for -inf too. `f` is the fraction of x. */
LONGSEQ_INLINE Vec scale_by_power(Vec p, Vec x, Vec) { return _mm512_scalef_ps(p, x); }
LONGSEQ_INLINE Vec load_strided(const float* p, int stride) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm512_i32gather_ps(_mm512_mullo_epi32(lane, _mm512_set1_epi32(stride)), p, 4);
}
/** a0 b0 a1 b1 ... of the lower halves, and of the upper ones. */
LONGSEQ_INLINE Vec interleave_low(Vec a, Vec b) {
  const __m512i lanes = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  return _mm512_permutex2var_ps(a, lanes, b);
}
LONGSEQ_INLINE Vec interleave_high(Vec a, Vec b) {
  const __m512i lanes = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  return _mm512_permutex2var_ps(a, lanes, b);
}

#elif defined(__AVX2__)

inline constexpr int kLanes = 8;
inline constexpr int kRows = 6;
using Vec = __m256;
using LaneMask = __m256;

LONGSEQ_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
LONGSEQ_INLINE void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
LONGSEQ_INLINE Vec set(float x) { return _mm256_set1_ps(x); }
LONGSEQ_INLINE Vec zero() { return _mm256_setzero_ps(); }
LONGSEQ_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
LONGSEQ_INLINE Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
LONGSEQ_INLINE Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
LONGSEQ_INLINE Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
LONGSEQ_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
LONGSEQ_INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
LONGSEQ_INLINE Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
LONGSEQ_INLINE Vec sqrt(Vec a) { return _mm256_sqrt_ps(a); }
LONGSEQ_INLINE Vec abs(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
LONGSEQ_INLINE float sum_of(Vec v) {
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}
LONGSEQ_INLINE float max_of(Vec v) {
  const __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 pair = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)));
}
LONGSEQ_INLINE LaneMask mask_of(uint64_t bits) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i all = _mm256_set1_epi32(static_cast<int>(bits));
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, lane), lane));
}
LONGSEQ_INLINE Vec select(LaneMask mask, Vec a, Vec b) { return _mm256_blendv_ps(b, a, mask); }
LONGSEQ_INLINE LaneMask sign_of(Vec v) { return v; }
LONGSEQ_INLINE Vec swap_pairs(Vec v) { return _mm256_permute_ps(v, 0xb1); }
LONGSEQ_INLINE Vec from_int(const int32_t* p) {
  return _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
LONGSEQ_INLINE Vec load(const BFloat16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
LONGSEQ_INLINE Vec load(const Float16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
LONGSEQ_INLINE void store(Float16* p, Vec v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
LONGSEQ_INLINE void store(BFloat16* p, Vec v) {
  const __m256i bits = _mm256_castps_si256(v), one = _mm256_set1_epi32(1);
  const __m256i rounded = _mm256_add_epi32(
      bits, _mm256_add_epi32(_mm256_set1_epi32(0x7fff), _mm256_and_si256(_mm256_srli_epi32(bits, 16), one)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 kept = _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet),
                                       _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i upper = _mm256_srli_epi32(_mm256_castps_si256(kept), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(upper, upper), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}

LONGSEQ_INLINE Vec fraction(Vec x) {
  x = _mm256_max_ps(_mm256_set1_ps(-200.0f), x);  // -inf has none; NaN passes
  return _mm256_sub_ps(x, _mm256_floor_ps(x));
}
LONGSEQ_INLINE Vec scale_by_power(Vec p, Vec x, Vec f) {
  const Vec low = _mm256_set1_ps(-126.0f);
  // A whole number, or below -126 and not used. 127 bounds what would run into the sign; NaN passes.
  const Vec n = _mm256_min_ps(_mm256_set1_ps(127.0f), _mm256_sub_ps(_mm256_max_ps(x, low), f));
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  const Vec scaled = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
  return _mm256_and_ps(_mm256_cmp_ps(x, low, _CMP_NLT_UQ), scaled);
}
LONGSEQ_INLINE Vec load_strided(const float* p, int stride) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_i32gather_ps(p, _mm256_mullo_epi32(lane, _mm256_set1_epi32(stride)), 4);
}
LONGSEQ_INLINE Vec interleave_low(Vec a, Vec b) {
  return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x20);
}
LONGSEQ_INLINE Vec interleave_high(Vec a, Vec b) {
  return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x31);
}

#else

// GCC's and Clang's vector extension: four lanes of whatever 128-bit registers the machine has.
inline constexpr int kLanes = 4;
inline constexpr int kRows = 6;
typedef float Vec __attribute__((vector_size(16)));
typedef int32_t LaneMask __attribute__((vector_size(16)));

LONGSEQ_INLINE Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
LONGSEQ_INLINE void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }
LONGSEQ_INLINE Vec set(float x) { return Vec{x, x, x, x}; }
LONGSEQ_INLINE Vec zero() { return Vec{}; }
LONGSEQ_INLINE Vec add(Vec a, Vec b) { return a + b; }
LONGSEQ_INLINE Vec sub(Vec a, Vec b) { return a - b; }
LONGSEQ_INLINE Vec mul(Vec a, Vec b) { return a * b; }
LONGSEQ_INLINE Vec div(Vec a, Vec b) { return a / b; }
LONGSEQ_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
LONGSEQ_INLINE Vec select(LaneMask mask, Vec a, Vec b) { return mask ? a : b; }
LONGSEQ_INLINE LaneMask sign_of(Vec v) { return reinterpret_cast<LaneMask>(v) < 0; }
LONGSEQ_INLINE Vec swap_pairs(Vec v) { return Vec{v[1], v[0], v[3], v[2]}; }
LONGSEQ_INLINE Vec max(Vec a, Vec b) { return select(a > b, a, b); }
LONGSEQ_INLINE Vec min(Vec a, Vec b) { return select(a < b, a, b); }
LONGSEQ_INLINE Vec sqrt(Vec a) {
  for (int i = 0; i < kLanes; i++) a[i] = __builtin_sqrtf(a[i]);
  return a;
}
LONGSEQ_INLINE Vec abs(Vec a) { return reinterpret_cast<Vec>(reinterpret_cast<LaneMask>(a) & 0x7fffffff); }
LONGSEQ_INLINE float sum_of(Vec v) { return (v[0] + v[2]) + (v[1] + v[3]); }
LONGSEQ_INLINE float max_of(Vec v) {
  const float a = v[0] > v[2] ? v[0] : v[2], b = v[1] > v[3] ? v[1] : v[3];
  return a > b ? a : b;
}
LONGSEQ_INLINE LaneMask mask_of(uint64_t bits) {
  const LaneMask lane = {1, 2, 4, 8}, all = lane * 0 + static_cast<int32_t>(bits);
  return (all & lane) == lane;
}
LONGSEQ_INLINE Vec from_int(const int32_t* p) {
  LaneMask v;
  __builtin_memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, Vec);
}
template <class T>
LONGSEQ_INLINE Vec load_each(const T* p) {
  return Vec{float(p[0]), float(p[1]), float(p[2]), float(p[3])};
}
LONGSEQ_INLINE Vec load(const BFloat16* p) { return load_each(p); }
LONGSEQ_INLINE Vec load(const Float16* p) { return load_each(p); }
LONGSEQ_INLINE void store(Float16* p, Vec v) {
  for (int i = 0; i < kLanes; i++) p[i] = Float16::from(v[i]);
}
LONGSEQ_INLINE void store(BFloat16* p, Vec v) {
  for (int i = 0; i < kLanes; i++) p[i] = BFloat16::from(v[i]);
}

LONGSEQ_INLINE Vec floor(Vec x) {
  const Vec whole =
      __builtin_convertvector(__builtin_convertvector(x, LaneMask), Vec);  // towards zero; |x| is small
  return select(whole > x, whole - set(1), whole);
}
LONGSEQ_INLINE Vec fraction(Vec x) {
  x = max(set(-200.0f), x);  // -inf has none; NaN passes
  return x - floor(x);
}
LONGSEQ_INLINE Vec scale_by_power(Vec p, Vec x, Vec f) {
  const Vec low = set(-126.0f);
  const Vec whole = max(x, low) - f, n = select(whole > set(127), set(127), whole);  // as for AVX2
  const LaneMask exponent = __builtin_convertvector(n, LaneMask) << 23;
  const Vec scaled = reinterpret_cast<Vec>(reinterpret_cast<LaneMask>(p) + exponent);
  return select(x < low, zero(), scaled);
}
LONGSEQ_INLINE Vec load_strided(const float* p, int stride) {
  return Vec{p[0], p[stride], p[2 * stride], p[3 * stride]};
}
LONGSEQ_INLINE Vec interleave_low(Vec a, Vec b) { return Vec{a[0], b[0], a[1], b[1]}; }
LONGSEQ_INLINE Vec interleave_high(Vec a, Vec b) { return Vec{a[2], b[2], a[3], b[3]}; }

#endif

inline constexpr int kTileColumns = 2 * kLanes;  // columns of a register tile

/** 2^x, 0 for -inf, NaN for NaN, something huge from 127 on: relative error 1.5e-7 (degree 5, minimax on [0,
 * 1)). */
LONGSEQ_INLINE Vec exp2(Vec x) {
  const Vec f = fraction(x);
  Vec p = fma(f, set(0.00187757669f), set(0.00898933969f));
  p = fma(p, f, set(0.0558263175f));
  p = fma(p, f, set(0.240153611f));
  p = fma(p, f, set(0.693153083f));
  p = fma(p, f, set(0.99999994f));
  return scale_by_power(p, x, f);
}

/** The same at a relative error of 8e-5 (degree 3): for probabilities that are rounded to bfloat16 next. */
LONGSEQ_INLINE Vec exp2_coarse(Vec x) {
  const Vec f = fraction(x);
  Vec p = fma(f, set(0.0780245215f), set(0.226067156f));
  p = fma(p, f, set(0.695833564f));
  p = fma(p, f, set(0.999925196f));
  return scale_by_power(p, x, f);
}

/** A vector of p[0, count), 0 behind. */
template <class T>
LONGSEQ_INLINE Vec load_part(const T* p, int64_t count) {
  if (count >= kLanes) return load(p);
  T whole[kLanes] = {};
  if (count > 0) __builtin_memcpy(whole, p, static_cast<size_t>(count) * sizeof(T));
  return load(whole);
}
template <class T>
LONGSEQ_INLINE void store_part(T* p, Vec v, int64_t count) {
  if (count >= kLanes) return store(p, v);
  T whole[kLanes];
  store(whole, v);
  __builtin_memcpy(p, whole, static_cast<size_t>(count) * sizeof(T));
}

/** The vector at `at` of a row that ends at `end`, 0 behind that. */
template <class T>
LONGSEQ_INLINE Vec read(const T* row, int64_t at, int64_t end) {
  return at + kLanes <= end ? load(row + at) : load_part(row + at, end - at);
}
template <class T>
LONGSEQ_INLINE void write(T* row, int64_t at, int64_t end, Vec v) {
  at + kLanes <= end ? store(row + at, v) : store_part(row + at, v, end - at);
}

/** Calls f with a null pointer of the dtype's type. */
template <class F>
LONGSEQ_INLINE void visit_pointer(DType dtype, F&& f) {
  switch (dtype) {
    case DType::BFloat16:
      return f(static_cast<const BFloat16*>(nullptr));
    case DType::Float16:
      return f(static_cast<const Float16*>(nullptr));
    default:
      return f(static_cast<const float*>(nullptr));
  }
}

}  // namespace longseq::LONGSEQ_ISA
