// Which of the kernels for compute capability 8.0 and later a call of 16-bit elements takes.
#include "attention/attention_sm80.h"
#include "attention/backward_scores_sm80.h"

namespace longseq {

void launch_forward_sm80(const Cuda& cuda, DType dtype, const ForwardSm80& op) {
  if (dtype == DType::BFloat16) {
    launch_forward_bfloat16_sm80(cuda, op);
  } else {
    launch_forward_float16_sm80(cuda, op);
  }
}

int backward_columns_sm80(int head_dim) {
  return head_dim <= 64 ? 64 : head_dim <= 80 ? 80 : head_dim <= 96 ? 96 : head_dim <= 128 ? 128 : 256;
}

float backward_sum_unit_sm80(DType dtype) { return dtype == DType::Float16 ? 1 : kWeightUnit; }

void launch_backward_sm80(const Cuda& cuda, DType dtype, const BackwardSm80& op) {
  if (dtype == DType::BFloat16) {
    launch_backward_bfloat16_sm80(cuda, op);
  } else {
    launch_backward_float16_sm80(cuda, op);
  }
}

}  // namespace longseq
