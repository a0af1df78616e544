#pragma once
// Elementwise operations over views of any strides: y = x (converted), y = a + b, y = value,
// y ~ normal, y (+)= x * factor / divisor.
#include <memory>
#include <optional>
#include <shared_mutex>
#include <vector>

#include "core/tensor.h"

namespace longseq {

struct Copy {
  Tensor x, y;  // the same shape, any dtypes
};
struct Add {
  Tensor a, b, y;  // the same shape and dtype; y may be a or b
};
/** In float32, in the order of the terms, which are contiguous and of one shape and dtype; y is of that dtype
 * or float32. */
struct Sum {
  std::vector<Tensor> terms;
  Tensor y;
};
/** y (+)= x * (factor / max(divisor, 1)): numbers that the device alone knows, as a loss's gradient and the
 * count of what it is the mean of. What is not given is 1. */
struct Scale {
  Tensor x, factor, divisor, y;  // x and y: the same shape, any floats, y may be x; the others: one float32
  bool accumulate;
};
struct Fill {
  Tensor y;
  float value;
};
/** Element i (row-major) is a function of the seed and first + i alone: the same at every thread count, and
 * on every engine up to the last bits of its log and sine. */
struct FillNormal {
  Tensor y;
  uint64_t seed, first;
  float mean, deviation;
};
/**
 * Leave to write to memory whose owner may end before the queue does, as a worker thread with its arrays may:
 * the owner revokes it, which waits for what is being written.
 */
struct Lease {
  std::shared_mutex mutex;
  bool revoked = false;
};
/** y = x (converted), where x is Tensor::staging. */
struct WriteFrom {
  Tensor x, y;
};
/** Copies a contiguous tensor to host memory, under its owner's lease. */
struct ReadInto {
  Tensor x;
  void* destination;
  std::shared_ptr<Lease> lease;
};

void run(const Cpu&, const Copy&);
void run(const Cpu&, const Add&);
void run(const Cpu&, const Sum&);
void run(const Cpu&, const Scale&);
void run(const Cpu&, const Fill&);
void run(const Cpu&, const FillNormal&);
void run(const Cpu&, const WriteFrom&);
void run(const Cpu&, const ReadInto&);
void run(const Cuda&, const Copy&);
void run(const Cuda&, const Add&);
void run(const Cuda&, const Sum&);
void run(const Cuda&, const Scale&);
void run(const Cuda&, const Fill&);
void run(const Cuda&, const FillNormal&);
void run(const Cuda&, const WriteFrom&);
void run(const Cuda&, const ReadInto&);

/** Checks and queues. */
void copy(Tensor x, Tensor y);
void write(Tensor x, Tensor y);
void add(Tensor a, Tensor b, Tensor y);
void check_sum(const std::vector<Tensor>& terms, const Tensor& y);
void sum(std::vector<Tensor> terms, Tensor y);
void scale(Tensor x, std::optional<Tensor> factor, std::optional<Tensor> divisor, Tensor y, bool accumulate);
void fill(Tensor y, double value);
void fill_normal(Tensor y, double seed, double first, double mean, double deviation);

}  // namespace longseq
