#pragma once
// What the driver (attention_cuda.cu) hands to the kernels for compute capability 9.0.
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

/** What KeyParts are on the GPU. */
struct GpuKeySource {
  GpuRows k, v, dk, dv;
  int64_t rows;
  bool dk_float32, dv_float32;
};
struct GpuKeyParts {
  std::vector<GpuKeySource> sources;
  std::vector<KeyPart> parts;
};

/** Where keys lie: boxes of 64 columns of the sources, and which part is of which. */
struct KeyMaps {
  CUtensorMap k[kMostKeySources], v[kMostKeySources];
  int32_t parts;
  // Of each part: its first among all keys, what leads from those to its rows, and its source.
  int32_t begins[kMostKeyParts], shifts[kMostKeyParts], sources[kMostKeyParts];

  __device__ int part_of(int key) const {
    int part = parts - 1;
    while (begins[part] > key) part--;
    return part;
  }
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
  CUtensorMap q, dout;
  KeyMaps keys;
  BackwardSm80 op;
  BlockOrder order;
  // Of the sources, where they are of float32; else boxes of 16 rows, of one source at most.
  GpuRows dk_rows[kMostKeySources] = {}, dv_rows[kMostKeySources] = {};
  CUtensorMap dk = {}, dv = {};
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
/** Of keys, values, or their gradients, of which the tensor has `all`. */
template <class T>
CUtensorMap key_map(const ForwardSm80& op, const GpuRows& of, int64_t all, int rows) {
  return tensor_map(kDTypeOf<T>, of, {op.head_dim, all, op.heads / op.group, op.batch}, rows);
}

/** In boxes of so many rows. */
template <class T>
KeyMaps key_maps(const ForwardSm80& op, const GpuKeyParts& keys, int rows) {
  KeyMaps maps;
  for (size_t i = 0; i < keys.sources.size(); i++) {
    const GpuKeySource& source = keys.sources[i];
    maps.k[i] = key_map<T>(op, source.k, source.rows, rows);
    maps.v[i] = key_map<T>(op, source.v, source.rows, rows);
  }
  maps.parts = static_cast<int32_t>(keys.parts.size());
  int32_t begin = 0;
  for (size_t i = 0; i < keys.parts.size(); i++) {
    const KeyPart& part = keys.parts[i];
    maps.begins[i] = begin;
    maps.shifts[i] = static_cast<int32_t>(part.first) - begin;
    maps.sources[i] = static_cast<int32_t>(part.source);
    begin += static_cast<int32_t>(part.count);
  }
  return maps;
}

/** Keys that are all of one tensor. */
inline GpuKeyParts whole_keys(const ForwardSm80& op) {
  const GpuKeySource source{
      .k = op.k, .v = op.v, .dk = {}, .dv = {}, .rows = op.keys, .dk_float32 = false, .dv_float32 = false};
  return {{source}, {{0, 0, op.keys}}};
}
inline GpuKeyParts whole_keys(const BackwardSm80& op) {
  GpuKeyParts keys = whole_keys(op.forward);
  GpuKeySource& source = keys.sources[0];
  source.dk = op.dk;
  source.dv = op.dv;
  source.dk_float32 = op.dk_float32;
  source.dv_float32 = op.dv_float32;
  return keys;
}

/** Of bfloat16 or float16. */
void launch_forward_sm90(const Cuda& cuda, DType dtype, const ForwardSm80& op, const GpuKeyParts& keys);
/** The largest D at which dq can be summed by blocks of keys. */
inline constexpr int kMostSummedSm90 = 128;
/** Columns of dq_sum. */
int backward_columns_sm90(int head_dim);
/** Of bfloat16 or float16: dk, dv, and into dq_sum, where there is one, dq in units of 1. D is at most
 * kMostSummedSm90; above it dk and dv are the next one's. */
void launch_backward_sm90(const Cuda& cuda, DType dtype, const BackwardSm80& op, const GpuKeyParts& keys);
/** Of how many heads of keys the rows must be prepared before, if that is to prepare the others'. */
int heads_prepared_before_sm90(const Cuda& cuda, const BackwardSm80& op);
void launch_key_gradients_sm90(const Cuda& cuda, DType dtype, const BackwardSm80& op);
/** dq alone, of bfloat16 or float16. */
void launch_query_gradient_sm90(const Cuda& cuda, DType dtype, const BackwardSm80& op);

}  // namespace longseq
