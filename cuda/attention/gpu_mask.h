#pragma once
// A mask's blocks as the kernels read them: runs along the queries' rows and along the keys' columns, and
// tiles of bits. Included by .cu files alone.
#include <memory>
#include <vector>

#include "attention/attention_sm80.h"
#include "core/cuda.h"
#include "mask/mask.h"

namespace longseq {

/** A mask's tiles of bits along one of its axes, on the host. */
struct HostTiles {
  std::vector<const BitTile*> tiles;
  std::vector<int64_t> first;  // of each block row or column, and one behind the last
};

struct GpuMaskCopy {
  std::shared_ptr<void> memory;
  GpuMask rows, columns;
  int64_t indexed_tiles;  // partial blocks
  // Of a mask whose bits go through the GPU in panels (mask_panels.h): they are not among `memory`, and tiles
  // are numbered along each axis on its own.
  bool in_panels;
  HostTiles of_rows, of_columns;
};

/** The GPU's copy of a mask of kind Blocks: made once, and kept with the mask. */
std::shared_ptr<const GpuMaskCopy> gpu_mask(const Cuda& cuda, const Mask& mask);

/** The mask with queries and keys exchanged, tiles too: as above, but where it goes in panels. */
std::shared_ptr<const GpuMaskCopy> transposed_gpu_mask(const Cuda& cuda, const Mask& mask);

/** Tile i of `to` is the transpose of tile index[i], or of tile i. `to` may be `tiles` without an index. */
void transpose_tiles(const Cuda& cuda, const uint32_t* tiles, const int32_t* index, int64_t count,
                     uint32_t* to);

}  // namespace longseq
