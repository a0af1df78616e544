#pragma once
// What becomes of the backward kernel's scores before they are weighed. Included by .cu files alone.
#include "attention/attention_sm80.h"
#include "attention/key_blocks.h"
#include "attention/query_tiles.h"
#include "tile/sm80.h"

namespace longseq {

/** Weights are in units of 2^-12, for as float16 they pass to the warps that make dk: a weight of one in a
 * million keys would have four bits left. */
inline constexpr float kWeightBits = 12, kWeightUnit = 1.f / 4096;

/** What becomes of a tile's scores: nothing, -inf where a query does not see a key, or softcap and ALiBi too.
 */
enum class Scoring { Plain, Masked, Adjusted };

/** What a warp's keys are to a query. */
struct Seen {
  int begin, end;  // seen keys, counted from the lane's first
  uint32_t bits;   // of the keys from the lane's first on
  int position;
  float slope;
};

/** Of a row of the tile, whose query sees these keys as far as intervals go. */
template <Scoring kScoring, bool kHasMask>
__device__ Seen seen_by(const ForwardSm80& forward, const RowTile& rows, int row, int2 keys, int lane_key) {
  const int query = min(rows.first + row, forward.queries - 1);
  Seen seen{keys.x - lane_key, keys.y - lane_key, ~0u, 0, 0};
  if (kHasMask) seen.bits = mask_bits(forward.mask, rows.tile, query, lane_key);
  if (kScoring == Scoring::Adjusted && forward.score.slopes != nullptr) {
    seen.position = query_position(forward.score, forward.visible, query);
    seen.slope = forward.score.slopes[rows.head] * forward.score.slope_unit;
  }
  return seen;
}

/** Softcap, ALiBi, and -inf where the query does not see the key; returns the softcap's derivative. */
template <Scoring kScoring, bool kHasMask>
__device__ float adjust_score(const ForwardSm80& forward, float& score, const Seen& seen, int key,
                              int lane_key) {
  float derivative = 1;
  if (kScoring == Scoring::Adjusted && forward.score.has_softcap) {
    score = sm80::tanh_accurate(score * forward.score.before_cap);
    derivative = 1 - score * score;
  }
  if (kScoring == Scoring::Adjusted && forward.score.slopes != nullptr) {
    const int position = key_position(forward.score, min(lane_key + key, forward.keys - 1));
    score -= seen.slope * static_cast<float>(abs(seen.position - position));
  }
  if (key < seen.begin || key >= seen.end || (kHasMask && (seen.bits >> key & 1) == 0)) {
    score = -INFINITY;
  }
  return derivative;
}

}  // namespace longseq
