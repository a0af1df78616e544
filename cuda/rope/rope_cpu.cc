// The rotary embedding on the CPU: the cosines and sines of a position once for all heads, then
// y = x * cosine + (x with its pairs swapped) * sine, where the sine of a pair's first element is negative.
#include "rope/tasks.h"
#include "tile/vec.h"

namespace longseq::LONGSEQ_ISA {
namespace {

struct Turns {
  float cosine[2 * kMostPairs], sine[2 * kMostPairs];
};

/** Of the rests, on [-1/8, 1/8] of a turn: minimax, relative errors 3e-9 and 3e-8. */
LONGSEQ_INLINE Vec sine_of(Vec r) {
  const Vec square = mul(r, r);
  Vec p = fma(square, set(-75.3935699f), set(81.5923538f));
  p = fma(p, square, set(-41.3416634f));
  return mul(fma(p, square, set(6.28318548f)), r);
}
LONGSEQ_INLINE Vec cosine_of(Vec r) {
  const Vec square = mul(r, r);
  Vec p = fma(square, set(-83.5526123f), set(64.9203033f));
  p = fma(p, square, set(-19.7391472f));
  return fma(p, square, set(0.99999994f));
}

/** One cosine and sine a pair, times the factor. */
void turn(const RopeTask& task, Turns& turns) {
  int32_t rest[kMostPairs];
  uint32_t quarters[kMostPairs];
  for (int64_t i = 0; i < (task.pairs + kLanes - 1) / kLanes * kLanes; i++) {
    const Angle angle = i < task.pairs ? angle_of(task.position, task.frequencies[i]) : Angle{0, 0};
    rest[i] = angle.rest;
    quarters[i] = angle.quarters;
  }
  for (int64_t i = 0; i < task.pairs; i += kLanes) {
    const Vec r = mul(from_int(rest + i), set(0x1p-32f));
    store(turns.cosine + i, mul(cosine_of(r), set(task.factor)));
    store(turns.sine + i, mul(sine_of(r), set(task.factor)));
  }
  for (int64_t i = 0; i < task.pairs; i++) {
    const float c = turns.cosine[i], s = turns.sine[i];
    const float sine = quarters[i] & 1 ? c : s, cosine = quarters[i] & 1 ? s : c;
    turns.cosine[i] = quarters[i] == 1 || quarters[i] == 2 ? -cosine : cosine;
    turns.sine[i] = (quarters[i] >= 2) != task.inverse ? -sine : sine;
  }
}

/** One cosine and sine an element, where neighbours are pairs. */
void spread(Turns& turns, int64_t pairs) {
  for (int64_t i = pairs - 1; i >= 0; i--) {
    const float c = turns.cosine[i], s = turns.sine[i];
    turns.cosine[2 * i] = turns.cosine[2 * i + 1] = c;
    turns.sine[2 * i] = -s;
    turns.sine[2 * i + 1] = s;
  }
}

template <class T>
void rotate_neighbours(const T* x, T* y, int64_t count, const Turns& turns) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec v = read(x, i, count);
    write(y, i, count, fma(swap_pairs(v), load(turns.sine + i), mul(v, load(turns.cosine + i))));
  }
}

template <class T>
void rotate_halves(const T* x, T* y, int64_t pairs, const Turns& turns) {
  for (int64_t i = 0; i < pairs; i += kLanes) {
    const Vec a = read(x, i, pairs), b = read(x + pairs, i, pairs);
    const Vec cosine = load(turns.cosine + i), sine = load(turns.sine + i);
    write(y, i, pairs, sub(mul(a, cosine), mul(b, sine)));
    write(y + pairs, i, pairs, fma(b, cosine, mul(a, sine)));
  }
}

}  // namespace

void run(const RopeTask& task) {
  Turns turns;
  turn(task, turns);
  if (task.interleaved) spread(turns, task.pairs);
  const int64_t count = 2 * task.pairs;
  visit_float(task.dtype, [&]<class T>(T) {
    for (int64_t head = 0; head < task.heads; head++) {
      const T* const x = reinterpret_cast<const T*>(task.x) + head * task.x_stride;
      T* const y = reinterpret_cast<T*>(task.y) + head * task.y_stride;
      if (task.interleaved) {
        rotate_neighbours(x, y, count, turns);
      } else {
        rotate_halves(x, y, task.pairs, turns);
      }
      if (count < task.head_dim) {
        __builtin_memcpy(y + count, x + count, static_cast<size_t>(task.head_dim - count) * sizeof(T));
      }
    }
  });
}

}  // namespace longseq::LONGSEQ_ISA
