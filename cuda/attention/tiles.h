#pragma once
// What the CPU engine's loop (attention_host.cc) hands to the kernels (*_cpu.cc), one copy of which there is
// for each instruction set: plain pointers into one head, and scratch that the caller owns.
#include <atomic>
#include <cstdint>

#include "core/cpu.h"
#include "core/device.h"
#include "core/division.h"
#include "core/dtype.h"
#include "mask/mask.h"

namespace longseq {

inline constexpr int64_t kPanel = 64;  // keys that are skipped, masked or taken as one: a word of mask bits
inline constexpr int64_t kLargestHeadDim = 256;
inline constexpr int64_t kWidestTile = 32;    // columns of the widest register tile
inline constexpr int64_t kMostTileRows = 12;  // rows of the tallest

/** Rows of one head: row i is the D values at data + i * stride. */
struct HeadRows {
  char* data;      // null: none
  int64_t stride;  // in elements
  DType dtype;
  bool adds = false;  // what is written is added to what is there, of float32
};

/** The interval of keys of each query, cut down by a mask that may be null. */
struct VisibleKeys {
  const int32_t *begin, *end;
  const Mask* mask;
};

struct HeadScore {
  float scale, softcap, slope;                     // softcap 0 and slope 0: none
  const int32_t *query_positions, *key_positions;  // only where there is a slope
};

/** Bytes of a head's keys (or values) packed into panels, for any instruction set. */
inline int64_t packed_bytes(int64_t rows, int64_t head_dim) {
  return round_up(rows, kPanel) * round_up(head_dim, kWidestTile) * 4;
}

/** Packs the keys and values [first, last) of a head; first is a multiple of kPanel, rows behind `rows` count
 * as 0. */
struct PackKeysTask {
  HeadRows keys, values;
  int64_t rows, first, last;
  int head_dim;
  bool bfloat16;  // products of bfloat16
  char *packed_keys, *packed_values;
};

/** Attention of the queries [first_query, last_query) over the keys [first_key, last_key) of one head. */
struct ForwardTask {
  HeadRows q, out;
  float* log_sum_exp;  // of the head's first query
  const char *packed_keys, *packed_values;
  VisibleKeys visible;
  HeadScore score;
  int64_t keys, first_query, last_query, first_key, last_key;
  int head_dim;
  bool bfloat16;
  char* scratch;
};
inline constexpr int64_t kForwardQueries = 192;  // the most queries of a task

int64_t forward_scratch_bytes(int64_t head_dim);

/** delta = rowsum(dout * out) - dlogSumExp of the queries [first, last) of a head. */
struct DeltaTask {
  HeadRows out, dout;
  const float* dlog_sum_exp;  // null: none
  float* delta;
  int64_t first, last;
  int head_dim;
};

inline constexpr int64_t kBackwardKeys = 192, kBackwardQueries = 96;  // of a block, of a tile

/** What one query head gives to the gradient of a block of keys. */
struct BackwardHead {
  HeadRows q, dout;
  const float *log_sum_exp, *delta;
  float* dq;  // [Sq][round_up(D, kWidestTile)], sums
  std::atomic<int32_t>*
      progress;  // a counter a tile of queries: the block of keys whose turn it is to add to dq
  HeadScore score;
};

/** The gradient of the keys [first_key, last_key) of one key head, from the query heads that share it. */
struct BackwardTask {
  const BackwardHead* heads;
  int head_count;
  HeadRows k, v, dk, dv;
  VisibleKeys visible;
  /** For each tile of queries: the blocks of keys [begin, end) that it sees something of. */
  const Interval* tile_blocks;
  int64_t queries, keys, first_key, last_key;
  int64_t first_tile, last_tile;  // tiles of queries that see something of this block
  int head_dim;
  bool bfloat16;
  char* scratch;
};
int64_t backward_scratch_bytes(int64_t head_dim);

/** Writes dq = scale * sums of the queries [first, last) of a head. */
struct WriteTask {
  const float* sums;
  float scale;
  HeadRows out;
  int64_t first, last;
  int head_dim;
};

LONGSEQ_CPU_KERNEL(PackKeysTask)
LONGSEQ_CPU_KERNEL(ForwardTask)
LONGSEQ_CPU_KERNEL(DeltaTask)
LONGSEQ_CPU_KERNEL(BackwardTask)
LONGSEQ_CPU_KERNEL(WriteTask)

}  // namespace longseq
