// Embedding on a GPU, bound by memory. Forward: a group of threads copies a row. Backward: the rows are
// sorted by their index, in an order that keeps rows of one index ascending, and a thread adds up its columns
// of all rows of one index: no sum has an order that varies.
//
// The sort is by digits of 8 bits, the lowest first. A warp has a tile of the rows: it counts its digits; the
// counts, by digit and within that by tile, are summed up; and the warp puts its rows, in their order, behind
// those of lower digits and of earlier tiles. Rows whose index is outside come last.
#include <algorithm>
#include <bit>
#include <utility>

#include "core/cuda.h"
#include "core/division.h"
#include "embedding/embedding.h"
#include "tile/pack.h"
#include "tile/row_group.h"

namespace longseq {
namespace {

constexpr unsigned kMostThreads = 256, kSumThreads = 128, kScanThreads = 1024;
constexpr int kPacksEach = 4;  // of a row, before further threads share it
constexpr int kAtOnce = 8;     // rows that a thread loads before it adds up the first
constexpr int kDigitBits = 8, kDigits = 1 << kDigitBits;
/** Rows of a tile: at least so many, and so many more that there are at most kMostTiles. */
constexpr int64_t kTileRows = 1024, kMostTiles = 1024;

/** grid: rows over groups; block: 256, or the threads of a row. Unit: 16 bytes, or an element's bits. */
template <class Unit>
__global__ void __launch_bounds__(kMostThreads)
    embedding_kernel(const __grid_constant__ Rows table, int64_t table_rows,
                     const __grid_constant__ Rows indices, const __grid_constant__ Rows y, int64_t rows,
                     int64_t units, unsigned group_size, Unit nan) {
  __shared__ RowGroup::Shared shared;
  const RowGroup group(group_size, shared);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * group.count() + group.index();
  if (row >= rows) return;
  const int32_t index = *indices.row<const int32_t>(row);
  const bool inside = index >= 0 && index < table_rows;
  const Unit* const from = table.row<const Unit>(inside ? index : 0);
  Unit* const to = y.row<Unit>(row);
  for (int64_t at = group.lane(); at < units; at += group.size()) to[at] = inside ? from[at] : nan;
}

/** What the rows are sorted by: their index, or the number of the table's rows where it is outside. */
struct SortKeys {
  Rows indices;
  int table_rows, rows;
  int tile_rows, tiles;

