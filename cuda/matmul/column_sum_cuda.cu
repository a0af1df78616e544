// Sums of columns on a GPU, in two passes without atomics. The first: grid (columns / kColumns, parts of the
// rows), 256 threads, of which each row of 32 takes 16 bytes a lane of one row of x, every eighth row; shared
// 8 rows of sums. Bound by memory: each element is read once, eight loads in flight a thread.
#include <algorithm>

#include "core/cuda.h"
#include "matmul/matmul.h"
#include "tile/pack.h"
#include "tile/parts.h"

namespace longseq {
namespace {

constexpr int kLanes = 32, kWarps = 8, kThreads = kLanes * kWarps, kAtOnce = 8;
/** Rows of a part: at least so many, and so many more that there are at most kMostParts. */
constexpr int64_t kPartRows = 128, kMostParts = 256;

template <class T, int kPack>
__global__ void __launch_bounds__(kThreads, 4)
    column_parts_kernel(const T* x, int64_t stride, int64_t rows, int64_t columns, int64_t part_rows,
                        float* partial) {
  __shared__ float sums[kWarps][kLanes * kPack];
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * kLanes + lane) * kPack;
  const int64_t end = min((blockIdx.y + 1) * part_rows, rows);
  float sum[kPack] = {};
  if (column < columns) {
    for (int64_t row = blockIdx.y * part_rows + warp; row < end; row += kAtOnce * kWarps) {
      Pack<T, kPack> held[kAtOnce] = {};
#pragma unroll
      for (int r = 0; r < kAtOnce; r++) {
        const int64_t at = row + r * kWarps;
        if (at < end) held[r] = read_pack<kPack>(x + at * stride + column);
      }
#pragma unroll
      for (int r = 0; r < kAtOnce; r++) {
        float values[kPack];
        widen(held[r], values);
#pragma unroll
        for (int i = 0; i < kPack; i++) sum[i] += values[i];
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kPack; i++) sums[warp][lane * kPack + i] = sum[i];
  __syncthreads();
  // Consecutive threads take consecutive columns.
  for (int at = threadIdx.x; at < kLanes * kPack; at += kThreads) {
    const int64_t to = static_cast<int64_t>(blockIdx.x) * kLanes * kPack + at;
    float total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; w++) total += sums[w][at];
    if (to < columns) partial[blockIdx.y * columns + to] = total;
  }
}

}  // namespace

void run(const Cuda& cuda, const ColumnSum& op) {
  const int64_t rows = op.x.size(0), columns = op.x.size(1), stride = op.x.stride(0);
  if (columns == 0) return;
  const int64_t part_rows = std::max(kPartRows, (rows + kMostParts - 1) / kMostParts);
  const int64_t parts = (rows + part_rows - 1) / part_rows;
  const Memory memory = allocate(cuda, static_cast<size_t>(parts * columns) * sizeof(float));
  auto* const partial = static_cast<float*>(memory.data);
  visit_float(op.x.dtype, [&]<class T>(T) {
    const T* const x = op.x.data<T>();
    const auto launch_parts = [&]<int kPack>() {
      const int64_t block_columns = kLanes * kPack;
      const dim3 grid(static_cast<unsigned>((columns + block_columns - 1) / block_columns),
                      static_cast<unsigned>(parts));
      launch<column_parts_kernel<T, kPack>>(cuda, grid, kThreads, 0, x, stride, rows, columns, part_rows,
                                            partial);
    };
    constexpr int kPack = 16 / sizeof(T);
    const bool aligned =
        reinterpret_cast<uintptr_t>(x) % 16 == 0 && stride % kPack == 0 && columns % kPack == 0;
    if (aligned) {
      launch_parts.template operator()<kPack>();
    } else {
      launch_parts.template operator()<1>();
    }
  });
  visit_float(op.y.dtype, [&]<class T>(T) {
    sum_parts<T>(cuda, {{partial, nullptr}, {op.y.data<T>(), nullptr}}, parts, columns, op.accumulate);
  });
}

}  // namespace longseq
