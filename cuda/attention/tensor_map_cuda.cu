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

}  // namespace longseq