  __device__ int of(int row) const {
    const int32_t index = *indices.row<const int32_t>(row);
    return index >= 0 && index < table_rows ? index : table_rows;
  }
  __device__ int digit_of(int row, int shift) const { return of(row) >> shift & (kDigits - 1); }
  __device__ int64_t tile_begin() const { return static_cast<int64_t>(blockIdx.x) * tile_rows; }
  __device__ int64_t tile_end() const { return min(static_cast<int64_t>(rows), tile_begin() + tile_rows); }
};

/** grid: tiles; block: a warp. `order` is the order so far; null: as the rows are. */
__global__ void count_digits_kernel(const __grid_constant__ SortKeys keys, const int* order, int shift,
                                    int* counts) {
  __shared__ int of_digits[kDigits];
  const int lane = threadIdx.x, tile = blockIdx.x;
  for (int digit = lane; digit < kDigits; digit += 32) of_digits[digit] = 0;
  __syncwarp();
  for (int64_t at = keys.tile_begin() + lane; at < keys.tile_end(); at += 32) {
    atomicAdd(&of_digits[keys.digit_of(order ? order[at] : static_cast<int>(at), shift)], 1);
  }
  __syncwarp();
  for (int digit = lane; digit < kDigits; digit += 32) counts[digit * keys.tiles + tile] = of_digits[digit];
}

/** Each count becomes the sum of those before it. One block. */
__global__ void __launch_bounds__(kScanThreads) scan_counts_kernel(int* counts, int count) {
  __shared__ int sums[kScanThreads];
  const int thread = threadIdx.x, each = (count + kScanThreads - 1) / kScanThreads;
  const int begin = min(count, thread * each), end = min(count, begin + each);
  int sum = 0;
  for (int i = begin; i < end; i++) sum += counts[i];
  sums[thread] = sum;
  __syncthreads();
  for (int distance = 1; distance < static_cast<int>(kScanThreads); distance *= 2) {
    const int before = thread >= distance ? sums[thread - distance] : 0;
    __syncthreads();  // all have read before one writes
    sums[thread] += before;
    __syncthreads();
  }
  int before = sums[thread] - sum;
  for (int i = begin; i < end; i++) {
    const int own = counts[i];
    counts[i] = before;
    before += own;
  }
}

/** grid, block: as of the counts, which are now where each tile's rows of a digit begin. */
__global__ void place_rows_kernel(const __grid_constant__ SortKeys keys, const int* order, int shift,
                                  const int* counts, int* sorted) {
  __shared__ int next[kDigits];
  const int lane = threadIdx.x, tile = blockIdx.x;
  for (int digit = lane; digit < kDigits; digit += 32) next[digit] = counts[digit * keys.tiles + tile];
  __syncwarp();
  const int64_t begin = keys.tile_begin(), end = keys.tile_end();
  for (int64_t first = begin; first < end; first += 32) {
    const int64_t at = first + lane;
    const bool inside = at < end;
    const int row = !inside ? 0 : order ? order[at] : static_cast<int>(at);
    const int digit = inside ? keys.digit_of(row, shift) : kDigits;
    const unsigned alike = __match_any_sync(~0u, digit);
    if (inside) sorted[next[digit] + __popc(alike & ((1u << lane) - 1))] = row;
    __syncwarp();  // all have read `next` before its last lane moves it on
    if (inside && alike >> lane == 1) next[digit] += __popc(alike);
    __syncwarp();
  }
}

/** starts[v]: where the rows of index v begin. grid: over 0 to table_rows. */
__global__ void find_starts_kernel(const __grid_constant__ SortKeys keys, const int* sorted, int* starts) {
  const int64_t v = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (v > keys.table_rows) return;
  int low = 0, high = keys.rows;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (keys.of(sorted[middle]) < v) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  starts[v] = low;
}

/** grid: the table's rows, columns over threads. */
template <class From, class To, int kPack>
__global__ void __launch_bounds__(kSumThreads)
    embedding_sum_kernel(const __grid_constant__ Rows dy, const int* sorted, const int* starts, To* dtable,
                         int64_t columns, bool accumulate) {
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * kSumThreads + threadIdx.x) * kPack;
  const int64_t begin = starts[blockIdx.x], end = starts[blockIdx.x + 1];
  if (column >= columns || (begin == end && accumulate)) return;
  float sums[kPack] = {};
  for (int64_t first = begin; first < end; first += kEmbeddingPart) {
    const int64_t part_end = min(first + kEmbeddingPart, end);
    float part[kPack] = {};
    for (int64_t at = first; at < part_end; at += kAtOnce) {
      Pack<From, kPack> held[kAtOnce] = {};
#pragma unroll
      for (int i = 0; i < kAtOnce; i++) {
        if (at + i < part_end) held[i] = read_pack<kPack>(dy.row<const From>(sorted[at + i]) + column);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; i++) {
        float values[kPack];
        widen(held[i], values);
#pragma unroll
        for (int e = 0; e < kPack; e++) part[e] += values[e];
      }
    }
#pragma unroll
    for (int e = 0; e < kPack; e++) sums[e] += part[e];
  }
  To* const to = dtable + static_cast<int64_t>(blockIdx.x) * columns + column;
#pragma unroll
  for (int e = 0; e < kPack; e++) {
    to[e] = from_float<To>(accumulate ? static_cast<float>(to[e]) + sums[e] : sums[e]);
  }
}

/** The rows in the order of their keys. `orders` has room for two orders. */
const int* sort_rows(const Cuda& cuda, const SortKeys& keys, int* orders, int* counts) {
  const dim3 tiles(static_cast<unsigned>(keys.tiles));
  const int key_bits = std::bit_width(static_cast<unsigned>(keys.table_rows));
  const int* order = nullptr;
  int* sorted = orders;
  int* spare = orders + keys.rows;
  for (int shift = 0; shift < std::max(1, key_bits); shift += kDigitBits) {
    launch<count_digits_kernel>(cuda, tiles, 32, 0, keys, order, shift, counts);
    launch<scan_counts_kernel>(cuda, dim3(1), kScanThreads, 0, counts, kDigits * keys.tiles);
    launch<place_rows_kernel>(cuda, tiles, 32, 0, keys, order, shift, counts, sorted);
    order = sorted;
    std::swap(sorted, spare);
  }
  return order;
}

}  // namespace

