#pragma once
// What the CPU engine's loops (matmul_host.cc, column_sum_host.cc) hand to the kernels, one copy of which
// there is for each instruction set: plain pointers, and memory that the caller owns.
#include <cstdint>

#include "core/cpu.h"
#include "core/device.h"
#include "core/dtype.h"

namespace longseq {

/** Rows of values: row i is at data + i * stride elements. */
struct Rows {
  char* data;  // null: none
  int64_t stride;
  DType dtype;
};

/** The register tile that this process multiplies with. */
struct TileShape {
  int64_t rows, columns;
  int64_t slack;  // elements that a panel of rows needs behind its last depth
};
struct FindTileShape {
  TileShape* shape;
};

/** Packs lanes [0, lanes) of an operand, over `depth` of its values, into panels of a tile's rows or columns.
 */
struct PackTask {
  const char* x;  // of lane 0, depth 0
  DType dtype;
  int64_t lane_stride, depth_stride, lanes, depth;
  bool as_rows;   // of A; else as columns of B
  bool bfloat16;  // products of bfloat16
  char* panels;
  int64_t panel_bytes;
};

/** out = addend + A B + bias of a block of C, from the panels that cover it. */
struct ProductTask {
  const char *a_panels, *b_panels;
  int64_t a_panel_bytes, b_panel_bytes;
  int64_t rows, columns, depth;
  bool bfloat16;
  const char* bias;  // of the block's first column, null: none
  DType bias_dtype;
  Rows addend, out;
  float* scratch;  // rows and columns of whole tiles
};

/** sums[c] = the sum of `rows` rows of x, for `columns` columns. */
struct ColumnSumTask {
  Rows x;
  int64_t rows, columns;
  float* sums;
};

LONGSEQ_CPU_KERNEL(FindTileShape)
LONGSEQ_CPU_KERNEL(PackTask)
LONGSEQ_CPU_KERNEL(ProductTask)
LONGSEQ_CPU_KERNEL(ColumnSumTask)

}  // namespace longseq
