// AdamW and sums of squares on the CPU: a vector at a time.
#include "optimizer/tasks.h"
#include "tile/vec.h"

namespace longseq::LONGSEQ_ISA {
namespace {

template <class Gradient, class Copy>
void update(const AdamWTask& task) {
  const AdamW& step = *task.step;
  const auto* const gradient = reinterpret_cast<const Gradient*>(task.gradient);
  auto* const copy = reinterpret_cast<Copy*>(task.copy);
  const int64_t count = task.count;
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec g = mul(read(gradient, i, count), set(task.gradient_scale));
    const Vec p = read(task.parameter, i, count);
    const Vec m = fma(set(step.rest1), g, mul(set(step.beta1), read(task.first_moment, i, count)));
    const Vec v = fma(mul(set(step.rest2), g), g, mul(set(step.beta2), read(task.second_moment, i, count)));
    const Vec change = div(mul(set(step.rate), m), fma(sqrt(v), set(step.correction), set(step.epsilon)));
    const Vec next = sub(p, fma(set(step.decay), p, change));
    write(task.first_moment, i, count, m);
    write(task.second_moment, i, count, v);
    write(task.parameter, i, count, next);
    if (copy) write(copy, i, count, next);
  }
}

template <class T>
float squares(const T* x, int64_t count) {
  Vec even = zero(), odd = zero();
  for (int64_t i = 0; i < count; i += 2 * kLanes) {
    const Vec a = read(x, i, count);
    even = fma(a, a, even);
    if (i + kLanes >= count) break;
    const Vec b = read(x, i + kLanes, count);
    odd = fma(b, b, odd);
  }
  return sum_of(add(even, odd));
}

}  // namespace

void run(const AdamWTask& task) {
  visit_float(task.gradient_dtype, [&]<class Gradient>(Gradient) {
    visit_float(task.copy_dtype, [&]<class Copy>(Copy) { update<Gradient, Copy>(task); });
  });
}

void run(const SquaresTask& task) {
  visit_float(task.dtype,
              [&]<class T>(T) { *task.sum = squares(reinterpret_cast<const T*>(task.x), task.count); });
}

}  // namespace longseq::LONGSEQ_ISA
