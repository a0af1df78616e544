#pragma once
// Sums in global memory that nobody waits for. Those of fragments are [rows x columns] in tiles of 16 x 8 of
// 128 floats: a lane's four lie so that a warp's additions are as few and as wide as they can be.
#include <cstdint>

namespace longseq {

__device__ inline void add_one(float* to, float value) {
  asm volatile("red.global.add.f32 [%0], %1;" ::"l"(to), "f"(value) : "memory");
}

/** To neighbours, which lie on a multiple of their size: stored, or added, by predicates. With a branch for
 * each the kernels spill more. */
__device__ inline void put_two(float* to, float low, float high, bool adds) {
  asm volatile(
      "{\n\t.reg .pred p;\n\tsetp.ne.u32 p, %3, 0;\n\t"
#if __CUDA_ARCH__ >= 900
      "@p red.global.add.v2.f32 [%0], {%1, %2};\n\t"
#else
      "@p red.global.add.f32 [%0], %1;\n\t@p red.global.add.f32 [%0 + 4], %2;\n\t"
#endif
      "@!p st.global.v2.f32 [%0], {%1, %2};\n\t}" ::"l"(to),
      "f"(low), "f"(high), "r"(int{adds})
      : "memory");
}
/** A row of a product: two(n) gives a lane's two neighbours of four lanes' tile n of 8 columns. There are
 * none from `columns` on. */
template <int kTiles, class Two>
__device__ void put_row(float* to, int columns, const Two& two, bool adds) {
#pragma unroll
  for (int n = 0; n < kTiles; n++) {
    const int column = 8 * n + static_cast<int>(threadIdx.x) % 4 * 2;
    const float2 values = two(n);
    if (column < columns) put_two(to + column, values.x, values.y, adds);
  }
}
__device__ inline void put_four(float* to, const float (&values)[4], bool adds) {
  asm volatile(
      "{\n\t.reg .pred p;\n\tsetp.ne.u32 p, %5, 0;\n\t"
#if __CUDA_ARCH__ >= 900
      "@p red.global.add.v4.f32 [%0], {%1, %2, %3, %4};\n\t"
#else
      "@p red.global.add.f32 [%0], %1;\n\t@p red.global.add.f32 [%0 + 4], %2;\n\t"
      "@p red.global.add.f32 [%0 + 8], %3;\n\t@p red.global.add.f32 [%0 + 12], %4;\n\t"
#endif
      "@!p st.global.v4.f32 [%0], {%1, %2, %3, %4};\n\t}" ::"l"(to),
      "f"(values[0]), "f"(values[1]), "f"(values[2]), "f"(values[3]), "r"(int{adds})
      : "memory");
}

/**
 * Whether a lane's four lie one behind the other: code for 9.0 and later adds all of them at once, other code
 * one of each lane. Both may have to do with the same sums: a driver compiles code for 8.0, where there is no
 * better, for a GPU that runs *_sm90.cu too.
 */
#if __CUDA_ARCH__ >= 900
inline constexpr bool kFoursTogether = true;
#else
inline constexpr bool kFoursTogether = false;
#endif
__device__ inline int sum_lane_offset(int lane) { return kFoursTogether ? 4 * lane : lane; }
__device__ inline void add_four(float* to, const float (&values)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(values[0]), "f"(values[1]),
               "f"(values[2]), "f"(values[3])
               : "memory");
#else
#pragma unroll
  for (int e = 0; e < 4; e++) add_one(to + 32 * e, values[e]);
#endif
}
/** Of the tile at `from`, what the lane added to it: in this file's code, or in one's for 9.0. */
__device__ inline void load_four(const float* from, int lane, float (&values)[4], bool is_of_sm90 = false) {
  if (kFoursTogether || is_of_sm90) {
    const float4 four = __ldcs(reinterpret_cast<const float4*>(from) + lane);
    values[0] = four.x;
    values[1] = four.y;
    values[2] = four.z;
    values[3] = four.w;
  } else {
#pragma unroll
    for (int e = 0; e < 4; e++) values[e] = __ldcs(from + 32 * e + lane);
  }
}
/** Of the tile whose first row and column these are. */
__host__ __device__ inline int64_t sum_offset(int64_t row, int column, int columns) {
  return row * columns + 16 * column;
}

}  // namespace longseq
