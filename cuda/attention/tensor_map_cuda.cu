// Descriptions of tensors for copies of boxes (cp.async.bulk.tensor).
#include <cuda.h>

#include <algorithm>

#include "attention/attention_sm90.h"
#include "core/error.h"

namespace longseq {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

/** The driver's, looked up: the addon links nothing of it. */
Encode find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result;
  cuda_check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                              &result),
             "finding cuTensorMapEncodeTiled");
  check(result == cudaDriverEntryPointSuccess, Code::Device,
        "device: the driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<Encode>(function);
}

PartTable part_table(const std::vector<Part>& parts) {
  PartTable table{};
  table.count = static_cast<int32_t>(parts.size());
  int32_t begin = 0;
  for (size_t i = 0; i < parts.size(); i++) {
    table.begins[i] = begin;
    table.shifts[i] = static_cast<int32_t>(parts[i].first) - begin;
    table.sources[i] = static_cast<int32_t>(parts[i].source);
    begin += static_cast<int32_t>(parts[i].count);
  }
  return table;
}

}  // namespace

CUtensorMap tensor_map(DType dtype, const GpuRows& of, const std::array<int64_t, 4>& sizes, int rows,
                       int heads) {
  static const Encode encode = find_encode();
  std::array<cuuint64_t, 4> extents;
  for (size_t i = 0; i < 4; i++) extents[i] = static_cast<cuuint64_t>(std::max<int64_t>(sizes[i], 1));
  // Where there is one row, head or batch its stride means nothing.
  const auto stride = [&](int64_t of_axis, size_t axis) {
    return static_cast<cuuint64_t>(sizes[axis] > 1 ? 2 * of_axis : 16);
  };
  const std::array<cuuint64_t, 3> strides{stride(of.row, 1), stride(of.head, 2), stride(of.batch, 3)};
  const std::array<cuuint32_t, 4> box{64, static_cast<cuuint32_t>(rows), static_cast<cuuint32_t>(heads), 1},
      steps{1, 1, 1, 1};
  CUtensorMap map;
  const CUresult status = encode(
      &map, dtype == DType::Float16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4,
      of.data, extents.data(), strides.data(), box.data(), steps.data(), CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check(status == CUDA_SUCCESS, Code::Device, "device: cuTensorMapEncodeTiled: error ",
        static_cast<int>(status));
  return map;
}

KeyMaps key_maps(DType dtype, const ForwardSm80& op, const GpuKeyParts& keys, int rows) {
  KeyMaps maps;
  const auto map = [&](const GpuSource& of) {
    return tensor_map(dtype, of.rows, {op.head_dim, of.count, op.heads / op.group, op.batch}, rows);
  };
  std::ranges::transform(keys.k, maps.k, map);
  std::ranges::transform(keys.v, maps.v, map);
  maps.table = part_table(keys.parts);
  return maps;
}

QueryMaps query_maps(DType dtype, const ForwardSm80& op, const GpuQueryParts& queries, int rows) {
  QueryMaps maps;
  const auto map = [&](const GpuSource& of) {
    return tensor_map(dtype, of.rows, {op.head_dim, of.count, op.heads, op.batch}, rows);
  };
  std::ranges::transform(queries.q, maps.q, map);
  std::ranges::transform(queries.dout, maps.dout, map);
  std::ranges::copy(queries.statistics, maps.statistics);
  std::ranges::copy(queries.sums, maps.sums);
  std::ranges::transform(queries.padded, maps.padded,
                         [](int64_t rows) { return static_cast<int32_t>(rows); });
  maps.table = part_table(queries.parts);
  return maps;
}

}  // namespace longseq
