#pragma once
// Flash attention backward of float32 (mma.sync of tf32 pairs, tile/tf32.h), as accurate as float32
// arithmetic.
//
//   P = exp2(c S - lse)     dP = dout v^T     dS = P * (dP - delta)
//   dv = P^T dout     dk = dS^T q     dq = dS k
//
// Nothing is summed across blocks, so results are the same bits each time: one kernel makes dq
// (query_gradient_float32_sm80.cu), another dk and dv (key_gradients_float32_sm80.cu); S and dP are computed
// in both. This is what they share. Included by .cu files alone.
#include "attention/attention_sm80.h"
#include "core/cuda.h"
#include "tile/tf32.h"

namespace longseq {

/** Of a warp; in shared memory, since the registers are taken by operands. */
struct ColumnLimits {
  int seen_begin, seen_end;    // columns that have to do with a row of the warp
  int plain_begin, plain_end;  // first columns of the blocks that need no look at who sees what
};

/** Columns are of S, or of its transpose: what is streamed. */
template <int kHeadDim_, int kWarps_, int kColumns_, int kStages_, int kBlocks_>
struct BackwardShape {
  static constexpr int kHeadDim = kHeadDim_, kWarps = kWarps_, kColumns = kColumns_, kStages = kStages_,
                       kBlocks = kBlocks_;
  static constexpr int kThreads = 32 * kWarps, kRows = 16 * kWarps, kPitch = sm80::float32_pitch(kHeadDim);
  static constexpr int kTileBytes = kColumns * kPitch, kStageBytes = 2 * kTileBytes;
  static constexpr int kRowsAt = kStages * kStageBytes, kRowsBytes = kRows * kPitch;
};

/** From a product of a query and a key, and dP, to P and dS but for the scale. */
__device__ inline void differentiate(float& s, float& dp, const GpuScore& score, bool is_visible, float bias,
                                     float log2_sum_exp, float delta) {
  float slope = 1;
  if (score.has_softcap) {
    s = tanhf(s * score.before_cap);
    slope = fmaf(-s, s, 1);
  }
  const float p = sm80::exp2_approximate(fmaf(s - bias, score.exponent, -log2_sum_exp));
  s = is_visible ? p : 0;
  dp = is_visible ? p * (dp - delta) * slope : 0;
}
__device__ inline void differentiate(float& s, float& dp, float exponent, float log2_sum_exp, float delta) {
  s = sm80::exp2_approximate(fmaf(s, exponent, -log2_sum_exp));
  dp = s * (dp - delta);
}

/** d score / d product but for the softcap's slope, where a score is a natural one. */
__device__ inline float scale_of(const GpuScore& score) {
  constexpr float kLn2 = 0.6931471805599453f;
  return score.exponent * kLn2 * (score.has_softcap ? score.before_cap : 1);
}

__device__ inline float2 statistics_of(const BackwardSm80& op, int batch, int head, int query) {
  return op.statistics[(int64_t{batch} * op.forward.heads + head) * op.padded_queries + query];
}

__device__ inline float* head_of(const GpuRows& rows, int batch, int head) {
  return static_cast<float*>(rows.data) + batch * rows.batch + head * rows.head;
}

/** Whether a multiprocessor's shared memory has room for all the blocks that its registers have room for. */
template <class S>
bool has_room(const Cuda& cuda) {
  constexpr int kReserved = 1 << 10;  // of each block, by the system
  return S::kBlocks * (S::kSharedBytes + kReserved) <= cuda.gpu->shared_bytes + kReserved;
}

template <class... Shapes>
constexpr bool fit_anywhere() {
  return ((Shapes::kSharedBytes <= kLeastShared) && ...);
}
}  // namespace longseq
