#pragma once
// Products of float32 matrices on tensor cores. A factor is the sum of two tf32 numbers, of 11 bits each; the
// product of the small ones is below float32's last bit and is left out:
//
//   a b = a_small b_large + a_large b_small + a_large b_large
//
// Tensor cores cut sums off towards zero, which adds up: over 4,096 rows to a relative error of 3e-5. So 32
// products at a time are summed from zero, and float32 addition, which rounds, takes it from there: 1.4e-6
// (emulated; a chain of fmaf 1.8e-6).
//
// Rows lie in shared memory an odd number of 16-byte chunks apart: neither the eight rows of a matrix nor
// rows 0, 2, 4 and 6 side by side then meet in a bank.
#include "tile/sm80.h"
#include "tile/sum.h"

namespace longseq::sm80 {

/** The distance of rows of `columns` floats in shared memory, in bytes. */
constexpr int float32_pitch(int columns) { return (columns / 4 | 1) * 16; }

template <int kCount>
struct Tf32Pair {
  uint32_t large[kCount], small[kCount];

  /** Large is rounded; of small the hardware ignores what is below 11 bits. */
  __device__ void set(int i, float x) {
    large[i] = (__float_as_uint(x) + 0x1000) & 0xffffe000;
    small[i] = __float_as_uint(x - __uint_as_float(large[i]));
  }
};

/** c += a b, of 16 x 8 and 8 x 8 elements. */
__device__ inline void multiply_add_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <int kTiles>
__device__ inline void multiply_add_pairs(float (&c)[kTiles][4], const Tf32Pair<4>& a,
                                          const Tf32Pair<2> (&b)[kTiles]) {
#pragma unroll
  for (int n = 0; n < kTiles; n++) multiply_add_tf32(c[n], a.small, b[n].large);
#pragma unroll
  for (int n = 0; n < kTiles; n++) multiply_add_tf32(c[n], a.large, b[n].small);
#pragma unroll
  for (int n = 0; n < kTiles; n++) multiply_add_tf32(c[n], a.large, b[n].large);
}

template <int kTiles>
__device__ inline void clear(float (&c)[kTiles][4]) {
#pragma unroll
  for (int n = 0; n < kTiles; n++) {
#pragma unroll
    for (int e = 0; e < 4; e++) c[n][e] = 0;
  }
}

/**
 * c = a b^T: a's 16 rows come as fragments from left(step, fragment), b's 8 kTiles rows lie at `right` in
 * shared memory. Of kColumns columns those from `columns` on are zeros; what is beyond the next multiple of
 * 32 is not read.
 */
template <int kColumns, int kTiles, class Left>
__device__ inline void multiply_rows(float (&c)[kTiles][4], const Left& left, uint32_t right, int columns) {
  constexpr int kPitch = float32_pitch(kColumns);
  const int lane = threadIdx.x % 32;
  const uint32_t from = right + (lane % 8 + lane / 16 * 8) * kPitch + lane / 8 % 2 * 16;
  clear(c);
#pragma unroll
  for (int first = 0; first < kColumns; first += 32) {
    if (first >= columns) continue;
    float sum[kTiles][4];
    clear(sum);
#pragma unroll
    for (int step = first / 8; step < first / 8 + 4; step++) {
      uint32_t fragment[4];
      left(step, fragment);
      Tf32Pair<4> a;
#pragma unroll
      for (int i = 0; i < 4; i++) a.set(i, __uint_as_float(fragment[i]));
      Tf32Pair<2> b[kTiles];
#pragma unroll
      for (int n = 0; n < kTiles; n += 2) {
        load_matrices(fragment, from + 8 * n * kPitch + 32 * step);
#pragma unroll
        for (int i = 0; i < 4; i++) b[n + i / 2].set(i % 2, __uint_as_float(fragment[i]));
      }
      multiply_add_pairs(sum, a, b);
    }
#pragma unroll
    for (int n = 0; n < kTiles; n++) {
#pragma unroll
      for (int e = 0; e < 4; e++) c[n][e] += sum[n][e];
    }
  }
}

/** The fragments of 16 rows in shared memory, for multiply_rows. */
template <int kColumns>
__device__ inline auto fragments_of(uint32_t rows) {
  const uint32_t from = rows + threadIdx.x % 16 * float32_pitch(kColumns) + threadIdx.x % 32 / 16 * 16;
  return [from](int step, uint32_t(&fragment)[4]) { load_matrices(fragment, from + 32 * step); };
}

/**
 * c += a b: a is 16 x 8 kTiles, as multiply_rows leaves it; b's 8 kTiles rows lie at `right` in shared
 * memory. Element e of c's tile n is row lane / 4 + e / 2 * 8 and column 32 (n / 4) + 8 (lane % 4) +
 * 4 (e % 2) + n % 4: a lane reads and owns neighbouring columns.
 */
template <int kColumns, int kTiles>
__device__ inline void multiply_columns(float (&c)[kColumns / 8][4], const float (&left)[kTiles][4],
                                        const char* right, int columns) {
  constexpr int kPitch = float32_pitch(kColumns);
  const int lane = threadIdx.x % 32;
  const char* const from = right + lane % 4 * 2 * kPitch + lane / 4 * 16;
  // A lane's elements stand in neighbouring columns 2 t and 2 t + 1: those are steps t and t + 4 of a
  // product.
  Tf32Pair<4> a[kTiles];
#pragma unroll
  for (int j = 0; j < kTiles; j++) {
#pragma unroll
    for (int i = 0; i < 4; i++) a[j].set(i, left[j][i % 2 * 2 + i / 2]);
  }
#pragma unroll
  for (int group = 0; group < kColumns / 32; group++) {
    if (32 * group >= columns) continue;
    float sum[4][4];
    clear(sum);
#pragma unroll
    for (int j = 0; j < kTiles; j++) {
      const float4 even = *reinterpret_cast<const float4*>(from + 8 * j * kPitch + 128 * group);
      const float4 odd = *reinterpret_cast<const float4*>(from + (8 * j + 1) * kPitch + 128 * group);
      Tf32Pair<2> b[4];
      b[0].set(0, even.x);
      b[1].set(0, even.y);
      b[2].set(0, even.z);
      b[3].set(0, even.w);
      b[0].set(1, odd.x);
      b[1].set(1, odd.y);
      b[2].set(1, odd.z);
      b[3].set(1, odd.w);
      multiply_add_pairs(sum, a[j], b);
    }
#pragma unroll
    for (int n = 0; n < 4; n++) {
#pragma unroll
      for (int e = 0; e < 4; e++) c[4 * group + n][e] += sum[n][e];
    }
  }
}

/** Stores a lane's part of row lane / 4 + 8 half of what multiply_columns left, or adds it to what is there.
 */
template <int kTiles>
__device__ inline void store_row(float* row, const float (&c)[kTiles][4], int half, float factor, int columns,
                                 bool adds = false) {
#pragma unroll
  for (int group = 0; group < kTiles / 4; group++) {
#pragma unroll
    for (int e = 2 * half; e < 2 * half + 2; e++) {
      const int column = 32 * group + threadIdx.x % 4 * 8 + e % 2 * 4;
      if (column >= columns) continue;
      float four[4];
#pragma unroll
      for (int n = 0; n < 4; n++) four[n] = c[4 * group + n][e] * factor;
      put_four(row + column, four, adds);
    }
  }
}

/** Starts to copy rows [first, first + kRows) to shared memory; zeros from row `rows` and column `columns`
 * on. */
template <int kColumns, int kRows, int kThreads>
__device__ inline void copy_rows(uint32_t to, const float* from, int64_t stride, int first, int rows,
                                 int columns) {
  constexpr int kChunks = kColumns / 4;
#pragma unroll 4
  for (int at = threadIdx.x; at < kRows * kChunks; at += kThreads) {
    const int row = at / kChunks, column = at % kChunks * 4;
    const bool inside = first + row < rows && column < columns;
    copy_async(to + row * float32_pitch(kColumns) + column * 4,
               inside ? from + (first + row) * stride + column : from, inside);
  }
}

}  // namespace longseq::sm80
