// Cross entropy of rows that lie in the cache after their first pass.
#include "loss/loss.h"
#include "tile/vec_part.h"

namespace longseq::LONGSEQ_ISA {
namespace {

constexpr float kLog2E = 1.44269504f;

template <class T>
void forward_row(const CrossEntropyForwardRows& op, int64_t row) {
  const T* const logits = op.logits.row<const T>(row);
  const Vec nothing = set(-__builtin_inff());
  Vec highest = nothing, total = zero();
  for_vectors(op.columns, [&](int64_t at, int count) LONGSEQ_INLINE_LAMBDA {
    highest = max(load_first(logits + at, count, -__builtin_inff()), highest);
  });
  const float most = max_of(highest), base = most == -__builtin_inff() ? 0.0f : most;
  for_vectors(op.columns, [&](int64_t at, int count) LONGSEQ_INLINE_LAMBDA {
    const Vec x = sub(load_first(logits + at, count, -__builtin_inff()), set(base));
    total = add(total, exp2(mul(x, set(kLog2E))));
  });
  const float log_sum_exp = base + __builtin_logf(sum_of(total));
  op.log_sum_exp[row] = log_sum_exp;
  const int32_t target = *op.targets.row<const int32_t>(row);
  if (target == op.ignore_index) {
    op.losses[row] = 0;
  } else if (target < 0 || target >= op.columns) {
    op.losses[row] = __builtin_nanf("");
  } else {
    float x[kLanes];
    store(x, load_first(logits + target, 1));
    op.losses[row] = log_sum_exp - x[0];
  }
}

template <class T>
void backward_row(const CrossEntropyBackwardRows& op, int64_t row) {
  const T* const logits = op.logits.row<const T>(row);
  T* const dlogits = op.dlogits.row<T>(row);
  const int32_t target = *op.targets.row<const int32_t>(row);
  const bool inside = target >= 0 && target < op.columns;
  const float divisor = op.count != nullptr && *op.count > 1 ? *op.count : 1;
  const float factor = inside ? *op.dloss.row<const float>(row) / divisor : __builtin_nanf("");
  if (target == op.ignore_index) {
    for_vectors(op.columns, [&](int64_t at, int count)
                                LONGSEQ_INLINE_LAMBDA { store_first(dlogits + at, zero(), count); });
    return;
  }
  const float log_sum_exp = op.log_sum_exp[row];
  const auto probability = [&](Vec x) LONGSEQ_INLINE_LAMBDA {
    return exp2(mul(sub(x, set(log_sum_exp)), set(kLog2E)));
  };
  float at_target = 0;
  if (inside) {  // before it may be written over
    float p[kLanes];
    store(p, probability(load_first(logits + target, 1)));
    at_target = (p[0] - 1) * factor;
  }
  for_vectors(op.columns, [&](int64_t at, int count) LONGSEQ_INLINE_LAMBDA {
    store_first(dlogits + at, mul(probability(load_first(logits + at, count)), set(factor)), count);
  });
  if (inside) store_first(dlogits + target, set(at_target), 1);
}

}  // namespace

void run(const CrossEntropyForwardRows& op) {
  visit_float(op.dtype, [&]<class T>(T) {
    for (int64_t row = op.begin; row < op.end; row++) forward_row<T>(op, row);
  });
}

void run(const CrossEntropyBackwardRows& op) {
  visit_float(op.dtype, [&]<class T>(T) {
    for (int64_t row = op.begin; row < op.end; row++) backward_row<T>(op, row);
  });
}

}  // namespace longseq::LONGSEQ_ISA
