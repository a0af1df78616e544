#pragma once
// The contract of the rotary embedding (Su et al., "RoFormer", 2021): pair i of a row at position p is turned
// by the angle p f_i.
//
//   y_a = factor (x_a cos(p f_i) - x_b sin(p f_i))      y_b = factor (x_b cos(p f_i) + x_a sin(p f_i))
//
// (a, b) is (2 i, 2 i + 1) where pairs are interleaved, else (i, i + R / 2); the elements behind R are
// copied. The gradient is the rotation by the negative angle.
//
// Angles are counted in turns of 2^-64: position times frequency is one product of integers, and the whole
// turns fall off its upper end. So an angle is as exact at position 2^31 as at 1: to 2^-33 of a turn, from
// frequencies that are exact to 2^-53 of their value.
#include <optional>
#include <vector>

#include "attention/attention.h"
#include "core/cpu.h"
#include "core/host_device.h"
#include "core/tensor.h"

namespace longseq {

/** The most pairs of a row: what a GPU takes as an argument of the kernel. */
inline constexpr int64_t kMostPairs = 256;

struct Rotation {
  std::vector<uint64_t> frequencies;  // of the R / 2 pairs: turns a position, times 2^64
  float factor;
  bool interleaved, inverse;
};

struct Rope {
  Tensor x /*[B S H D]*/;
  Rotation rotation;
  std::vector<Piece> pieces;              // where the S rows stand, or
  Tensor positions /*[S], [B S] int32*/;  // the same as a tensor
  Tensor y /*[B S H D]*/;
};

/** An angle by quarter turns and what is left of it, -1/8 to 1/8 of a turn. */
struct Angle {
  uint32_t quarters;
  int32_t rest;  // in turns, times 2^32
};

LONGSEQ_HOST_DEVICE inline Angle angle_of(int64_t position, uint64_t frequency) {
  const uint64_t turns = static_cast<uint64_t>(position) * frequency + (uint64_t{1} << 61);
  const auto upper = static_cast<uint32_t>(turns >> 32);
  return {upper >> 30, static_cast<int32_t>(upper & 0x3fffffff) - (1 << 29)};
}

void run(const Cpu&, const Rope&);
void run(const Cuda&, const Rope&);

/** Checks and queues. `frequencies` in radians a position; positions as starts and lengths, or as a tensor.
 */
void rope(Tensor x, std::vector<double> frequencies, double factor, bool interleaved, bool inverse,
          std::optional<std::vector<int64_t>> pieces, std::optional<Tensor> positions, Tensor y);

}  // namespace longseq
