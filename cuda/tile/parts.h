#pragma once
// The second pass of a sum over rows: each block of the first wrote its part, a row of float32, and these are
// added up in an order that is always the same, without atomics.
#include "core/cuda.h"
#include "core/division.h"
#include "core/dtype.h"

namespace longseq {

/** What goes where: up to two sums over equally many parts. */
template <class T>
struct PartSums {
  const float* parts[2];  // [count, columns]
  T* sums[2];             // [columns]
};

constexpr int kPartColumns = 32, kMostPartWarps = 32;

/** grid: columns over lanes, sums; block: each warp adds up every so manieth part. */
template <class T>
__global__ void __launch_bounds__(kPartColumns* kMostPartWarps)
    sum_parts_kernel(PartSums<T> given, int64_t count, int64_t columns, bool accumulate) {
  __shared__ float of_warps[kMostPartWarps][kPartColumns];
  const unsigned lane = threadIdx.x % kPartColumns, warp = threadIdx.x / kPartColumns;
  const unsigned warps = blockDim.x / kPartColumns;
  const float* const parts = given.parts[blockIdx.y];
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kPartColumns + lane;
  float sum = 0;
  if (column < columns) {
#pragma unroll 8
    for (int64_t part = warp; part < count; part += warps) sum += parts[part * columns + column];
  }
  of_warps[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || column >= columns) return;
  for (unsigned other = 1; other < warps; other++) sum += of_warps[other][lane];
  T* const y = given.sums[blockIdx.y] + column;
  *y = from_float<T>(accumulate ? static_cast<float>(*y) + sum : sum);
}

/** Adds up the parts: `T` is the sums' type. The second sum may be null. */
template <class T>
void sum_parts(const Cuda& cuda, const PartSums<T>& given, int64_t count, int64_t columns,
               bool accumulate = false) {
  const int64_t across = ceil_div(columns, kPartColumns);
  const dim3 grid(static_cast<unsigned>(across), given.sums[1] != nullptr ? 2 : 1);
  // Where few blocks fill no GPU each is a large one, and the other way around.
  const unsigned warps = across >= 128 ? 8 : kMostPartWarps;
  launch<sum_parts_kernel<T>>(cuda, grid, warps * kPartColumns, 0, given, count, columns, accumulate);
}

}  // namespace longseq
