#pragma once
// What the driver (attention_cuda.cu) hands to the kernels for compute capability 8.0 and later.
#include <cstdint>

#include "core/device.h"
#include "core/dtype.h"

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
};

/** A mask of blocks of 128 x 128 (mask/block_row.h), seen along one of its axes. */
struct GpuBlockRun {
  int32_t begin, end, tile;
};
struct GpuMask {
  const int32_t* first_run;  // of each block row, and one behind the last; null: no mask
  const GpuBlockRun* runs;
  const uint32_t* tiles;  // 128 rows of 4 words each
};

struct GpuScore {
  float scale, softcap;
  float exponent;                                  // what a final score is multiplied by, to be a power of 2
  const float* slopes;                             // ALiBi's, or null
  const int32_t *query_positions, *key_positions;  // or null: row i + shift, row j
};

struct ForwardSm80 {
  GpuRows q, k, v, out;
  GpuStatistics log_sum_exp;
  GpuIntervals visible;
  GpuMask mask;
  GpuScore score;
  int32_t batch, queries, keys, heads, group, head_dim;
  int32_t packed;          // heads whose rows stand together: row r is query r / packed of head r % packed
  int32_t splits;          // parts that the keys are cut into; each writes a partial result of its own
  int32_t heads_together;  // of which keys and values stay in the cache
  bool out_float32;
};

}  // namespace longseq
