#pragma once
// A row of attention's result beside what is there already of the same row, over other keys. Included by .cu
// files alone.
#include <cmath>

namespace longseq {

/**
 * Merges two log-sum-exps of a row: `value` becomes that of both, `factor` is scaled to what the row counts
 * among both, and what is there counts the returned share.
 */
__device__ inline float merge_row(float before, float& value, float& factor) {
  const float most = fmaxf(before, value);
  if (most == -INFINITY) return 0;
  const float total = most + logf(expf(before - most) + expf(value - most));
  factor *= expf(value - total);
  value = total;
  return expf(before - total);
}

}  // namespace longseq
