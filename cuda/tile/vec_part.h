#pragma once
// Vectors of the elements that are left at a row's end.
#include "tile/vec.h"

namespace longseq::LONGSEQ_ISA {

/** For the lambdas that loops over vectors are made of. */
#define LONGSEQ_INLINE_LAMBDA __attribute__((always_inline))

/** The vectors of a row: f(at, count), where count is kLanes but for the last. */
template <class F>
LONGSEQ_INLINE void for_vectors(int64_t elements, F f) {
  int64_t at = 0;
  for (; at + kLanes <= elements; at += kLanes) f(at, kLanes);
  if (at < elements) f(at, static_cast<int>(elements - at));
}

/** The lanes below `count`. */
LONGSEQ_INLINE LaneMask lanes_below(int count) { return mask_of((uint64_t{1} << count) - 1); }

/** The first `count` elements, zeros in the lanes behind them. */
template <class T>
LONGSEQ_INLINE Vec load_first(const T* p, int count) {
  if (count == kLanes) return load(p);
  T values[kLanes] = {};
  for (int i = 0; i < count; i++) values[i] = p[i];
  return load(values);
}
template <class T>
LONGSEQ_INLINE Vec load_first(const T* p, int count, float behind) {
  const Vec values = load_first(p, count);
  return count == kLanes ? values : select(lanes_below(count), values, set(behind));
}

template <class T>
LONGSEQ_INLINE void store_first(T* p, Vec v, int count) {
  if (count == kLanes) return store(p, v);
  T values[kLanes];
  store(values, v);
  for (int i = 0; i < count; i++) p[i] = values[i];
}

}  // namespace longseq::LONGSEQ_ISA
