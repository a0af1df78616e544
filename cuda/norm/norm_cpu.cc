// Norms of rows that lie in the cache after their first pass: three passes forward, two backward.
#include "norm/norm.h"
#include "tile/vec_part.h"

namespace longseq::LONGSEQ_ISA {
namespace {

template <class T, class W>
void forward_row(const NormForwardRows& op, int64_t row) {
  const T* values = op.x.row<const T>(row);
  const W *const weight = static_cast<const W*>(op.weight), *const bias = static_cast<const W*>(op.bias);
  T* const out = op.out.row<T>(row);
  const float scale = op.columns > 0 ? 1.0f / static_cast<float>(op.columns) : 0.0f;
  if (op.residual) {
    const T *const x = values, *const residual = op.residual.row<const T>(row);
    T* const sum = op.sum.row<T>(row);
    for_vectors(op.columns, [&](int64_t at, int count) LONGSEQ_INLINE_LAMBDA {
      store_first(sum + at, add(load_first(x + at, count), load_first(residual + at, count)), count);
    });
    values = sum;
  }
  float mean = 0;
  if (op.mean != nullptr) {
    Vec total = zero();
    for_vectors(op.columns, [&](int64_t at, int count) LONGSEQ_INLINE_LAMBDA {
      total = add(total, load_first(values + at, count));
    });
    mean = sum_of(total) * scale;
  }
  Vec squares = zero(), rest = zero();
  for_vectors(op.columns, [&](int64_t at, int count) LONGSEQ_INLINE_LAMBDA {
    const Vec centred = sub(load_first(values + at, count, mean), set(mean));
    squares = fma(centred, centred, squares);
    rest = add(rest, centred);
  });
  float variance = sum_of(squares) * scale;
  if (op.mean != nullptr) {
    const float missed = sum_of(rest) * scale;
    mean += missed;
    variance -= missed * missed;
    op.mean[row] = mean;
  }
  const float r = 1.0f / __builtin_sqrtf(variance + op.eps);
  op.reciprocal_deviation[row] = r;
  for_vectors(op.columns, [&](int64_t at, int count) LONGSEQ_INLINE_LAMBDA {
    const Vec n = mul(sub(load_first(values + at, count), set(mean)), set(r));
    const Vec w = load_first(weight + at, count);
    const Vec y = bias != nullptr ? fma(n, w, load_first(bias + at, count)) : mul(n, w);
    store_first(out + at, y, count);
  });
}

template <class T, class W>
void backward_row(const NormBackwardRows& op, int64_t row) {
  const T *const values = op.sum.row<const T>(row), *const dout = op.dout.row<const T>(row);
  const T* const dsum = op.dsum ? op.dsum.row<const T>(row) : nullptr;
  const W* const weight = static_cast<const W*>(op.weight);
  T* const dx = op.dx.row<T>(row);
  const float scale = 1.0f / static_cast<float>(op.columns);
  const Vec mean = set(op.mean != nullptr ? op.mean[row] : 0.0f), r = set(op.reciprocal_deviation[row]);
  Vec sum_g = zero(), sum_gn = zero();
  for_vectors(op.columns, [&](int64_t at, int count) LONGSEQ_INLINE_LAMBDA {
    const Vec n = mul(sub(load_first(values + at, count), mean), r);
    const Vec dy = load_first(dout + at, count), g = mul(dy, load_first(weight + at, count));
    sum_g = add(sum_g, g);
    sum_gn = fma(g, n, sum_gn);
    store_first(op.dweight + at, fma(dy, n, load_first(op.dweight + at, count)), count);
    if (op.dbias != nullptr) store_first(op.dbias + at, add(dy, load_first(op.dbias + at, count)), count);
  });
  const Vec mean_g = set(op.mean != nullptr ? sum_of(sum_g) * scale : 0.0f);
  const Vec mean_gn = set(sum_of(sum_gn) * scale);
  for_vectors(op.columns, [&](int64_t at, int count) LONGSEQ_INLINE_LAMBDA {
    const Vec n = mul(sub(load_first(values + at, count), mean), r);
    const Vec g = mul(load_first(dout + at, count), load_first(weight + at, count));
    const Vec d = mul(r, sub(sub(g, mean_g), mul(n, mean_gn)));
    store_first(dx + at, dsum != nullptr ? add(d, load_first(dsum + at, count)) : d, count);
  });
}

/** The row functions for the operation's dtypes: f(x's element, the weight's element). */
template <class Operation, class F>
void for_dtypes(const Operation& op, F f) {
  visit_float(op.dtype, [&]<class T>(T element) {
    if (op.weight_dtype == DType::Float32) {
      f(element, float{});
    } else {
      f(element, element);
    }
  });
}

}  // namespace

void run(const NormForwardRows& op) {
  for_dtypes(op, [&]<class T, class W>(T, W) {
    for (int64_t row = op.begin; row < op.end; row++) forward_row<T, W>(op, row);
  });
}

void run(const NormBackwardRows& op) {
  for_dtypes(op, [&]<class T, class W>(T, W) {
    for (int64_t row = op.begin; row < op.end; row++) backward_row<T, W>(op, row);
  });
}

}  // namespace longseq::LONGSEQ_ISA
