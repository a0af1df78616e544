// Softmax of rows: a pass for the maximum, one for the exponentials, one that divides by their sum.
#include "softmax/softmax.h"
#include "tile/vec_part.h"

namespace longseq::LONGSEQ_ISA {
namespace {

constexpr float kLog2E = 1.44269504f;

LONGSEQ_INLINE LaneMask visible_lanes(const uint8_t* mask, int count) {
  uint64_t bits = 0;
  for (int i = 0; i < count; i++) bits |= static_cast<uint64_t>(mask[i] != 0) << i;
  return mask_of(bits);
}

template <class T>
void forward_row(const SoftmaxForwardRows& op, int64_t row) {
  const T* const x = op.x.row<const T>(row);
  const uint8_t* const mask = op.mask ? op.mask.row<const uint8_t>(row) : nullptr;
  T* const out = op.out.row<T>(row);
  const int64_t seen = op.prefix.of(row);
  const Vec nothing = set(-__builtin_inff()), scale = set(op.scale);
  Vec highest = nothing;
  for_vectors(seen, [&](int64_t at, int count) LONGSEQ_INLINE_LAMBDA {
    Vec s = mul(load_first(x + at, count), scale);
    if (mask != nullptr) s = select(visible_lanes(mask + at, count), s, nothing);
    if (count < kLanes) s = select(lanes_below(count), s, nothing);
    highest = max(s, highest);
    store_first(op.exponentials + at, s, count);
  });
  const float most = max_of(highest);
  const Vec base = set(most == -__builtin_inff() ? 0.0f : most);
  Vec total = zero();
  for_vectors(seen, [&](int64_t at, int count) LONGSEQ_INLINE_LAMBDA {
    Vec e = exp2(mul(sub(load_first(op.exponentials + at, count, -__builtin_inff()), base), set(kLog2E)));
    total = add(total, e);
    store_first(op.exponentials + at, e, count);
  });
  const float sum = sum_of(total);
  const Vec share = set(sum == 0 ? 0.0f : 1.0f / sum);
  for_vectors(seen, [&](int64_t at, int count) LONGSEQ_INLINE_LAMBDA {
    store_first(out + at, mul(load_first(op.exponentials + at, count), share), count);
  });
  for_vectors(op.columns - seen, [&](int64_t at, int count)
                                     LONGSEQ_INLINE_LAMBDA { store_first(out + seen + at, zero(), count); });
}

template <class T>
void backward_row(const SoftmaxBackwardRows& op, int64_t row) {
  const T *const out = op.out.row<const T>(row), *const dout = op.dout.row<const T>(row);
  T* const dx = op.dx.row<T>(row);
  Vec products = zero();
  for_vectors(op.columns, [&](int64_t at, int count) LONGSEQ_INLINE_LAMBDA {
    products = fma(load_first(out + at, count), load_first(dout + at, count), products);
  });
  const Vec mean = set(sum_of(products)), scale = set(op.scale);
  for_vectors(op.columns, [&](int64_t at, int count) LONGSEQ_INLINE_LAMBDA {
    const Vec p = load_first(out + at, count), dp = load_first(dout + at, count);
    store_first(dx + at, mul(scale, mul(p, sub(dp, mean))), count);
  });
}

}  // namespace

void run(const SoftmaxForwardRows& op) {
  visit_float(op.dtype, [&]<class T>(T) {
    for (int64_t row = op.begin; row < op.end; row++) forward_row<T>(op, row);
  });
}

void run(const SoftmaxBackwardRows& op) {
  visit_float(op.dtype, [&]<class T>(T) {
    for (int64_t row = op.begin; row < op.end; row++) backward_row<T>(op, row);
  });
}

}  // namespace longseq::LONGSEQ_ISA
