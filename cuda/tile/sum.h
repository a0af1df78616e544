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
#else
__device__ inline int sum_lane_offset(int lane) { return lane; }
__device__ inline void add_four(float* to, const float (&values)[4]) {
#pragma unroll
  for (int e = 0; e < 4; e++) {
    asm volatile("red.global.add.f32 [%0], %1;" ::"l"(to + 32 * e), "f"(values[e]) : "memory");
  }
}
#endif
/** Of the tile whose first row and column these are. */
__host__ __device__ inline int64_t sum_offset(int64_t row, int column, int columns) {
  return row * columns + 16 * column;
}
struct SumView {
  const float* data;
  int columns;

  /** Of the element of a row and a column behind `first_row`, a multiple of 16. */
  __device__ float at(int64_t first_row, int row, int column) const {
    const int lane = row % 8 * 4 + column % 8 / 2, e = row % 16 / 8 * 2 + column % 2;
    return data[(first_row + row / 16 * 16) * columns + 16 * (column / 8 * 8) +
                (sum_lane_offset(1) == 4 ? 4 * lane + e : 32 * e + lane)];
  }
};

}  // namespace longseq
