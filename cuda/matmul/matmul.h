#pragma once
// The matrix product: out = op(a) op(b) + bias, or out += that. Sums in float32, rounded once.
#include <optional>

#include "core/tensor.h"

namespace longseq {

/** An operand: element (r, c) of each of the batch is at r * stride + c, transposed at c * stride + r. */
struct Matrix {
  Tensor tensor;
  int64_t stride, batch_stride;
  bool transposed;
};

/** out[b] (+)= a[b] b[b] + bias, in the letters of BLAS. */
struct Matmul {
  int64_t batch, m, n, k;
  Matrix a;     // [batch, m, k] float32, bfloat16 or float16
  Matrix b;     // [batch, k, n], the dtype of a
  Matrix out;   // [batch, m, n], the dtype of a or float32; never transposed
  Tensor bias;  // [n], the dtype of a, contiguous; or none
  bool accumulate;
};

/** y[c] (+)= sum_r x[r, c], always in the same order. */
struct ColumnSum {
  Tensor x;  // [R, C] float32, bfloat16 or float16, its last axis contiguous
  Tensor y;  // [C] float32, bfloat16 or float16, contiguous
  bool accumulate;
};

void run(const Cpu&, const Matmul&);
void run(const Cpu&, const ColumnSum&);
void run(const Cuda&, const Matmul&);
void run(const Cuda&, const ColumnSum&);

/** Throws where the engine lacks what it multiplies with: before anything is queued. */
inline void require_products(const Cpu&) {}
void require_products(const Cuda&);

/**
 * Checks and queues. a is [.., M, K] and b [K, N], or both have three axes and are a batch; `transpose_a` and
 * `transpose_b`: the last two axes are in the other order. Operands whose elements lie apart on both axes are
 * copied first.
 */
void matmul(Tensor a, Tensor b, std::optional<Tensor> bias, Tensor out, bool transpose_a, bool transpose_b,
            bool accumulate);
/** y = x weight^T + bias: x [.., I], weight [O, I], bias [O], y [.., O]. */
void linear(Tensor x, Tensor weight, std::optional<Tensor> bias, Tensor y);
/** dx = dy weight, dweight (+)= dy^T x, dbias (+)= the sum of dy's rows. */
void linear_backward(Tensor dy, std::optional<Tensor> x, Tensor weight, std::optional<Tensor> dx,
                     std::optional<Tensor> dweight, std::optional<Tensor> dbias, bool adds_to_dweight,
                     bool adds_to_dbias);
/** y = the sum of x [.., C] over all but its last axis. */
void column_sum(Tensor x, Tensor y);

}  // namespace longseq
