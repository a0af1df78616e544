#pragma once
// What the drivers (forward_cuda.cu, backward_cuda.cu) hand to the kernels for compute capability 8.0 and
// later.
#include <vector_types.h>

#include <cstdint>

#include "core/device.h"
#include "core/dtype.h"
#include "core/host_device.h"

namespace longseq {

/** Rows of a [B S H D] tensor; strides in elements, D contiguous, every row 16-byte aligned. */
struct GpuRows {
  void* data;
  int64_t batch, row, head;
};

/** Of a [B H S] tensor of float32. */
struct GpuStatistics {
  float* data;
  int64_t batch, head;
};

/** Query i sees the keys [begin, end): from an array, or where there is none [i - left, i + right] + shift.
 */
struct GpuIntervals {
  const int32_t *begin, *end;
  int32_t shift, left, right;  // INT32_MAX: unbounded
  int32_t most;                // keys of a query, at most, as far as is known before the kernel runs
};

/** A mask of blocks of 128 x 128 (mask/block_row.h), seen along one of its axes. */
struct GpuBlockRun {
  int32_t begin, end, tile;
};
struct GpuMask {
  const int32_t* first_run;  // of each block row, and one behind the last; null: no mask
  const GpuBlockRun* runs;
  const uint32_t* tiles;      // 128 rows of 4 words each
  const int32_t* tile_index;  // runs along the keys: where a run's tiles are among these
};

struct GpuScore {
  bool has_softcap;
  float before_cap;     // what a product is multiplied by before its hyperbolic tangent is taken
  float exponent;       // what turns a final score, or a product where that is the same, into a power of 2
  float slope_unit;     // of ALiBi's slopes, beside those scores
  const float* slopes;  // ALiBi's, or null
  const int32_t *query_positions, *key_positions;  // or null: row i + shift, row j
};

struct ForwardSm80 {
  GpuRows q, k, v, out;
  GpuStatistics log_sum_exp;  // as out, what backward reads
  GpuIntervals visible;
  GpuMask mask;
  GpuScore score;
  int32_t batch, queries, keys, heads, group, head_dim;
  int32_t packed;          // heads whose rows stand together: row r is query r / packed of head r % packed
  int32_t packed_inverse;  // 2^16 / packed, rounded up
  int32_t splits;          // parts that the keys are cut into; each writes a partial result of its own
  bool out_float32;
  bool is_beside_others;  // calls on other streams, which fill what it leaves of the GPU when it ends
  bool keys_in_parts;  // then a block of keys begins at a multiple of its size: such a block is of one part
  GpuRows before;      // of float32: merged with, as log_sum_exp is with what it holds; or none

  /** The query of a tile's row, rows counted from a query's first head on: by a product, for divisions are
   * long. */
  LONGSEQ_HOST_DEVICE int packed_query(int row) const { return row * packed_inverse >> 16; }
};

/** How far the rows of the query heads that share keys are, while a backward kernel runs. */
struct alignas(16) HeadProgress {
  int32_t added;     // blocks that have added all of theirs to the sums of dq
  int32_t taken;     // tiles of rows whose sums have become dq, or are about to
  int32_t prepared;  // warps that have prepared their share of its section's rows; of a section's first head
};

struct BackwardSm80 {
  ForwardSm80 forward;  // its packed and splits are 1
  GpuRows dout, dq, dk, dv;
  GpuStatistics dlog_sum_exp;  // or null
  // Of each query, padded_queries of them a head: log-sum-exp in powers of 2 (inf where nothing is seen, and
  // behind the last query), and rowsum(dout * out) - dlogSumExp.
  float2* statistics;
  float* dq_sum;    // [B Hq padded_queries dq_columns]; zero at first; null: dq is another kernel's
  int dq_columns;   // D rounded up as the kernel's is
  float sum_scale;  // from sums to dq
  // [B Hkv], zero at first; null: dq, which the kernel cannot write, is left to others.
  HeadProgress* progress;
  // Only the rows of the first two sections' heads (block_order.h) are prepared, statistics made and sums
  // zero: the kernel prepares each further section's while the second before it runs.
  bool prepares;
  // [B Hq padded_queries / 16] counters, zero at first: the block of keys whose turn it is to add to these
  // queries' dq; null: blocks add in any order.
  int32_t* dq_turns;
  int64_t padded_queries;
  // So many blocks have the same keys, each with a part of the query heads that share these: forward.group
  // are of one, key heads as many more, and each has gradients of its own.
  int32_t key_shares;
  int32_t first_key_block;  // of the mask's 128 keys; not 0 where keys are a part of those that it has
  GpuMask mask_columns;     // the mask's blocks along the keys, of its own tiles
  GpuMask mask_transposed;  // the same with tiles of their own, whose rows are keys; for float32
  float scale;
  float dq_sign;  // that of the scale, where dq is written as it is made
  bool dq_float32, dk_float32, dv_float32;
  bool adds_to_dq, adds_to_dk, adds_to_dv;  // of float32: to what is there
};

/** Of bfloat16 or float16. */
void launch_forward_sm80(const Cuda& cuda, DType dtype, const ForwardSm80& op);
void launch_forward_bfloat16_sm80(const Cuda& cuda, const ForwardSm80& op);
void launch_forward_float16_sm80(const Cuda& cuda, const ForwardSm80& op);
/** Columns of dq_sum. */
int backward_columns_sm80(int head_dim);
/** What the kernel's sums of dq are in. */
float backward_sum_unit_sm80(DType dtype);
void launch_backward_sm80(const Cuda& cuda, DType dtype, const BackwardSm80& op);
void launch_backward_bfloat16_sm80(const Cuda& cuda, const BackwardSm80& op);
void launch_backward_float16_sm80(const Cuda& cuda, const BackwardSm80& op);
/** Of float32, as accurate as the CPU's. */
void launch_forward_float32(const Cuda& cuda, const ForwardSm80& op);
void launch_query_gradient_float32(const Cuda& cuda, const BackwardSm80& op);  // dq
void launch_key_gradients_float32(const Cuda& cuda, const BackwardSm80& op);   // dk, dv

}  // namespace longseq
