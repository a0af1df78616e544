#include <cstring>
#include <vector>

#include "attention/gpu_mask.h"

namespace longseq {
namespace {

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
    int32_t used = 0;
    for (int32_t r = 0; r < blocks.run_count; r++) {
      const BlockRun& run = blocks.runs[r];
      const auto tile = static_cast<int32_t>(out.tiles + run.tile);
      out.runs.push_back({run.begin, run.end, run.full() ? -1 : tile});
      if (!run.full()) used = std::max(used, run.tile + run.end - run.begin);
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
    out.tiles += used;
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

std::shared_ptr<GpuMaskCopy> make_copy(const Mask& mask) {
  const Arrays arrays = arrays_of(mask);
  const auto tile_bytes = static_cast<size_t>(arrays.tiles) * sizeof(BitTile);
  const auto bytes_of = [](const auto& items) { return (items.size() * sizeof(items[0]) + 255) / 256 * 256; };
  const size_t bytes = tile_bytes + bytes_of(arrays.first_run) + bytes_of(arrays.first_column_run) +
                       bytes_of(arrays.tile_index) + bytes_of(arrays.runs) + bytes_of(arrays.column_runs);
  // Not of the stream's pool: every queue of the GPU reads it, and cudaFree waits for them all.
  void* memory = nullptr;
  cuda_check(cudaMalloc(&memory, bytes), "memory for a mask");
  const auto copy = std::make_shared<GpuMaskCopy>();
  copy->memory = {memory, [](void* freed) { cudaFree(freed); }};
  char* next = static_cast<char*>(memory);
  for (int64_t row = 0; row < block_count(mask.queries()); row++) {
    const BlockRow& blocks = mask.block_row(row);
    int32_t used = 0;
    for (int32_t r = 0; r < blocks.run_count; r++) {
      const BlockRun& run = blocks.runs[r];
      if (!run.full()) used = std::max(used, run.tile + run.end - run.begin);
    }
    const size_t size = static_cast<size_t>(used) * sizeof(BitTile);
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
  const auto* const tiles = static_cast<const uint32_t*>(memory);
  copy->indexed_tiles = static_cast<int64_t>(arrays.tile_index.size());
  copy->rows = {place(arrays.first_run), place(arrays.runs), tiles, nullptr};
  copy->columns = {place(arrays.first_column_run), place(arrays.column_runs), tiles,
                   place(arrays.tile_index)};
  return copy;
}

/** Tile i is the transpose of tile index[i]; a thread makes one row. */
__global__ void transpose_kernel(const uint32_t* tiles, const int32_t* index, uint32_t* to) {
  const uint32_t* const from = tiles + int64_t{index[blockIdx.x]} * 512;
  const int row = threadIdx.x;
  for (int word = 0; word < 4; word++) {
    uint32_t bits = 0;
    for (int bit = 0; bit < 32; bit++) {
      bits |= (from[(32 * word + bit) * 4 + row / 32] >> row % 32 & 1) << bit;
    }
    to[int64_t{blockIdx.x} * 512 + row * 4 + word] = bits;
  }
}

std::shared_ptr<GpuMaskCopy> make_transposed(const Cuda& cuda, const Mask& mask) {
  const auto straight = gpu_mask(cuda, mask);
  const auto copy = std::make_shared<GpuMaskCopy>();
  void* memory = nullptr;
  cuda_check(cudaMalloc(&memory,
                        static_cast<size_t>(std::max<int64_t>(straight->indexed_tiles, 1)) * sizeof(BitTile)),
             "memory for a mask");
  copy->memory = {memory, [straight](void* freed) { cudaFree(freed); }};
  copy->columns = straight->columns;
  copy->columns.tiles = static_cast<const uint32_t*>(memory);
  launch<transpose_kernel>(cuda, dim3(static_cast<unsigned>(straight->indexed_tiles)), 128, 0,
                           straight->columns.tiles, straight->columns.tile_index,
                           static_cast<uint32_t*>(memory));
  // Other queues of the GPU will read it too.
  cuda_check(cudaStreamSynchronize(cuda.stream.get()), "a mask");
  return copy;
}

}  // namespace

std::shared_ptr<const GpuMaskCopy> gpu_mask(const Cuda& cuda, const Mask& mask) {
  return std::static_pointer_cast<const GpuMaskCopy>(
      mask.kept(cuda.gpu, [&]() -> std::shared_ptr<void> { return make_copy(mask); }));
}

std::shared_ptr<const GpuMaskCopy> transposed_gpu_mask(const Cuda& cuda, const Mask& mask) {
  return std::static_pointer_cast<const GpuMaskCopy>(
      mask.kept(&cuda.gpu->pool, [&]() -> std::shared_ptr<void> { return make_transposed(cuda, mask); }));
}

}  // namespace longseq
