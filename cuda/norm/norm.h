#pragma once
// Layer norm (Ba et al., 2016) and RMS norm (Zhang and Sennrich, 2019) of rows of C elements, with the
// residual add before them:
//
//   sum = x + residual (rounded to x's dtype), or x      mean = 1/C sum_c sum_c, or 0 for RMS norm
//   r = 1 / sqrt(1/C sum_c (sum_c - mean)^2 + eps)       n = (sum - mean) r      out = n weight + bias
//
//   g = dout weight      dx = r (g - mean(g) - n mean(g n)) + dsum, for RMS norm without mean(g)
//   dweight = sum over rows of dout n                    dbias = sum over rows of dout
//
// The variance is made of differences from the mean, whose own rounding they also put right (a mean of 1000
// deviations would lose 3 digits otherwise). mean and r are kept for backward: 2 numbers a row. dx is the
// gradient of the residual too.
#include <optional>

#include "core/cpu.h"
#include "core/rows.h"
#include "core/tensor.h"

namespace longseq {

struct NormForward {
  Tensor x /*[... C]*/, residual /*[... C], or none*/;
  Tensor weight /*[C], float32 or x's dtype*/, bias /*[C], or none*/;
  float eps;
  Tensor out /*[... C]*/, sum /*[... C], with residual*/;
  Tensor mean /*[...] float32, none: RMS norm*/, reciprocal_deviation /*[...] float32*/;
};

struct NormBackward {
  Tensor sum /*[... C]*/, weight /*[C]*/, mean /*[...], none: RMS norm*/, reciprocal_deviation /*[...]*/;
  Tensor dout /*[... C]*/, dsum /*[... C], or none*/;
  Tensor dx /*[... C]*/, dweight /*[C]*/, dbias /*[C], or none*/;
};

void run(const Cpu&, const NormForward&);
void run(const Cpu&, const NormBackward&);
void run(const Cuda&, const NormForward&);
void run(const Cuda&, const NormBackward&);

/** Rows [begin, end) of a NormForward, as kernels see them. */
struct NormForwardRows {
  DType dtype, weight_dtype;
  int64_t columns, begin, end;
  float eps;
  Rows x, residual, out, sum;
  const void *weight, *bias;  // no bias: null
  float *mean, *reciprocal_deviation;
};
/** Rows [begin, end) of a NormBackward; their parts of dweight and dbias are added to float32 sums. */
struct NormBackwardRows {
  DType dtype, weight_dtype;
  int64_t columns, begin, end;
  Rows sum, dout, dsum, dx;
  const void* weight;
  const float *mean, *reciprocal_deviation;
  float *dweight, *dbias;
};
/** All rows; where the parts of dweight and dbias go is the engine's to say. */
NormForwardRows rows_of(const NormForward& op);
NormBackwardRows rows_of(const NormBackward& op);

LONGSEQ_CPU_KERNEL(NormForwardRows)
LONGSEQ_CPU_KERNEL(NormBackwardRows)

/** Check and queue. Layer norm where there is a mean. */
void norm_forward(Tensor x, std::optional<Tensor> residual, Tensor weight, std::optional<Tensor> bias,
                  double eps, Tensor out, std::optional<Tensor> sum, std::optional<Tensor> mean,
                  Tensor reciprocal_deviation);
void norm_backward(Tensor sum, Tensor weight, std::optional<Tensor> mean, Tensor reciprocal_deviation,
                   Tensor dout, std::optional<Tensor> dsum, Tensor dx, Tensor dweight,
                   std::optional<Tensor> dbias);

}  // namespace longseq
