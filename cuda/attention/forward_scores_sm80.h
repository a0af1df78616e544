#pragma once
// What becomes of the forward kernel's scores before they are weighed, where they are not taken as they are.
// Included by .cu files alone.
#include "attention/forward_rows_sm80.h"
#include "tile/sm80.h"

namespace longseq {

template <class S>
using ForwardScores = float[S::kRowTiles][2 * S::kGroups][4];

/** Softcap, ALiBi, and -inf where a query does not see a key. */
template <class S, bool kHasMask>
__device__ void adjust_scores(const ForwardSm80& op, const ForwardRows<S>& rows, const KeyBlock& block,
                              ForwardScores<S>& s) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < S::kRowTiles; i++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      sm80::keep_order();  // else all rows' operands are at hand at once, and the registers spill
      const int row = rows.row_of(i, half);
      if (op.score.has_softcap) {
#pragma unroll
        for (int j = 0; j < 2 * S::kGroups; j++) {
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; e++) {
            s[i][j][e] = sm80::tanh_accurate(s[i][j][e] * op.score.before_cap);
          }
        }
      }
      if (op.score.slopes != nullptr) {
        const int query = rows.query_of(min(row, rows.last_row()));
        const float slope = op.score.slopes[rows.head_of(min(row, rows.last_row()))] * op.score.slope_unit;
        const int position = query_position(op.score, op.visible, query);
#pragma unroll
        for (int j = 0; j < 2 * S::kGroups; j++) {
#pragma unroll
          for (int e = 0; e < 2; e++) {
            const int key = block.first + 8 * j + 2 * (lane % 4) + e;
            const int at = key_position(op.score, min(key, op.keys - 1));
            s[i][j][2 * half + e] -= slope * static_cast<float>(abs(position - at));
          }
        }
      }
      const int2 seen = rows.memory().intervals[row];
      const int begin = max(seen.x, rows.tile().begin) - block.first - 2 * (lane % 4);
      const int end = min(seen.y, rows.tile().end) - block.first - 2 * (lane % 4);
      constexpr int kWords = (S::kKeys + 31) / 32;
      uint32_t bits[kWords];
#pragma unroll
      for (int word = 0; word < kWords; word++) {
        bits[word] = ~0u;
        if (kHasMask && block.tile >= 0) {
          const int mask_row = rows.query_of(min(row, rows.last_row())) % 128;
          bits[word] = op.mask.tiles[(static_cast<int64_t>(block.tile) * 128 + mask_row) * 4 +
                                     block.first / 32 % 4 + word] >>
                       (2 * (lane % 4) + block.first % 32);
        }
      }
#pragma unroll
      for (int j = 0; j < 2 * S::kGroups; j++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const int at = 8 * j + e;
          if (at < begin || at >= end || (kHasMask && (bits[j / 4] >> (8 * (j % 4) + e) & 1) == 0)) {
            s[i][j][2 * half + e] = -INFINITY;
          }
        }
      }
    }
  }
}

}  // namespace longseq
