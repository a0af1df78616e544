#pragma once
// Kernels with a large shape and a small one, for GPUs whose blocks have less shared memory. Included by .cu
// files alone.
#include "core/cuda.h"
#include "core/error.h"

namespace longseq {

/** What takes the place of a shape that does not fit. */
template <class Shape>
struct SmallShape : Shape {
  static_assert(Shape::kSharedBytes <= kLeastShared);
};
template <class Shape>
inline constexpr bool is_small = false;
template <class Shape>
inline constexpr bool is_small<SmallShape<Shape>> = true;

/**
 * Whether a kernel of this shape can run where this pass of the compiler's code does; where not it is no more
 * than a trap, which halves the time of a pass. LONGSEQ_CODE_FOR_86: no GPU but 8.0 runs 8.0's code.
 */
template <class Shape>
__device__ constexpr bool may_run() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ > 800 && __CUDA_ARCH__ < 900
  return Shape::kSharedBytes <= kLeastShared;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 800 && defined(LONGSEQ_CODE_FOR_86)
  return !is_small<Shape>;
#else
  return true;
#endif
}

/** launch<Shape>(), of the one that fits. */
template <class Large, class Small, class Launch>
void launch_fitting(const Cuda& cuda, const Launch& launch) {
  if (Large::kSharedBytes <= cuda.gpu->shared_bytes) {
    launch.template operator()<Large>();
  } else {
#ifdef LONGSEQ_CODE_FOR_86
    check(cuda.gpu->compute_capability != 80, Code::Device,
          "LONGSEQ_SHARED_BYTES: this build has no kernels of so little shared memory for compute capability "
          "8.0");
#endif
    launch.template operator()<SmallShape<Small>>();
  }
}

}  // namespace longseq
