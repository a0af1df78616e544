#pragma once
// What the CPU engine's loop (rope.cc) hands to the kernel (rope_cpu.cc): one position of one batch entry.
#include "rope/rope.h"

namespace longseq {

struct RopeTask {
  DType dtype;
  const char* x;
  char* y;
  int64_t x_stride, y_stride;  // of the heads, in elements
  int64_t heads, head_dim, position;
  const uint64_t* frequencies;
  int64_t pairs;
  float factor;
  bool interleaved, inverse;
};

LONGSEQ_CPU_KERNEL(RopeTask)

}  // namespace longseq
