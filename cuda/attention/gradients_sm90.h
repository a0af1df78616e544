#pragma once
// What the backward kernels for compute capability 9.0 have in common: a launch's description, and how
// gradients leave the registers of a warpgroup.
#include "attention/attention_sm90.h"
#include "tile/sm80.h"
#include "tile/sum.h"

namespace longseq {

/** Of a kernel that copies S::kRows queries and S::kKeys keys at a time. */
template <class S>
BackwardSm90 backward_launch(const BackwardSm80& op, const BlockOrder& order, const GpuQueryParts& queries) {
  using T = typename S::T;
  const ForwardSm80& forward = op.forward;
  ForwardSm80 of_keys = forward;
  of_keys.group *= op.key_shares;
  return {query_maps(kDTypeOf<T>, forward, queries, S::kRows), key_map<T>(of_keys, forward.k, S::kKeys),
          key_map<T>(of_keys, forward.v, S::kKeys), op, order};
}

/**
 * Writes factor times what a product of 64 rows left in `gradient` to rows of `to`, whose element T, or float
 * where `is_float32`, may be added to. `row` is the row of elements 4 j and 4 j + 1; that of 4 j + 2 and
 * 4 j + 3 is 8 further; there are none from `rows` on.
 */
template <class T, int kCount>
__device__ void write_gradient(const float (&gradient)[kCount], const GpuRows& to, int batch, int head,
                               int row, int rows, int head_dim, float factor, bool is_float32, bool adds) {
  const int64_t base = batch * to.batch + head * to.head;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int64_t at = base + (row + 8 * half) * to.row;
    const int columns = row + 8 * half < rows ? head_dim : 0;
    const auto two = [&](int n) {
      return make_float2(gradient[4 * n + 2 * half] * factor, gradient[4 * n + 2 * half + 1] * factor);
    };
    if (is_float32) {
      put_row<kCount / 4>(static_cast<float*>(to.data) + at, columns, two, adds);
    } else {
      sm80::write_row<T, kCount / 4>(static_cast<T*>(to.data) + at, columns, two);
    }
  }
}

}  // namespace longseq
