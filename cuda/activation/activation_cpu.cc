// The activations on the CPU: a vector at a time, in float32.
#include "activation/formulas.h"
#include "activation/tasks.h"
#include "tile/vec.h"

namespace longseq::LONGSEQ_ISA {
namespace {

struct VectorVerbs {
  using Number = Vec;
  LONGSEQ_FORMULA Vec set(float x) { return LONGSEQ_ISA::set(x); }
  LONGSEQ_FORMULA Vec add(Vec a, Vec b) { return LONGSEQ_ISA::add(a, b); }
  LONGSEQ_FORMULA Vec sub(Vec a, Vec b) { return LONGSEQ_ISA::sub(a, b); }
  LONGSEQ_FORMULA Vec mul(Vec a, Vec b) { return LONGSEQ_ISA::mul(a, b); }
  LONGSEQ_FORMULA Vec fma(Vec a, Vec b, Vec c) { return LONGSEQ_ISA::fma(a, b, c); }
  LONGSEQ_FORMULA Vec min(Vec a, Vec b) { return LONGSEQ_ISA::min(a, b); }
  LONGSEQ_FORMULA Vec max(Vec a, Vec b) { return LONGSEQ_ISA::max(a, b); }
  LONGSEQ_FORMULA Vec abs(Vec a) { return LONGSEQ_ISA::abs(a); }
  LONGSEQ_FORMULA Vec exp2(Vec a) { return LONGSEQ_ISA::exp2(a); }
  LONGSEQ_FORMULA Vec reciprocal(Vec a) { return LONGSEQ_ISA::div(LONGSEQ_ISA::set(1), a); }
  LONGSEQ_FORMULA Vec where_negative(Vec z, Vec a, Vec b) { return select(sign_of(z), a, b); }
};
using Activation = Formulas<VectorVerbs>;

template <class T>
LONGSEQ_INLINE T* row_of(const RowsOf& rows, int64_t row) {
  return reinterpret_cast<T*>(rows.first) + row * rows.stride;
}

template <class Gelu, class T>
void gelu_forward(const GeluForwardTask& task) {
  const T* const bias = reinterpret_cast<const T*>(task.bias);
  for (int64_t row = 0; row < task.rows; row++) {
    const T* const x = row_of<const T>(task.x, row);
    T* const y = row_of<T>(task.y, row);
    for (int64_t i = 0; i < task.columns; i += kLanes) {
      Vec z = read(x, i, task.columns);
      if (bias) z = add(z, read(bias, i, task.columns));
      write(y, i, task.columns, Gelu::value(z));
    }
  }
}

template <class Gelu, class T>
void gelu_backward(const GeluBackwardTask& task) {
  const T* const bias = reinterpret_cast<const T*>(task.bias);
  for (int64_t row = 0; row < task.rows; row++) {
    const T *const x = row_of<const T>(task.x, row), *const dy = row_of<const T>(task.dy, row);
    T* const dx = row_of<T>(task.dx, row);
    for (int64_t i = 0; i < task.columns; i += kLanes) {
      Vec z = read(x, i, task.columns);
      if (bias) z = add(z, read(bias, i, task.columns));
      const Vec dz = mul(read(dy, i, task.columns), Gelu::gradient(z));
      write(dx, i, task.columns, dz);
      if (task.dbias) write(task.dbias, i, task.columns, add(read(task.dbias, i, task.columns), dz));
    }
  }
}

template <class T>
void swiglu_forward(const SwigluForwardTask& task) {
  for (int64_t row = 0; row < task.rows; row++) {
    const T *const gate = row_of<const T>(task.gate, row), *const up = row_of<const T>(task.up, row);
    T* const y = row_of<T>(task.y, row);
    for (int64_t i = 0; i < task.columns; i += kLanes) {
      const Vec u = read(up, i, task.columns);
      write(y, i, task.columns, mul(Activation::silu(read(gate, i, task.columns)), u));
    }
  }
}

template <class T>
void swiglu_backward(const SwigluBackwardTask& task) {
  for (int64_t row = 0; row < task.rows; row++) {
    const T *const gate = row_of<const T>(task.gate, row), *const up = row_of<const T>(task.up, row);
    const T* const dy = row_of<const T>(task.dy, row);
    T *const dgate = row_of<T>(task.dgate, row), *const dup = row_of<T>(task.dup, row);
    for (int64_t i = 0; i < task.columns; i += kLanes) {
      const Vec g = read(gate, i, task.columns), d = read(dy, i, task.columns);
      const Vec du = mul(d, read(up, i, task.columns));
      write(dgate, i, task.columns, mul(du, Activation::silu_gradient(g)));
      write(dup, i, task.columns, mul(d, Activation::silu(g)));
    }
  }
}

}  // namespace

void run(const GeluForwardTask& task) {
  visit_float(task.dtype, [&]<class T>(T) {
    task.form == GeluForm::Tanh ? gelu_forward<Activation::Tanh, T>(task)
                                : gelu_forward<Activation::Erf, T>(task);
  });
}

void run(const GeluBackwardTask& task) {
  visit_float(task.dtype, [&]<class T>(T) {
    task.form == GeluForm::Tanh ? gelu_backward<Activation::Tanh, T>(task)
                                : gelu_backward<Activation::Erf, T>(task);
  });
}

void run(const SwigluForwardTask& task) {
  visit_float(task.dtype, [&]<class T>(T) { swiglu_forward<T>(task); });
}

void run(const SwigluBackwardTask& task) {
  visit_float(task.dtype, [&]<class T>(T) { swiglu_backward<T>(task); });
}

}  // namespace longseq::LONGSEQ_ISA
