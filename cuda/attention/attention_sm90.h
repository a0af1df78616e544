#pragma once
// What the drivers (forward_cuda.cu, backward_cuda.cu) hand to the kernels for compute capability 9.0.
#include <cuda.h>

#include <array>
#include <type_traits>
#include <vector>

#include "attention/attention.h"
#include "attention/attention_sm80.h"
#include "attention/block_order.h"
#include "core/cuda.h"
#include "tile/sm80.h"

namespace longseq {

/** Which rows are of which tensor. */
struct PartTable {
  int32_t count;
  // Of each part: its first row among all, what leads from those to its tensor's rows, and that tensor.
  int32_t begins[kMostParts], shifts[kMostParts], sources[kMostParts];

  __device__ int part_of(int row) const {
    int part = count - 1;
    while (begins[part] > row) part--;
    return part;
  }
};

/** Keys and values of several tensors, or of one: boxes of 64 columns. */
struct KeyMaps {
  CUtensorMap k[kMostSources], v[kMostSources];
  PartTable table;
};

/** Queries, the same. */
struct QueryMaps {
  CUtensorMap q[kMostSources], dout[kMostSources];
  // As BackwardSm80 has them, and how many queries a head has there.
  const float2* statistics[kMostSources];
  float* sums[kMostSources];
  int32_t padded[kMostSources];
  PartTable table;
};

/** A launch of the forward kernel: boxes of 64 columns of q, k and v, and which tile is whose. */
struct ForwardSm90 {
  CUtensorMap q;
  KeyMaps keys;
  ForwardSm80 op;
  BlockOrder order;
  int* counter;  // tiles that were taken, beside the first of each block; null: each block has one
};

/** A launch of a backward kernel. */
struct BackwardSm90 {
  QueryMaps queries;
  CUtensorMap k, v;
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

/** Rows of several tensors that lie one behind the other, each with so many. */
struct GpuSource {
  GpuRows rows;
  int64_t count;
};
/** What KeyParts are on the GPU, or a call's own keys. */
struct GpuKeyParts {
  std::vector<GpuSource> k, v;
  std::vector<Part> parts;
};
struct GpuQueryParts {
  std::vector<GpuSource> q, dout;
  std::vector<const float2*> statistics;
  std::vector<float*> sums;
  std::vector<int64_t> padded;
  std::vector<Part> parts;
};
inline GpuKeyParts whole_keys(const ForwardSm80& op) {
  return {{{op.k, op.keys}}, {{op.v, op.keys}}, {{0, 0, op.keys}}};
}
inline GpuQueryParts whole_queries(const BackwardSm80& op) {
  const int64_t queries = op.forward.queries;
  return {{{op.forward.q, queries}}, {{op.dout, queries}}, {op.statistics}, {op.dq_sum},
          {op.padded_queries},       {{0, 0, queries}}};
}

/** In boxes of so many rows. */
KeyMaps key_maps(DType dtype, const ForwardSm80& op, const GpuKeyParts& keys, int rows);
QueryMaps query_maps(DType dtype, const ForwardSm80& op, const GpuQueryParts& queries, int rows);

/** Of bfloat16 or float16. */
void launch_forward_sm90(const Cuda& cuda, DType dtype, const ForwardSm80& op, const GpuKeyParts& keys);
/** Of bfloat16 or float16: dk, dv, and into dq_sum, where there is one, dq in units of 1. D is at most
 * kMostSummedSm90; above it dk and dv are the next one's. */
void launch_backward_sm90(const Cuda& cuda, DType dtype, const BackwardSm80& op,
                          const GpuQueryParts& queries);
/** Of how many heads of keys the rows must be prepared before, if that is to prepare the others'. */
int heads_prepared_before_sm90(const Cuda& cuda, const BackwardSm80& op);
void launch_key_gradients_sm90(const Cuda& cuda, DType dtype, const BackwardSm80& op);
/** dq alone, of bfloat16 or float16. */
void launch_query_gradient_sm90(const Cuda& cuda, DType dtype, const BackwardSm80& op);

}  // namespace longseq
