#pragma once
// Sums of fragments in global memory, [rows x columns] in tiles of 16 x 8 of 128 floats: a lane's four lie so
// that a warp's additions are as few and as wide as they can be.
#include <cstdint>

namespace longseq {

#if __CUDA_ARCH__ >= 900
__device__ inline int sum_lane_offset(int lane) { return 4 * lane; }
__device__ inline void add_four(float* to, const float (&values)[4]) {
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(values[0]), "f"(values[1]),
               "f"(values[2]), "f"(values[3])
               : "memory");
}
/** Of the tile at `from`, what the lane added to it. */
__device__ inline void load_four(const float* from, int lane, float (&values)[4]) {
  const float4 four = __ldcs(reinterpret_cast<const float4*>(from) + lane);
  values[0] = four.x;
  values[1] = four.y;
  values[2] = four.z;
  values[3] = four.w;
}
#else
__device__ inline int sum_lane_offset(int lane) { return lane; }
__device__ inline void add_four(float* to, const float (&values)[4]) {
#pragma unroll
  for (int e = 0; e < 4; e++) {
    asm volatile("red.global.add.f32 [%0], %1;" ::"l"(to + 32 * e), "f"(values[e]) : "memory");
  }
}
__device__ inline void load_four(const float* from, int lane, float (&values)[4]) {
#pragma unroll
  for (int e = 0; e < 4; e++) values[e] = __ldcs(from + 32 * e + lane);
}
#endif
/** Of the tile whose first row and column these are. */
__host__ __device__ inline int64_t sum_offset(int64_t row, int column, int columns) {
  return row * columns + 16 * column;
}

}  // namespace longseq
