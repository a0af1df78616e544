#pragma once
// The passes over rows around attention's own kernels. Included by .cu files alone.
#include "attention/attention.h"
#include "attention/attention_sm80.h"
#include "core/cuda.h"

namespace longseq {

/** What the call has left for its splits, merged in their order, behind what it merges with. */
void merge_splits(const Cuda& cuda, const ForwardSm80& kernel, const AttentionForward& op);

/** Writes what BackwardSm80 calls statistics, padded_queries of them for each of the first `pairs` heads. */
void find_row_statistics(const Cuda& cuda, const AttentionBackward& op, int64_t padded_queries, int64_t pairs,
                         float2* to);

/** What is left of dq = sum_scale times dq_sum, which those kernels made, added to what is there where the
 * operation says so; dq is the operation's. */
void finish_query_gradient(const Cuda& cuda, const BackwardSm80& op, const Tensor& dq, Kernels made_by);

/** gradient [B S Hkv D] = the sum of each key head's shares, [B S Hkv shares D] in float32, added to what is
 * there where `adds`. */
void sum_shares(const Cuda& cuda, const float* of_shares, int shares, const Tensor& gradient, bool adds);

}  // namespace longseq
