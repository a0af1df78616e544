#pragma once
// A mask's blocks as the kernels read them: runs along the queries' rows and along the keys' columns, and
// tiles of bits.
#include "attention/attention_sm80.h"
#include "core/cuda.h"
#include "mask/mask.h"

namespace longseq {

struct GpuMaskCopy {
  std::shared_ptr<void> memory;
  GpuMask rows, columns;
  int64_t indexed_tiles;  // partial blocks
};

/** The GPU's copy of a mask of kind Blocks: made once, and kept with the mask. */
std::shared_ptr<const GpuMaskCopy> gpu_mask(const Cuda& cuda, const Mask& mask);

/** The mask with queries and keys exchanged, tiles too: as above. */
std::shared_ptr<const GpuMaskCopy> transposed_gpu_mask(const Cuda& cuda, const Mask& mask);

}  // namespace longseq
