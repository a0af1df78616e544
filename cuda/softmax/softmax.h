#pragma once
// Softmax of rows of C elements, scaled and masked:
//
//   s_c = scale x_c      out_c = exp(s_c) / sum of exp(s) over the visible columns, and 0 where c is not
//   visible dx_c = scale out_c (dout_c - sum_c out_c dout_c)
//
// Nothing visible (or all of it -inf) gives a row of zeros. Causal: row i of [Sq, C] sees the columns up to i
// + C - Sq, as in attention. Backward needs the output alone: what was not visible is 0 there.
#include <optional>

#include "core/cpu.h"
#include "core/rows.h"
#include "core/tensor.h"

namespace longseq {

struct SoftmaxForward {
  Tensor x /*[... C]*/, mask /*[... C] uint8, 0: not visible, broadcast by strides of 0; or none*/;
  float scale;
  bool causal;
  Tensor out /*[... C]*/;
};
struct SoftmaxBackward {
  Tensor out /*[... C]*/, dout /*[... C]*/;
  float scale;
  Tensor dx /*[... C]*/;
};

void run(const Cpu&, const SoftmaxForward&);
void run(const Cpu&, const SoftmaxBackward&);
void run(const Cuda&, const SoftmaxForward&);
void run(const Cuda&, const SoftmaxBackward&);

/** How many columns the causal rule lets each row see: a prefix. */
struct CausalPrefix {
  bool causal = false;
  int64_t columns = 0;
  Divisor queries;

  LONGSEQ_HOST_DEVICE __attribute__((always_inline)) int64_t of(int64_t row) const {
    if (!causal) return columns;
    const int64_t seen = row - queries.quotient(row) * queries.value + columns - queries.value + 1;
    return seen > 0 ? seen : 0;
  }
};

/** Rows [begin, end) of a SoftmaxForward, as kernels see them. */
struct SoftmaxForwardRows {
  DType dtype;
  int64_t columns, begin, end;
  float scale;
  CausalPrefix prefix;
  Rows x, mask, out;
  float* exponentials;  // [columns], scratch of the CPU's
};
/** Rows [begin, end) of a SoftmaxBackward. */
struct SoftmaxBackwardRows {
  DType dtype;
  int64_t columns, begin, end;
  float scale;
  Rows out, dout, dx;
};
/** All rows. */
SoftmaxForwardRows rows_of(const SoftmaxForward& op);
SoftmaxBackwardRows rows_of(const SoftmaxBackward& op);

LONGSEQ_CPU_KERNEL(SoftmaxForwardRows)
LONGSEQ_CPU_KERNEL(SoftmaxBackwardRows)

/** Check and queue. The mask is broadcast to x's shape: axes are aligned at the last, 1 stands for any size.
 */
void softmax_forward(Tensor x, std::optional<Tensor> mask, double scale, bool causal, Tensor out);
void softmax_backward(Tensor out, Tensor dout, double scale, Tensor dx);

}  // namespace longseq
