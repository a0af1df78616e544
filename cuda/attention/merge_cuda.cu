// Partial results of attention merged by their log-sum-exp, in float32.
#include "attention/gpu_call.h"
#include "attention/gpu_passes.h"
#include "core/division.h"

namespace longseq {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

struct GpuPart {
  GpuRows out;
  GpuStatistics log_sum_exp;
  DType dtype;
};

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

/** Parts of any kind. */
struct PartTable {
  const GpuPart* parts;
  int count;
  __device__ GpuPart operator()(int part) const { return parts[part]; }
  __device__ static float load(const GpuPart& part, int64_t at) {
    return load_element(part.out.data, part.dtype, at);
  }
};
/** Of float32: the splits of a call, one behind the other, and what they are merged with before them. */
struct PartRow {
  GpuPart first, before;
  int64_t out_step, sum_step;
  int first_split, count;
  __device__ GpuPart operator()(int part) const {
    if (part < first_split) return before;
    GpuPart split = first;
    split.out.data = static_cast<float*>(split.out.data) + (part - first_split) * out_step;
    split.log_sum_exp.data += (part - first_split) * sum_step;
    return split;
  }
  __device__ static float load(const GpuPart& part, int64_t at) {
    return static_cast<const float*>(part.out.data)[at];
  }
};

__device__ float larger_or_nan(float a, float b) { return isnan(b) || b > a ? b : a; }

/**
 * A row for each `warps`: one, or all of the block's, which share its parts. The whole may be one of the
 * parts: a row is written when all that share it have read it.
 */
template <class Parts>
__global__ void merge_kernel(Parts parts, GpuRows out, DType dtype, GpuStatistics log_sum_exp, int queries,
                             int heads, int head_dim, int64_t rows, int warps) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, share = warp % warps;
  const int64_t index = int64_t{blockIdx.x} * (kWarps / warps) + warp / warps;
  if (index >= rows) return;
  const int64_t query = index / heads % queries, head = index % heads, batch = index / heads / queries;
  const auto statistic = [&](const GpuStatistics& x) {
    return x.data[batch * x.batch + head * x.head + query];
  };
  float most = -INFINITY;
  for (int p = lane; p < parts.count; p += 32) {
    most = larger_or_nan(most, statistic(parts(p).log_sum_exp));
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    most = larger_or_nan(most, __shfl_xor_sync(~0u, most, distance));
  }
  float values[8] = {}, sum = 0;
  if (most != -INFINITY) {
    // Several parts' loads wait for memory side by side.
#pragma unroll 4
    for (int p = share; p < parts.count; p += warps) {
      const GpuPart part = parts(p);
      const float weight = expf(statistic(part.log_sum_exp) - most);
      sum += weight;
      const int64_t at = batch * part.out.batch + query * part.out.row + head * part.out.head;
#pragma unroll
      for (int i = 0; i < 8; i++) {
        if (lane + 32 * i >= head_dim) continue;
        const float value = Parts::load(part, at + lane + 32 * i);
        if (weight != 0) values[i] += weight * value;
      }
    }
  }
  __syncwarp();
  if (warps > 1) {
    __shared__ float shares[kWarps][257];
#pragma unroll
    for (int i = 0; i < 8; i++) shares[warp][lane + 32 * i] = values[i];
    if (lane == 0) shares[warp][256] = sum;
    __syncthreads();
    if (warp != 0) return;
    for (int other = 1; other < kWarps; other++) {
#pragma unroll
      for (int i = 0; i < 8; i++) values[i] += shares[other][lane + 32 * i];
      sum += shares[other][256];
    }
  }
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

template <class Parts>
void merge(const Cuda& cuda, const Parts& parts, const Tensor& out, const Tensor& log_sum_exp) {
  const int64_t rows = out.size(0) * out.size(1) * out.size(2);
  if (rows == 0) return;
  // Where there are few rows, and many parts.
  const int warps = parts.count >= 2 * kWarps && rows <= 4 * cuda.gpu->multiprocessors ? kWarps : 1;
  launch<merge_kernel<Parts>>(cuda, dim3(static_cast<unsigned>(ceil_div(rows, kWarps / warps))), kThreads, 0,
                              parts, rows_of(out), out.dtype, statistics_of(log_sum_exp),
                              static_cast<int>(out.size(1)), static_cast<int>(out.size(2)),
                              static_cast<int>(out.size(3)), rows, warps);
}

}  // namespace

void merge_splits(const Cuda& cuda, const ForwardSm80& kernel, const AttentionForward& op) {
  PartRow parts{.first = {kernel.out, kernel.log_sum_exp, DType::Float32},
                .before = {},
                .out_step = kernel.batch * kernel.out.batch,
                .sum_step = kernel.batch * kernel.log_sum_exp.batch,
                .first_split = 0,
                .count = kernel.splits};
  if (op.before) {
    parts.before = {rows_of(op.before), statistics_of(op.log_sum_exp), DType::Float32};
    parts.first_split = 1;
    parts.count++;
  }
  merge(cuda, parts, op.out, op.log_sum_exp);
}

void run(const Cuda& cuda, const AttentionMerge& op) {
  const size_t bytes = op.outs.size() * sizeof(GpuPart);
  const Memory staging = allocate_staging(cuda, bytes), table = allocate(cuda, bytes);
  auto* const parts = static_cast<GpuPart*>(staging.data);
  for (size_t part = 0; part < op.outs.size(); part++) {
    parts[part] = {rows_of(op.outs[part]), statistics_of(op.log_sum_exps[part]), op.outs[part].dtype};
  }
  upload(cuda, table.data, staging, bytes);
  merge(cuda, PartTable{static_cast<const GpuPart*>(table.data), static_cast<int>(op.outs.size())}, op.out,
        op.log_sum_exp);
}

}  // namespace longseq
