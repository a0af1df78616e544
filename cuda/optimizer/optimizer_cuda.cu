// AdamW and the global norm on a GPU, bound by memory: many tensors in one launch. A block takes one chunk of
// one tensor, which it finds in a table that was moved there before; 16 bytes a thread where a tensor lies
// so.
#include <algorithm>
#include <cstring>

#include "core/cuda.h"
#include "optimizer/optimizer.h"
#include "tile/pack.h"

namespace longseq {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

struct AdamWRow {
  float *parameter, *first_moment, *second_moment;
  const char* gradient;
  char* copy;  // null: none
  int64_t count, first_chunk;
  DType gradient_dtype, copy_dtype;
  bool aligned;
};

struct SquaresRow {
  const char* x;
  int64_t count, first_chunk;
  DType dtype;
  bool aligned;
};

/** The numbers of a step that are the same for all elements. */
struct AdamWFactors {
  float rate, decay, correction, epsilon, beta1, beta2, rest1, rest2, gradient_scale;
};

/** The row that holds this chunk: the last that begins at or before it. Empty tensors hold none. */
template <class Row>
__device__ Row row_of(const Row* rows, int count, int64_t chunk) {
  int low = 0, high = count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (rows[middle].first_chunk <= chunk ? low : high) = middle;
  }
  return rows[low];
}

/** The chunk's elements of its tensor. */
struct Part {
  int64_t first, end;
};
template <class Row>
__device__ Part part_of(const Row& row, int64_t chunk) {
  const int64_t first = (chunk - row.first_chunk) * kOptimizerChunk;
  return {first, min(row.count, first + kOptimizerChunk)};
}

template <class F>
__device__ void with_float(DType dtype, F f) {
  switch (dtype) {
    case DType::BFloat16:
      return f(BFloat16{});
    case DType::Float16:
      return f(Float16{});
    default:
      return f(float{});
  }
}

template <int pack>
__device__ void update(const AdamWRow& row, const AdamWFactors& factors, int64_t at) {
  float p[pack], m[pack], v[pack], g[pack];
  read_floats(row.parameter + at, p);
  read_floats(row.first_moment + at, m);
  read_floats(row.second_moment + at, v);
  with_float(row.gradient_dtype,
             [&]<class T>(T) { read_floats(reinterpret_cast<const T*>(row.gradient) + at, g); });
#pragma unroll
  for (int e = 0; e < pack; e++) {
    const float gradient = g[e] * factors.gradient_scale;
    m[e] = fmaf(factors.rest1, gradient, factors.beta1 * m[e]);
    v[e] = fmaf(factors.rest2 * gradient, gradient, factors.beta2 * v[e]);
    const float change = factors.rate * m[e] / fmaf(sqrtf(v[e]), factors.correction, factors.epsilon);
    p[e] -= fmaf(factors.decay, p[e], change);
  }
  write_floats(row.parameter + at, p);
  write_floats(row.first_moment + at, m);
  write_floats(row.second_moment + at, v);
  if (row.copy == nullptr) return;
  with_float(row.copy_dtype, [&]<class T>(T) { write_floats(reinterpret_cast<T*>(row.copy) + at, p); });
}

__global__ void __launch_bounds__(kThreads)
    adamw_kernel(const AdamWRow* rows, int count, AdamWFactors factors, const float* gradient_scale) {
  if (gradient_scale) factors.gradient_scale = *gradient_scale;
  if (!isfinite(factors.gradient_scale)) return;
  constexpr int kPack = 4;
  const AdamWRow row = row_of(rows, count, blockIdx.x);
  const Part part = part_of(row, blockIdx.x);
  const int64_t whole = row.aligned ? part.first + (part.end - part.first) / kPack * kPack : part.first;
  for (int64_t at = part.first + threadIdx.x * kPack; at < whole; at += kThreads * kPack) {
    update<kPack>(row, factors, at);
  }
  for (int64_t at = whole + threadIdx.x; at < part.end; at += kThreads) update<1>(row, factors, at);
}

/** Of all threads of the block, in a fixed order; the first thread has it. */
template <class Number>
__device__ Number block_sum(Number sum) {
  __shared__ Number of_warps[kWarps];
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_down_sync(~0u, sum, distance);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < kWarps; warp++) sum += of_warps[warp];
  }
  return sum;
}

template <int pack, class T>
__device__ float squares(const T* x, int64_t at, int64_t end) {
  float sum = 0;
#pragma unroll 4
  for (; at < end; at += kThreads * pack) {
    float values[pack];
    read_floats(x + at, values);
#pragma unroll
    for (int e = 0; e < pack; e++) sum = fmaf(values[e], values[e], sum);
  }
  return sum;
}

