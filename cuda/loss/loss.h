#pragma once
// Cross entropy of rows of V logits with one target each:
//
//   logSumExp_r = ln sum_v exp x_rv      loss_r = logSumExp_r - x_rt, t = targets_r
//   count = how many targets are not ignored      loss = sum_r loss_r / max(count, 1), sum_r loss_r, or
//   loss_r dx_rv = (exp(x_rv - logSumExp_r) - [v = t]) dloss_r / max(count, 1), the divisor for the mean
//   alone
//
// An ignored target's loss and gradient are 0. A target that is neither ignored nor in [0, V) makes its row's
// loss and gradient NaN: targets are known on the device alone, where a call can no longer be refused.
// logSumExp and count are kept for backward.
#include "core/cpu.h"
#include "core/rows.h"
#include "core/tensor.h"

namespace longseq {

enum class Reduction { None, Sum, Mean };

struct CrossEntropyForward {
  Tensor logits /*[... V]*/, targets /*[...] int32*/;
  int32_t ignore_index;
  Reduction reduction;
  Tensor loss /*[...] or one element, float32*/, log_sum_exp /*[...] float32*/,
      count /*one element, float32*/;
};
struct CrossEntropyBackward {
  Tensor logits /*[... V]*/, targets /*[...]*/, log_sum_exp /*[...]*/, count /*one element*/;
  Tensor dloss /*as loss*/;
  int32_t ignore_index;
  Reduction reduction;
  Tensor dlogits /*[... V], may be logits*/;
};

void run(const Cpu&, const CrossEntropyForward&);
void run(const Cpu&, const CrossEntropyBackward&);
void run(const Cuda&, const CrossEntropyForward&);
void run(const Cuda&, const CrossEntropyBackward&);

/** loss and logSumExp of rows [begin, end), as kernels see them. */
struct CrossEntropyForwardRows {
  DType dtype;
  int64_t columns, begin, end;
  int32_t ignore_index;
  Rows logits, targets;
  float *losses, *log_sum_exp;  // losses that are not asked for go to memory of the engine's
};
/** dlogits of rows [begin, end). */
struct CrossEntropyBackwardRows {
  DType dtype;
  int64_t columns, begin, end;
  int32_t ignore_index;
  Rows logits, targets, dloss, dlogits;
  const float *log_sum_exp, *count;  // no division by count: null
};
/** All rows. */
CrossEntropyForwardRows rows_of(const CrossEntropyForward& op);
CrossEntropyBackwardRows rows_of(const CrossEntropyBackward& op);

LONGSEQ_CPU_KERNEL(CrossEntropyForwardRows)
LONGSEQ_CPU_KERNEL(CrossEntropyBackwardRows)

/** Check and queue; reduction is "none", "sum" or "mean". */
void cross_entropy_forward(Tensor logits, Tensor targets, int64_t ignore_index, std::string reduction,
                           Tensor loss, Tensor log_sum_exp, Tensor count);
void cross_entropy_backward(Tensor logits, Tensor targets, Tensor log_sum_exp, Tensor count, Tensor dloss,
                            int64_t ignore_index, std::string reduction, Tensor dlogits);

}  // namespace longseq
