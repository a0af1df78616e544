#pragma once
// What the driver (attention_cuda.cu) hands to the kernels for compute capability 9.0.
#include <cuda.h>

#include <array>
#include <type_traits>

#include "attention/attention_sm80.h"
#include "attention/block_order.h"
#include "core/cuda.h"
#include "tile/sm80.h"

namespace longseq {

/** A launch of the forward kernel: boxes of 64 columns of q, k and v, and which tile is whose. */
struct ForwardSm90 {
  CUtensorMap q, k, v;
  ForwardSm80 op;
  BlockOrder order;
  int* counter;  // tiles that were taken, beside the first of each block; null: each block has one
};

/** A launch of a backward kernel. */
struct BackwardSm90 {
  CUtensorMap q, k, v, dout;
  BackwardSm80 op;
  BlockOrder order;
  CUtensorMap dk = {}, dv = {};  // 16 rows, where a kernel writes them so
};

/** Boxes of 64 columns, `rows` rows and `heads` heads. Sizes are those of D, S, H, B. */
CUtensorMap tensor_map(DType dtype, const GpuRows& of, const std::array<int64_t, 4>& sizes, int rows,
                       int heads = 1);

template <class T>
inline constexpr DType kDTypeOf = std::is_same_v<T, sm80::Half> ? DType::Float16 : DType::BFloat16;

/** So many rows of the queries, or of dout. */
template <class T>
CUtensorMap query_map(const ForwardSm80& op, const GpuRows& of, int rows) {
  return tensor_map(kDTypeOf<T>, of, {op.head_dim, op.queries, op.heads, op.batch}, rows);
}
/** Of the keys, the values, or their gradients. */
template <class T>
CUtensorMap key_map(const ForwardSm80& op, const GpuRows& of, int rows) {
  return tensor_map(kDTypeOf<T>, of, {op.head_dim, op.keys, op.heads / op.group, op.batch}, rows);
}

/** Of bfloat16 or float16. */
void launch_forward_sm90(const Cuda& cuda, DType dtype, const ForwardSm80& op);
/** The largest D at which dq can be summed by blocks of keys. */
inline constexpr int kMostSummedSm90 = 128;
/** Columns of dq_sum. */
int backward_columns_sm90(int head_dim);
/** Of bfloat16 or float16: dk, dv, and into dq_sum, where there is one, dq in units of 1. D is at most
 * kMostSummedSm90; above it dk and dv are the next one's. */
void launch_backward_sm90(const Cuda& cuda, DType dtype, const BackwardSm80& op);
/** Of how many heads of keys the rows must be prepared before, if that is to prepare the others'. */
int heads_prepared_before_sm90(const Cuda& cuda, const BackwardSm80& op);
void launch_key_gradients_sm90(const Cuda& cuda, DType dtype, const BackwardSm80& op);
/** dq alone, of bfloat16 or float16. */
void launch_query_gradient_sm90(const Cuda& cuda, DType dtype, const BackwardSm80& op);

}  // namespace longseq
