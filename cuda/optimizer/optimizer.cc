// Checks of the optimiser's arguments, the same for every engine, and the CPU engine's loops over chunks of
// many tensors.
#include "optimizer/optimizer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/thread_pool.h"
#include "optimizer/tasks.h"

namespace longseq {
namespace {

int64_t chunks_of(const Tensor& tensor) {
  return (tensor.elements() + kOptimizerChunk - 1) / kOptimizerChunk;
}

/** The first chunk of each tensor, and the number of all. */
template <class Elements>
std::vector<int64_t> first_chunks(const Elements& elements, const auto& tensor_of) {
  std::vector<int64_t> first{0};
  for (const auto& element : elements) first.push_back(first.back() + chunks_of(tensor_of(element)));
  return first;
}

struct Chunk {
  size_t tensor;
  int64_t first;  // element
};

Chunk chunk_of(const std::vector<int64_t>& first_chunks, int64_t index) {
  const auto behind = std::upper_bound(first_chunks.begin(), first_chunks.end(), index);
  const auto tensor = static_cast<size_t>(behind - first_chunks.begin()) - 1;
  return {tensor, (index - first_chunks[tensor]) * kOptimizerChunk};
}

void check_tensor(const Tensor& tensor, const char* name, const Tensor& parameter) {
  const auto shape = parameter.shape.begin();
  check(tensor.rank == parameter.rank && std::equal(shape, shape + parameter.rank, tensor.shape.begin()),
        Code::Shape, "adamW: ", name, " has the shape ", shape_text(tensor), ", expected ",
        shape_text(parameter), " (its parameter's)");
  check(tensor.contiguous(), Code::Shape, "adamW: ", name, " is not contiguous");
  check(tensor.device() == parameter.device(), Code::Device, "adamW: ", name,
        " is on another device than its parameter");
}

void check_float32(const Tensor& tensor, const char* name) {
  check(tensor.dtype == DType::Float32, Code::DType, name, " is ", name_of(tensor.dtype),
        ", expected float32");
}

void check_scalar(const Tensor& tensor, const char* name, const std::shared_ptr<Device>& device) {
  check_float32(tensor, name);
  check(tensor.elements() == 1, Code::Shape, name, " has the shape ", shape_text(tensor),
        ", expected one element");
  check(tensor.device() == device, Code::Device, name, " is on another device than the tensors");
}

void check_number(bool holds, const char* name, double value, const char* expected) {
  check(holds, Code::Option, "adamW: ", name, " is ", value, ", expected ", expected);
}

}  // namespace

void run(const Cpu& cpu, const AdamW& op) {
  const float scale = op.gradient_scale ? *op.gradient_scale.data<float>() : 1;
  if (!std::isfinite(scale)) return;
  const auto first =
      first_chunks(op.tensors, [](const AdamWTensors& each) -> const Tensor& { return each.parameter; });
  parallel_for(first.back(), [&](int64_t task) {
    const Chunk chunk = chunk_of(first, task);
    const AdamWTensors& of = op.tensors[chunk.tensor];
    const auto bytes_at = [&](const Tensor& tensor) {
      return tensor.data<char>() + chunk.first * size_of(tensor.dtype);
    };
    run(cpu, AdamWTask{of.parameter.data<float>() + chunk.first, of.first_moment.data<float>() + chunk.first,
                       of.second_moment.data<float>() + chunk.first, bytes_at(of.gradient), of.gradient.dtype,
                       of.copy ? bytes_at(of.copy) : nullptr, of.copy.dtype,
                       std::min(kOptimizerChunk, of.parameter.elements() - chunk.first), &op, scale});
  });
}

void run(const Cpu& cpu, const GlobalNorm& op) {
  const auto first = first_chunks(op.tensors, [](const Tensor& tensor) -> const Tensor& { return tensor; });
  const Memory scratch = allocate(cpu, static_cast<size_t>(first.back()) * sizeof(float));
  float* const sums = static_cast<float*>(scratch.data);
  parallel_for(first.back(), [&](int64_t task) {
    const Chunk chunk = chunk_of(first, task);
    const Tensor& x = op.tensors[chunk.tensor];
    run(cpu, SquaresTask{x.data<char>() + chunk.first * size_of(x.dtype), x.dtype,
                         std::min(kOptimizerChunk, x.elements() - chunk.first), sums + task});
  });
  double sum = 0;
  for (int64_t i = 0; i < first.back(); i++) sum += sums[i];
  const auto norm = static_cast<float>(std::sqrt(sum));
  *op.norm.data<float>() = norm;
  if (op.factor) *op.factor.data<float>() = clip_factor(norm, op.most);
}

void adamw(std::vector<Tensor> parameters, std::vector<Tensor> gradients, std::vector<Tensor> first_moments,
           std::vector<Tensor> second_moments, std::vector<std::optional<Tensor>> copies, int64_t step,
           double learning_rate, double beta1, double beta2, double epsilon, double weight_decay,
           std::optional<Tensor> gradient_scale) {
  const size_t count = parameters.size();
  check(gradients.size() == count, Code::Shape, "adamW: there are ", gradients.size(),
        " gradients, expected ", count, " (one a parameter)");
  check(first_moments.size() == count && second_moments.size() == count && copies.size() == count,
        Code::Shape, "adamW: there are ", first_moments.size(), ", ", second_moments.size(), " moments and ",
        copies.size(), " copies, expected ", count, " (one a parameter)");
  check(step >= 1, Code::Option, "adamW: step is ", step, ", expected 1 or more");
  check_number(std::isfinite(learning_rate) && learning_rate >= 0, "learningRate", learning_rate,
               "a finite number of 0 or more");
  check_number(beta1 >= 0 && beta1 < 1, "beta1", beta1, "0 or more and less than 1");
  check_number(beta2 >= 0 && beta2 < 1, "beta2", beta2, "0 or more and less than 1");
  check_number(std::isfinite(epsilon) && epsilon >= 0, "epsilon", epsilon, "a finite number of 0 or more");
  check_number(std::isfinite(weight_decay) && weight_decay >= 0, "weightDecay", weight_decay,
               "a finite number of 0 or more");
  if (count == 0) return;
  const auto device = parameters[0].device();
  const auto steps = static_cast<double>(step);
  AdamW op{.tensors = {},
           .rate = static_cast<float>(learning_rate / (1 - std::pow(beta1, steps))),
           .decay = static_cast<float>(learning_rate * weight_decay),
           .correction = static_cast<float>(1 / std::sqrt(1 - std::pow(beta2, steps))),
           .epsilon = static_cast<float>(epsilon),
           .beta1 = static_cast<float>(beta1),
           .beta2 = static_cast<float>(beta2),
           .rest1 = static_cast<float>(1 - beta1),
           .rest2 = static_cast<float>(1 - beta2),
           .gradient_scale = {}};
  for (size_t i = 0; i < count; i++) {
    const Tensor& parameter = parameters[i];
    check_float32(parameter, "adamW: a parameter");
    check(parameter.device() == device, Code::Device, "adamW: the parameters are on two devices");
    check_tensor(parameter, "a parameter", parameter);
    check(is_float(gradients[i].dtype), Code::DType, "adamW: a gradient is ", name_of(gradients[i].dtype),
          ", expected float32, bfloat16 or float16");
    check_tensor(gradients[i], "a gradient", parameter);
    for (const Tensor* const moment : {&first_moments[i], &second_moments[i]}) {
      check_float32(*moment, "adamW: a moment");
      check_tensor(*moment, "a moment", parameter);
    }
    if (copies[i]) {
      check(is_float(copies[i]->dtype), Code::DType, "adamW: a copy is ", name_of(copies[i]->dtype),
            ", expected float32, bfloat16 or float16");
      check_tensor(*copies[i], "a copy", parameter);
    }
    op.tensors.push_back({parameter, first_moments[i], second_moments[i], gradients[i],
                          std::move(copies[i]).value_or(Tensor{})});
  }
  if (gradient_scale) {
    check_scalar(*gradient_scale, "adamW: gradientScale", device);
    op.gradient_scale = *std::move(gradient_scale);
  }
  device->submit(std::move(op));
}

void global_norm(std::vector<Tensor> tensors, Tensor norm, double most, std::optional<Tensor> factor) {
  const auto device = norm.device();
  check_scalar(norm, "globalNorm: norm", device);
  if (factor) check_scalar(*factor, "globalNorm: factor", device);
  check(most > 0 && static_cast<float>(most) > 0, Code::Option, "globalNorm: maxNorm is ", most,
        ", expected a number above 0");
  for (const Tensor& tensor : tensors) {
    check(is_float(tensor.dtype), Code::DType, "globalNorm: a tensor is ", name_of(tensor.dtype),
          ", expected float32, bfloat16 or float16");
    check(tensor.contiguous(), Code::Shape, "globalNorm: a tensor is not contiguous");
    check(tensor.device() == device, Code::Device, "globalNorm: the tensors are on two devices");
  }
  device->submit(GlobalNorm{std::move(tensors), std::move(norm), static_cast<float>(most),
                            std::move(factor).value_or(Tensor{})});
}

}  // namespace longseq
