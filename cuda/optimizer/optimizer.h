#pragma once
// The contract of the optimiser's operations: each takes many tensors at once, and none waits for the host.
#include <limits>
#include <optional>
#include <vector>

#include "core/cpu.h"
#include "core/host_device.h"
#include "core/tensor.h"

namespace longseq {

/** Contiguous, all of one number of elements. */
struct AdamWTensors {
  Tensor parameter, first_moment, second_moment;  // float32
  Tensor gradient;                                // float32, bfloat16 or float16
  Tensor copy;                                    // the parameter in another float dtype, or none
};

/**
 * A step of AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019), in place:
 *
 *   g = gradient_scale gradient
 *   m = beta1 m + (1 - beta1) g      v = beta2 v + (1 - beta2) g^2
 *   parameter -= decay parameter + rate m / (sqrt(v) correction + epsilon)
 *
 * with decay = learning rate times weight decay, rate = learning rate / (1 - beta1^step) and correction =
 * 1 / sqrt(1 - beta2^step). Where the gradient scale is not finite nothing is changed.
 */
struct AdamW {
  std::vector<AdamWTensors> tensors;
  float rate, decay, correction, epsilon;
  float beta1, beta2, rest1, rest2;  // rest: 1 - beta
  Tensor gradient_scale /*[] float32, or none*/;
};

/** norm = the root of the sum of all tensors' squares; factor = min(1, most / norm), NaN for another norm. */
struct GlobalNorm {
  std::vector<Tensor> tensors;  // contiguous; float32, bfloat16 or float16
  Tensor norm /*[] float32*/;
  float most;
  Tensor factor /*[] float32, or none*/;
};

LONGSEQ_HOST_DEVICE inline float clip_factor(float norm, float most) {
  if (!(norm < std::numeric_limits<float>::infinity())) return std::numeric_limits<float>::quiet_NaN();
  return norm > most ? most / norm : 1;
}

/** Elements that are summed up, or updated, as one: sums are the same bits however many threads there are. */
inline constexpr int64_t kOptimizerChunk = 1 << 14;

void run(const Cpu&, const AdamW&);
void run(const Cpu&, const GlobalNorm&);
void run(const Cuda&, const AdamW&);
void run(const Cuda&, const GlobalNorm&);

/** Checks and queues. `copies` has an entry for each parameter. */
void adamw(std::vector<Tensor> parameters, std::vector<Tensor> gradients, std::vector<Tensor> first_moments,
           std::vector<Tensor> second_moments, std::vector<std::optional<Tensor>> copies, int64_t step,
           double learning_rate, double beta1, double beta2, double epsilon, double weight_decay,
           std::optional<Tensor> gradient_scale);
void global_norm(std::vector<Tensor> tensors, Tensor norm, double most, std::optional<Tensor> factor);

}  // namespace longseq
