#pragma once
// How gradients leave the registers of a warpgroup.
#include "attention/attention_sm80.h"
#include "tile/sm80.h"
#include "tile/sum.h"

namespace longseq {

/**
 * Writes factor times what a product of 64 rows left in `gradient` to rows of `to`, whose element T, or float
 * where `is_float32`, may be added to. `row` is the row of elements 4 j and 4 j + 1; that of 4 j + 2 and
 * 4 j + 3 is 8 further; there are none from `rows` on.
 */
template <class T, int kCount>
__device__ void write_gradient(const float (&gradient)[kCount], const GpuRows& to, int batch, int head,
                               int row, int rows, int head_dim, float factor, bool is_float32, bool adds) {
  const int64_t base = batch * to.batch + head * to.head;
#pragma unroll
  for (int j = 0; j < kCount / 4; j++) {
    const int column = 8 * j + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int at_row = row + 8 * half;
      if (column >= head_dim || at_row >= rows) continue;
      const float low = gradient[4 * j + 2 * half] * factor, high = gradient[4 * j + 2 * half + 1] * factor;
      const int64_t at = base + at_row * to.row + column;
      if (is_float32) {
        put_two(static_cast<float*>(to.data) + at, low, high, adds);
      } else {
        *reinterpret_cast<uint32_t*>(static_cast<T*>(to.data) + at) = sm80::pack<T>(low, high);
      }
    }
  }
}

}  // namespace longseq