void run(const Cuda& cuda, const Embedding& op) {
  const int64_t count = op.indices.elements(), columns = op.table.size(1), item = size_of(op.table.dtype);
  if (count == 0 || columns == 0) return;
  const Rows table = rows_of(op.table), indices(op.indices, op.indices.rank), y = rows_of(op.y);
  const auto launch_units = [&]<class Unit>(Unit nan) {
    const int64_t units = columns * item / static_cast<int64_t>(sizeof(Unit));
    const RowThreads threads(units, kPacksEach, kMostThreads);
    launch<embedding_kernel<Unit>>(cuda, dim3(static_cast<unsigned>(threads.blocks(count))), threads.block, 0,
                                   table, op.table.size(0), indices, y, count, units, threads.group, nan);
  };
  const bool in_packs = columns * item % 16 == 0 && aligned({&table, &y}, 16);
  visit_float(op.table.dtype, [&]<class T>(T) {
    const T nan = from_float<T>(NAN);
    if constexpr (sizeof(T) == 4) {
      const uint32_t bits = float_to_bits(nan);
      if (in_packs) return launch_units(uint4{bits, bits, bits, bits});
      launch_units(bits);
    } else {
      const uint32_t bits = nan.bits * 0x10001u;
      if (in_packs) return launch_units(uint4{bits, bits, bits, bits});
      launch_units(nan.bits);
    }
  });
}

void run(const Cuda& cuda, const EmbeddingBackward& op) {
  const int64_t table_rows = op.dtable.size(0), columns = op.dtable.size(1), rows = op.indices.elements();
  if (table_rows == 0 || columns == 0) return;
  const int64_t tile_rows = std::max(kTileRows, ceil_div(rows, kMostTiles));
  const SortKeys keys{.indices = Rows(op.indices, op.indices.rank),
                      .table_rows = static_cast<int>(table_rows),
                      .rows = static_cast<int>(rows),
                      .tile_rows = static_cast<int>(tile_rows),
                      .tiles = static_cast<int>(ceil_div(rows, tile_rows))};
  const int64_t counts = kDigits * keys.tiles;
  const Memory scratch =
      allocate(cuda, static_cast<size_t>(2 * rows + counts + table_rows + 1) * sizeof(int));
  int* const orders = static_cast<int*>(scratch.data);
  int* const starts = orders + 2 * rows + counts;
  const int* const sorted = sort_rows(cuda, keys, orders, orders + 2 * rows);
  launch<find_starts_kernel>(cuda, dim3(static_cast<unsigned>(ceil_div(table_rows + 1, kMostThreads))),
                             kMostThreads, 0, keys, sorted, starts);
  const Rows dy = rows_of(op.dy);
  const auto launch_sums = [&]<class From, class To, int kPack>() {
    const int64_t across = ceil_div(columns, kSumThreads * kPack);
    launch<embedding_sum_kernel<From, To, kPack>>(
        cuda, dim3(static_cast<unsigned>(table_rows), static_cast<unsigned>(across)), kSumThreads, 0, dy,
        sorted, starts, op.dtable.data<To>(), columns, op.accumulate);
  };
  visit_float(op.dy.dtype, [&]<class From>(From) {
    constexpr int kPack = kWholePack<From>;
    const bool in_packs = columns % kPack == 0 && dy.aligned(16);
    const auto launch_to = [&]<class To>(To) {
      if (in_packs) return launch_sums.template operator()<From, To, kPack>();
      launch_sums.template operator()<From, To, 1>();
    };
    if (op.dtable.dtype == op.dy.dtype) return launch_to(From{});
    launch_to(float{});
  });
}

}  // namespace longseq
