#pragma once
// What the CPU engine's loop (optimizer.cc) hands to the kernels (optimizer_cpu.cc): a chunk of one tensor.
#include "optimizer/optimizer.h"

namespace longseq {

struct AdamWTask {
  float *parameter, *first_moment, *second_moment;
  const char* gradient;
  DType gradient_dtype;
  char* copy;  // null: none
  DType copy_dtype;
  int64_t count;
  const AdamW* step;
  float gradient_scale;
};

/** sum = the sum of the squares. */
struct SquaresTask {
  const char* x;
  DType dtype;
  int64_t count;
  float* sum;
};

LONGSEQ_CPU_KERNEL(AdamWTask)
LONGSEQ_CPU_KERNEL(SquaresTask)

}  // namespace longseq
