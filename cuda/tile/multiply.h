#pragma once
// A warp's product of two matrices, whose fragments are loaded before they are needed.
#include "tile/sm80.h"

namespace longseq::sm80 {

using Fragment = uint32_t[4];

/**
 * c += a b, `kSteps` times 16 deep: left(step, begins) gives the fragments of a, load(to, step, n) those of
 * 16 columns of b, kAhead before their turn; beside(step, n) is what else is done while they are multiplied.
 *
 * One loop over both is more than the compiler unrolls at D 256, and c would lie in local memory.
 */
template <class T, int kSteps, int kAhead, int kLeft, int kTiles, class Left, class Load, class Beside>
__device__ void multiply(float (&c)[kLeft][kTiles][4], Left left, Load load, Beside beside) {
  constexpr int kPairs = kTiles / 2;
  Fragment right[kAhead + 1];
#pragma unroll
  for (int at = 0; at < kAhead; at++) load(right[at], at / kPairs, at % kPairs);
#pragma unroll
  for (int step = 0; step < kSteps; step++) {
#pragma unroll
    for (int n = 0; n < kPairs; n++) {
      const int at = step * kPairs + n, later = at + kAhead;
      if (later < kSteps * kPairs) load(right[later % (kAhead + 1)], later / kPairs, later % kPairs);
      const auto& a = left(step, n == 0);
      const Fragment& b = right[at % (kAhead + 1)];
#pragma unroll
      for (int i = 0; i < kLeft; i++) multiply_add<T>(c[i][2 * n], a[i], b[0], b[1]);
#pragma unroll
      for (int i = 0; i < kLeft; i++) multiply_add<T>(c[i][2 * n + 1], a[i], b[2], b[3]);
      beside(step, n);
    }
  }
}
template <class T, int kSteps, int kAhead, int kLeft, int kTiles, class Left, class Load>
__device__ void multiply(float (&c)[kLeft][kTiles][4], Left left, Load load) {
  multiply<T, kSteps, kAhead>(c, left, load, [](int, int) {});
}

/** Left fragments in shared memory from step kFirst on, loaded a step ahead by load(to, step). */
template <int kSteps, int kLeft, class Load, int kFirst = 0>
class LoadedLeft {
 public:
  __device__ explicit LoadedLeft(Load load) : load_(load) {
    if constexpr (kFirst == 0) load_(fragments_[0], 0);
  }
  /** Before a step is multiplied, those before kFirst too. */
  __device__ void prepare(int step) {
    if (step + 1 >= kFirst && step + 1 < kSteps) load_(fragments_[(step + 1) % 2], step + 1);
  }
  __device__ const Fragment (&at(int step) const)[kLeft] { return fragments_[step % 2]; }
  __device__ const Fragment (&operator()(int step, bool begins))[kLeft] {
    if (begins) prepare(step);
    return at(step);
  }

 private:
  Load load_;
  Fragment fragments_[2][kLeft];
};
template <int kSteps, int kLeft, int kFirst = 0, class Load>
__device__ auto loaded_left(Load load) {
  return LoadedLeft<kSteps, kLeft, Load, kFirst>(load);
}

}  // namespace longseq::sm80
