#pragma once
// What the CPU engine's loop (activation.cc) hands to the kernels (activation_cpu.cc), one copy of which
// there is for each instruction set: some rows, a fixed number of elements apart, and some of their columns.
#include "activation/activation.h"

namespace longseq {

struct RowsOf {
  char* first;     // null: none
  int64_t stride;  // in elements
};

struct GeluForwardTask {
  DType dtype;
  GeluForm form;
  RowsOf x, y;
  const char* bias;  // null: none
  int64_t rows, columns;
};

struct GeluBackwardTask {
  DType dtype;
  GeluForm form;
  RowsOf x, dy, dx;
  const char* bias;
  float* dbias;  // dx is added to it; null: none
  int64_t rows, columns;
};

struct SwigluForwardTask {
  DType dtype;
  RowsOf gate, up, y;
  int64_t rows, columns;
};

struct SwigluBackwardTask {
  DType dtype;
  RowsOf gate, up, dy, dgate, dup;
  int64_t rows, columns;
};

LONGSEQ_CPU_KERNEL(GeluForwardTask)
LONGSEQ_CPU_KERNEL(GeluBackwardTask)
LONGSEQ_CPU_KERNEL(SwigluForwardTask)
LONGSEQ_CPU_KERNEL(SwigluBackwardTask)

}  // namespace longseq
