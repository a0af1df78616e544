#pragma once
// A mask with more bits than a GPU is to keep: they go there in panels of block rows or block columns, each
// on its way while attention works at the one before. Included by .cu files alone.
#include "attention/attention_sm80.h"
#include "attention/gpu_call.h"
#include "attention/gpu_mask.h"
#include "core/cuda.h"
#include "core/thread_pool.h"

namespace longseq {

enum class MaskAxis { Rows, Columns };

/** Block rows, or block columns, [begin, end), whose bits are on the GPU. */
struct MaskPanel {
  int64_t begin, end;
  const uint32_t* tiles;  // where the mask's first tile would be

  int64_t first() const { return begin * kMaskBlock; }
  int64_t rows_of(int64_t all) const { return std::min(end * kMaskBlock, all) - first(); }
};

/** Calls launch(panel) for all panels, the first one first; `transposed`: their tiles too. */
void for_each_panel(const Cuda& cuda, const GpuMaskCopy& mask, MaskAxis axis, bool transposed,
                    FunctionRef<void(const MaskPanel&)> launch);

/** What is launched for a panel's queries alone: the forward pass, or what writes dq and nothing else. */
ForwardSm80 queries_of(const MaskPanel& panel, DType dtype, ForwardSm80 op);
BackwardSm80 queries_of(const MaskPanel& panel, DType dtype, BackwardSm80 op);

/** launch(kernel); of a mask that goes through the GPU in panels, for the queries of each. */
template <class Kernel, class Launch>
void launch_queries(const Cuda& cuda, const GpuCall& call, DType dtype, const Kernel& kernel, Launch launch) {
  if (!call.mask || !call.mask->in_panels) return launch(kernel);
  for_each_panel(cuda, *call.mask, MaskAxis::Rows, false,
                 [&](const MaskPanel& panel) { launch(queries_of(panel, dtype, kernel)); });
}

/** For a panel's keys alone. Intervals that are arrays are replaced by ones in `scratch`, of 2 x queries. */
BackwardSm80 keys_of(const Cuda& cuda, const MaskPanel& panel, DType dtype, BackwardSm80 op,
                     int32_t* scratch);

}  // namespace longseq
