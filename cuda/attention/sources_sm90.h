#pragma once
// A call's rows where they lie in several tensors, as the kernels for compute capability 9.0 take them.
// Included by .cu files alone.
#include <vector>

#include "attention/attention_sm90.h"
#include "attention/gpu_call.h"

namespace longseq {

/** Several tensors as the kernels take them, and what was copied for that. */
class Sources {
 public:
  template <class Input>
  Sources(const std::vector<Tensor>& given, Input input) {
    for (const Tensor& x : given) {
      inputs_.push_back(input(x));
      rows_.push_back({rows_of(inputs_.back()), x.size(1)});
    }
  }
  const std::vector<GpuSource>& rows() const { return rows_; }

 private:
  std::vector<Tensor> inputs_;
  std::vector<GpuSource> rows_;
};

}  // namespace longseq