/** partials [chunks] */
__global__ void __launch_bounds__(kThreads)
    squares_kernel(const SquaresRow* rows, int count, float* partials) {
  const SquaresRow row = row_of(rows, count, blockIdx.x);
  const Part part = part_of(row, blockIdx.x);
  float sum = 0;
  with_float(row.dtype, [&]<class T>(T) {
    constexpr int kPack = kWholePack<T>;
    const T* const x = reinterpret_cast<const T*>(row.x);
    const int64_t whole = row.aligned ? part.first + (part.end - part.first) / kPack * kPack : part.first;
    sum = squares<kPack>(x, part.first + threadIdx.x * kPack, whole) +
          squares<1>(x, whole + threadIdx.x, part.end);
  });
  sum = block_sum(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

/** One block. */
__global__ void __launch_bounds__(kThreads)
    norm_kernel(const float* partials, int64_t count, float* norm, float most, float* factor) {
  double sum = 0;
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += partials[i];
  sum = block_sum(sum);
  if (threadIdx.x != 0) return;
  const float root = static_cast<float>(sqrt(sum));
  *norm = root;
  if (factor) *factor = clip_factor(root, most);
}

bool aligned(std::initializer_list<const void*> pointers) {
  return std::all_of(pointers.begin(), pointers.end(),
                     [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; });
}

int64_t chunks_of(const Tensor& tensor) {
  return (tensor.elements() + kOptimizerChunk - 1) / kOptimizerChunk;
}

template <class Row>
Memory upload_rows(const Cuda& cuda, const std::vector<Row>& rows) {
  const size_t bytes = rows.size() * sizeof(Row);
  const Memory host = allocate_staging(cuda, bytes);
  std::memcpy(host.data, rows.data(), bytes);
  Memory table = allocate(cuda, bytes);
  upload(cuda, table.data, host, bytes);
  return table;
}

}  // namespace

void run(const Cuda& cuda, const AdamW& op) {
  std::vector<AdamWRow> rows;
  int64_t chunks = 0;
  for (const AdamWTensors& each : op.tensors) {
    if (each.parameter.elements() == 0) continue;
    AdamWRow row{.parameter = each.parameter.data<float>(),
                 .first_moment = each.first_moment.data<float>(),
                 .second_moment = each.second_moment.data<float>(),
                 .gradient = each.gradient.data<char>(),
                 .copy = each.copy ? each.copy.data<char>() : nullptr,
                 .count = each.parameter.elements(),
                 .first_chunk = chunks,
                 .gradient_dtype = each.gradient.dtype,
                 .copy_dtype = each.copy.dtype,
                 .aligned = false};
    row.aligned = aligned({row.parameter, row.first_moment, row.second_moment, row.gradient, row.copy});
    rows.push_back(row);
    chunks += chunks_of(each.parameter);
  }
  if (rows.empty()) return;
  const Memory table = upload_rows(cuda, rows);
  const AdamWFactors factors{op.rate,  op.decay, op.correction, op.epsilon, op.beta1,
                             op.beta2, op.rest1, op.rest2,      1};
  launch<adamw_kernel>(cuda, dim3(static_cast<unsigned>(chunks)), kThreads, 0,
                       static_cast<const AdamWRow*>(table.data), static_cast<int>(rows.size()), factors,
                       op.gradient_scale ? op.gradient_scale.data<float>() : nullptr);
}

void run(const Cuda& cuda, const GlobalNorm& op) {
  std::vector<SquaresRow> rows;
  int64_t chunks = 0;
  for (const Tensor& x : op.tensors) {
    if (x.elements() == 0) continue;
    rows.push_back(
        {x.data<char>(), x.elements(), chunks, x.dtype, aligned({static_cast<const void*>(x.data<char>())})});
    chunks += chunks_of(x);
  }
  const Memory partials = allocate(cuda, static_cast<size_t>(chunks) * sizeof(float));
  float* const sums = static_cast<float*>(partials.data);
  if (!rows.empty()) {
    const Memory table = upload_rows(cuda, rows);
    launch<squares_kernel>(cuda, dim3(static_cast<unsigned>(chunks)), kThreads, 0,
                           static_cast<const SquaresRow*>(table.data), static_cast<int>(rows.size()), sums);
  }
  launch<norm_kernel>(cuda, dim3(1), kThreads, 0, sums, chunks, op.norm.data<float>(), op.most,
                      op.factor ? op.factor.data<float>() : nullptr);
}

}  // namespace longseq
