// Partial results of attention merged by their log-sum-exp, in float32.
#include <cstring>

#include "attention/gpu_call.h"
#include "attention/gpu_passes.h"
#include "core/division.h"

namespace longseq {
namespace {

constexpr int kThreads = 256;

__device__ float load_element(const void* data, DType dtype, int64_t at) {
  switch (dtype) {
    case DType::BFloat16:
      return static_cast<const BFloat16*>(data)[at];
    case DType::Float16:
      return static_cast<const Float16*>(data)[at];
    default:
      return static_cast<const float*>(data)[at];
  }
}

__device__ void store_element(void* data, DType dtype, int64_t at, float value) {
  switch (dtype) {
    case DType::BFloat16:
      static_cast<BFloat16*>(data)[at] = BFloat16::from(value);
      break;
    case DType::Float16:
      static_cast<Float16*>(data)[at] = Float16::from(value);
      break;
    default:
      static_cast<float*>(data)[at] = value;
  }
}

/** A warp a row. The whole may be one of the parts: a row is written when all of the warp have read it. */
__global__ void merge_kernel(const GpuPart* parts, int count, GpuRows out, DType dtype,
                             GpuStatistics log_sum_exp, int queries, int heads, int head_dim, int64_t rows) {
  const int64_t index = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (index >= rows) return;
  const int64_t query = index / heads % queries, head = index % heads, batch = index / heads / queries;
  float most = -INFINITY;
  for (int p = 0; p < count; p++) {
    const GpuStatistics& part = parts[p].log_sum_exp;
    const float value = part.data[batch * part.batch + head * part.head + query];
    most = isnan(value) || value > most ? value : most;
  }
  float values[8] = {}, sum = 0;
  for (int p = 0; p < count && most != -INFINITY; p++) {
    const GpuPart& part = parts[p];
    const float weight = expf(
        part.log_sum_exp.data[batch * part.log_sum_exp.batch + head * part.log_sum_exp.head + query] - most);
    if (weight == 0) continue;
    sum += weight;
    const int64_t at = batch * part.out.batch + query * part.out.row + head * part.out.head;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      if (lane + 32 * i < head_dim)
        values[i] += weight * load_element(part.out.data, part.dtype, at + lane + 32 * i);
    }
  }
  __syncwarp();
  const float inverse = most == -INFINITY ? 0 : 1 / sum;
  const int64_t at = batch * out.batch + query * out.row + head * out.head;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    if (lane + 32 * i < head_dim) store_element(out.data, dtype, at + lane + 32 * i, values[i] * inverse);
  }
  if (lane == 0) {
    log_sum_exp.data[batch * log_sum_exp.batch + head * log_sum_exp.head + query] =
        most == -INFINITY ? most : most + logf(sum);
  }
}

}  // namespace

void merge_parts(const Cuda& cuda, const std::vector<GpuPart>& parts, const Tensor& out,
                 const Tensor& log_sum_exp) {
  const int64_t rows = out.size(0) * out.size(1) * out.size(2);
  if (rows == 0) return;
  const size_t bytes = parts.size() * sizeof(GpuPart);
  const Memory staging = allocate_staging(cuda, bytes), on_gpu = allocate(cuda, bytes);
  std::memcpy(staging.data, parts.data(), bytes);
  upload(cuda, on_gpu.data, staging, bytes);
  constexpr int64_t kRows = kThreads / 32;
  launch<merge_kernel>(cuda, dim3(static_cast<unsigned>(ceil_div(rows, kRows))), kThreads, 0,
                       static_cast<const GpuPart*>(on_gpu.data), static_cast<int>(parts.size()), rows_of(out),
                       out.dtype, statistics_of(log_sum_exp), static_cast<int>(out.size(1)),
                       static_cast<int>(out.size(2)), static_cast<int>(out.size(3)), rows);
}

void run(const Cuda& cuda, const AttentionMerge& op) {
  std::vector<GpuPart> parts;
  for (size_t part = 0; part < op.outs.size(); part++) {
    parts.push_back({rows_of(op.outs[part]), statistics_of(op.log_sum_exps[part]), op.outs[part].dtype});
  }
  merge_parts(cuda, parts, op.out, op.log_sum_exp);
}

}  // namespace longseq
