#pragma once
// How fast the device multiplies and adds at most: what a kernel's throughput is held against.
#include "core/cpu.h"
#include "core/tensor.h"

namespace longseq {

/** y = 10^12 floating-point operations a second, over all threads, of the products that `dtype` is multiplied
 * by. */
struct MeasurePeak {
  Tensor y;  // [1] float32
  DType dtype;
};
void run(const Cpu&, const MeasurePeak&);
void run(const Cuda&, const MeasurePeak&);

/** Multiply-adds from register to register. */
struct MultiplyAddLoop {
  int64_t rounds;
  DType dtype;
  uint32_t operand;    // as bits, so that the compiler does not know it
  float* sum;          // of what was computed, so that the compiler must
  double* operations;  // how many there were
};
LONGSEQ_CPU_KERNEL(MultiplyAddLoop)

/** Checks and queues. */
void measure_peak(Tensor y, DType dtype);

}  // namespace longseq
