#include <numeric>

#include "attention/gpu_mask.h"

namespace longseq {
namespace {

int32_t tiles_used(const BlockRow& blocks) {
  int32_t used = 0;
  for (int32_t r = 0; r < blocks.run_count; r++) {
    const BlockRun& run = blocks.runs[r];
    if (!run.full()) used = std::max(used, run.tile + run.end - run.begin);
  }
  return used;
}

/** What stands in the copy's memory, one array behind the other. */
struct Arrays {
  std::vector<int32_t> first_run, first_column_run, tile_index;
  std::vector<GpuBlockRun> runs, column_runs;
  int64_t tiles = 0;
};

Arrays arrays_of(const Mask& mask) {
  Arrays out;
  const int64_t rows = block_count(mask.queries()), columns = block_count(mask.keys());
  struct ColumnRun {
    GpuBlockRun run;
    std::vector<int32_t> tiles;
  };
  std::vector<std::vector<ColumnRun>> by_column(static_cast<size_t>(columns));
  for (int64_t row = 0; row < rows; row++) {
    const BlockRow& blocks = mask.block_row(row);
    out.first_run.push_back(static_cast<int32_t>(out.runs.size()));
    for (int32_t r = 0; r < blocks.run_count; r++) {
      const BlockRun& run = blocks.runs[r];
      const auto tile = static_cast<int32_t>(out.tiles + run.tile);
      out.runs.push_back({run.begin, run.end, run.full() ? -1 : tile});
      for (int32_t column = run.begin; column < run.end; column++) {
        std::vector<ColumnRun>& runs = by_column[static_cast<size_t>(column)];
        const bool joins =
            !runs.empty() && runs.back().run.end == row && (runs.back().run.tile < 0) == run.full();
        if (!joins) {
          runs.push_back({{static_cast<int32_t>(row), static_cast<int32_t>(row), run.full() ? -1 : 0}, {}});
        }
        runs.back().run.end++;
        if (!run.full()) runs.back().tiles.push_back(tile + column - run.begin);
      }
    }
    out.tiles += tiles_used(blocks);
  }
  out.first_run.push_back(static_cast<int32_t>(out.runs.size()));
  for (const std::vector<ColumnRun>& runs : by_column) {
    out.first_column_run.push_back(static_cast<int32_t>(out.column_runs.size()));
    for (const ColumnRun& run : runs) {
      const auto at = static_cast<int32_t>(out.tile_index.size());
      out.column_runs.push_back({run.run.begin, run.run.end, run.run.tile < 0 ? -1 : at});
      out.tile_index.insert(out.tile_index.end(), run.tiles.begin(), run.tiles.end());
    }
  }
  out.first_column_run.push_back(static_cast<int32_t>(out.column_runs.size()));
  return out;
}

HostTiles tiles_of_rows(const Mask& mask) {
  HostTiles out{.tiles = {}, .first = {0}};
  for (int64_t row = 0; row < block_count(mask.queries()); row++) {
    const BlockRow& blocks = mask.block_row(row);
    for (int32_t tile = 0; tile < tiles_used(blocks); tile++) out.tiles.push_back(blocks.tiles + tile);
    out.first.push_back(static_cast<int64_t>(out.tiles.size()));
  }
  return out;
}

HostTiles tiles_of_columns(const Arrays& arrays, const HostTiles& of_rows) {
  HostTiles out{.tiles = {}, .first = {0}};
  for (const int32_t tile : arrays.tile_index) out.tiles.push_back(of_rows.tiles[static_cast<size_t>(tile)]);
  for (size_t column = 0; column + 1 < arrays.first_column_run.size(); column++) {
    int64_t count = 0;
    for (auto r = arrays.first_column_run[column]; r < arrays.first_column_run[column + 1]; r++) {
      const GpuBlockRun& run = arrays.column_runs[static_cast<size_t>(r)];
      if (run.tile >= 0) count += run.end - run.begin;
    }
    out.first.push_back(out.first.back() + count);
  }
  return out;
}

std::shared_ptr<GpuMaskCopy> make_copy(const Cuda& cuda, const Mask& mask) {
  Arrays arrays = arrays_of(mask);
  const auto copy = std::make_shared<GpuMaskCopy>();
  const int64_t all_bytes = arrays.tiles * static_cast<int64_t>(sizeof(BitTile));
  copy->in_panels = all_bytes > mask_budget(cuda.gpu->memory_bytes);
  copy->indexed_tiles = static_cast<int64_t>(arrays.tile_index.size());
  if (copy->in_panels) {
    copy->of_rows = tiles_of_rows(mask);
    copy->of_columns = tiles_of_columns(arrays, copy->of_rows);
    std::iota(arrays.tile_index.begin(), arrays.tile_index.end(), 0);
  }
  const size_t tile_bytes = copy->in_panels ? 0 : static_cast<size_t>(all_bytes);
  const auto bytes_of = [](const auto& items) { return (items.size() * sizeof(items[0]) + 255) / 256 * 256; };
  const size_t bytes = tile_bytes + bytes_of(arrays.first_run) + bytes_of(arrays.first_column_run) +
                       bytes_of(arrays.tile_index) + bytes_of(arrays.runs) + bytes_of(arrays.column_runs);
  copy->memory = allocate_for_all(cuda, bytes);
  char* next = static_cast<char*>(copy->memory.get());
  const auto* const tiles = reinterpret_cast<const uint32_t*>(next);
  for (int64_t row = 0; !copy->in_panels && row < block_count(mask.queries()); row++) {
    const BlockRow& blocks = mask.block_row(row);
    const size_t size = static_cast<size_t>(tiles_used(blocks)) * sizeof(BitTile);
    if (size > 0) cuda_check(cudaMemcpy(next, blocks.tiles, size, cudaMemcpyHostToDevice), "a mask");
    next += size;
  }
  const auto place = [&]<class T>(const std::vector<T>& items) {
    const T* const at = reinterpret_cast<const T*>(next);
    if (!items.empty()) {
      cuda_check(cudaMemcpy(next, items.data(), items.size() * sizeof(T), cudaMemcpyHostToDevice), "a mask");
    }
    next += bytes_of(items);
    return at;
  };
  copy->rows = {place(arrays.first_run), place(arrays.runs), tiles, nullptr};
  copy->columns = {place(arrays.first_column_run), place(arrays.column_runs), tiles,
                   place(arrays.tile_index)};
  return copy;
}

/** A block a tile, a thread a row of both. */
__global__ void __launch_bounds__(kMaskBlock)
    transpose_kernel(const uint32_t* tiles, const int32_t* index, uint32_t* to) {
  __shared__ uint4 rows[kMaskBlock];
  const int64_t tile = index != nullptr ? index[blockIdx.x] : int64_t{blockIdx.x};
  const int row = threadIdx.x;
  rows[row] = reinterpret_cast<const uint4*>(tiles + tile * 4 * kMaskBlock)[row];
  __syncthreads();
  const uint32_t* const words = reinterpret_cast<const uint32_t*>(rows) + row / 32;
  uint32_t bits[4] = {};
#pragma unroll
  for (int word = 0; word < 4; word++) {
#pragma unroll
    for (int bit = 0; bit < 32; bit++) bits[word] |= (words[(32 * word + bit) * 4] >> row % 32 & 1) << bit;
  }
  reinterpret_cast<uint4*>(to + int64_t{blockIdx.x} * 4 * kMaskBlock)[row] = {bits[0], bits[1], bits[2],
                                                                              bits[3]};
}

std::shared_ptr<GpuMaskCopy> make_transposed(const Cuda& cuda, const Mask& mask) {
  const auto straight = gpu_mask(cuda, mask);
  const auto copy = std::make_shared<GpuMaskCopy>();
  const int64_t count = straight->indexed_tiles;
  const auto memory =
      allocate_for_all(cuda, static_cast<size_t>(std::max<int64_t>(count, 1)) * sizeof(BitTile));
  copy->memory = {memory.get(), [straight, memory](void*) {}};
  copy->columns = straight->columns;
  copy->columns.tiles = static_cast<const uint32_t*>(memory.get());
  transpose_tiles(cuda, straight->columns.tiles, straight->columns.tile_index, count,
                  static_cast<uint32_t*>(memory.get()));
  // Other queues of the GPU will read it too.
  cuda_check(cudaStreamSynchronize(cuda.stream.get()), "a mask");
  return copy;
}

}  // namespace

std::shared_ptr<const GpuMaskCopy> gpu_mask(const Cuda& cuda, const Mask& mask) {
  return std::static_pointer_cast<const GpuMaskCopy>(
      mask.kept(cuda.gpu, [&]() -> std::shared_ptr<void> { return make_copy(cuda, mask); }));
}

std::shared_ptr<const GpuMaskCopy> transposed_gpu_mask(const Cuda& cuda, const Mask& mask) {
  return std::static_pointer_cast<const GpuMaskCopy>(
      mask.kept(&cuda.gpu->pool, [&]() -> std::shared_ptr<void> { return make_transposed(cuda, mask); }));
}

void transpose_tiles(const Cuda& cuda, const uint32_t* tiles, const int32_t* index, int64_t count,
                     uint32_t* to) {
  launch<transpose_kernel>(cuda, dim3(static_cast<unsigned>(count)), kMaskBlock, 0, tiles, index, to);
}

}  // namespace longseq
