// Norms on a GPU, bound by memory: a row is held in the registers of the threads that share it, so each
// element is read once and written once. Rows that are too long for that, or do not lie on 16 bytes, are read
// again instead.
//
// Gradients of the weight and the bias: each block adds up the rows it takes, then a second kernel adds up
// the blocks' sums, both in an order that is always the same.
#include <algorithm>

#include "core/cuda.h"
#include "norm/norm.h"
#include "tile/row_group.h"

namespace longseq {
namespace {

constexpr unsigned kMostThreads = 1024, kMostThreadsBackward = 512, kMostThreadsAny = 512;
constexpr int kPacks = 4;            // of 16 bytes, that a thread has of a row: loads in flight
constexpr int kStages = 2;           // rows that are there or on their way, of a group's backward
constexpr int kColumnsOfThread = 8;  // of a row that is not held, before further threads share it
constexpr unsigned kColumnThreads = 256, kColumnsEach = 32;
constexpr int64_t kRowsEach = 4;  // at least, of a group of threads whose sums take memory of their own

/** One value of a vector that all rows share. */
template <class T>
__device__ float value_at(const void* vector, bool is_float32, int64_t column) {
  return is_float32 ? static_cast<const float*>(vector)[column]
                    : static_cast<float>(static_cast<const T*>(vector)[column]);
}

/** From the sums of (x - mean)^2 and x - mean; the mean gets what its own sum's rounding took. */
__device__ float reciprocal_deviation(const NormForwardRows& op, const float (&sums)[2], float scale,
                                      float& mean) {
  float variance = sums[0] * scale;
  if (op.mean != nullptr) {
    const float missed = sums[1] * scale;
    mean += missed;
    variance -= missed * missed;
  }
  return 1.0f / sqrtf(variance + op.eps);
}

/** grid: rows over groups; block: 256, or the threads of a row. */
template <class T>
__global__ void __launch_bounds__(kMostThreads)
    norm_forward_kernel(const __grid_constant__ NormForwardRows op, unsigned group_size) {
  constexpr int kCount = RowPack<T>::kCount;
  __shared__ RowGroup::Shared shared;
  RowGroup group(group_size, shared);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * group.count() + group.index();
  const bool inside = row < op.end;
  const int packs = inside ? static_cast<int>(op.columns / kCount) : 0;
  RowPack<T> held[kPacks];
  const T* const x = op.x.row<const T>(row);
  for_packs<T, kPacks>(group, packs, [&](int i, int at) { held[i] = load_once(x + at); });
  if (op.residual) {
    RowPack<T> residual[kPacks];
    const T* const from = op.residual.row<const T>(row);
    T* const sum = op.sum.row<T>(row);
    for_packs<T, kPacks>(group, packs, [&](int i, int at) { residual[i] = load_once(from + at); });
    for_packs<T, kPacks>(group, packs, [&](int i, int at) {
      float a[kCount], b[kCount];
      held[i].get(a);
      residual[i].get(b);
      for (int e = 0; e < kCount; e++) a[e] += b[e];
      held[i].set(a);
      store(sum + at, held[i]);
    });
  }
  const float scale = 1.0f / static_cast<float>(op.columns);
  float mean = 0;
  if (op.mean != nullptr) {
    float total = 0;
    for_packs<T, kPacks>(group, packs, [&](int i, int) {
      float values[kCount];
      held[i].get(values);
      for (int e = 0; e < kCount; e++) total += values[e];
    });
    mean = group.reduce<Sum>(total) * scale;
  }
  float sums[2] = {};  // of squares, of what the mean has missed
  for_packs<T, kPacks>(group, packs, [&](int i, int) {
    float values[kCount];
    held[i].get(values);
    for (int e = 0; e < kCount; e++) {
      sums[0] = fmaf(values[e] - mean, values[e] - mean, sums[0]);
      sums[1] += values[e] - mean;
    }
  });
  group.reduce<Sum>(sums);
  const float r = reciprocal_deviation(op, sums, scale, mean);
  if (inside && group.lane() == 0) {
    if (op.mean != nullptr) op.mean[row] = mean;
    op.reciprocal_deviation[row] = r;
  }
  T* const out = op.out.row<T>(row);
  const bool is_float32 = op.weight_dtype == DType::Float32;
  for_packs<T, kPacks>(group, packs, [&](int i, int at) {
    float values[kCount], weight[kCount];
    held[i].get(values);
    load_shared<T>(op.weight, is_float32, at, weight);
    for (int e = 0; e < kCount; e++) values[e] = (values[e] - mean) * r * weight[e];
    if (op.bias != nullptr) {
      float bias[kCount];
      load_shared<T>(op.bias, is_float32, at, bias);
      for (int e = 0; e < kCount; e++) values[e] += bias[e];
    }
    RowPack<T> made;
    made.set(values);
    store(out + at, made);
  });
}

/** The same for any row: it is read three times. */
template <class T>
__global__ void __launch_bounds__(kMostThreadsAny)
    norm_forward_any_kernel(const __grid_constant__ NormForwardRows op, unsigned group_size) {
  __shared__ RowGroup::Shared shared;
  RowGroup group(group_size, shared);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * group.count() + group.index();
  const bool inside = row < op.end;
  const int64_t columns = inside ? op.columns : 0;
  const T* values = op.x.row<const T>(row);
  if (op.residual) {
    const T *const x = values, *const residual = op.residual.row<const T>(row);
    T* const sum = op.sum.row<T>(row);
    for (int64_t c = group.lane(); c < columns; c += group.size()) {
      sum[c] = from_float<T>(static_cast<float>(x[c]) + static_cast<float>(residual[c]));
    }
    values = sum;  // each thread reads what it wrote
  }
  const float scale = op.columns > 0 ? 1.0f / static_cast<float>(op.columns) : 0.0f;
  float mean = 0;
  if (op.mean != nullptr) {
    float total = 0;
    for (int64_t c = group.lane(); c < columns; c += group.size()) total += static_cast<float>(values[c]);
    mean = group.reduce<Sum>(total) * scale;
  }
  float sums[2] = {};  // of squares, of what the mean has missed
  for (int64_t c = group.lane(); c < columns; c += group.size()) {
    const float centred = static_cast<float>(values[c]) - mean;
    sums[0] = fmaf(centred, centred, sums[0]);
    sums[1] += centred;
  }
  group.reduce<Sum>(sums);
  const float r = reciprocal_deviation(op, sums, scale, mean);
  if (inside && group.lane() == 0) {
    if (op.mean != nullptr) op.mean[row] = mean;
    op.reciprocal_deviation[row] = r;
  }
  T* const out = op.out.row<T>(row);
  const bool is_float32 = op.weight_dtype == DType::Float32;
  for (int64_t c = group.lane(); c < columns; c += group.size()) {
    const float n = (static_cast<float>(values[c]) - mean) * r;
    const float bias = op.bias != nullptr ? value_at<T>(op.bias, is_float32, c) : 0.0f;
    out[c] = from_float<T>(n * value_at<T>(op.weight, is_float32, c) + bias);
  }
}

/** Writes what the groups hold, added up, as the block's part: [columns] floats. `sums`: [groups][columns].
 */
template <class T>
__device__ void store_part(const RowGroup& group, int packs, int64_t columns,
                           const float (&held)[kPacks][RowPack<T>::kCount], float* sums, float* part) {
  float* const to = group.count() == 1 ? part : sums + group.index() * columns;
  for_packs<T, kPacks>(group, packs, [&](int i, int at) {
    for (int e = 0; e < RowPack<T>::kCount; e++) to[at + e] = held[i][e];
  });
  if (group.count() == 1) return;
  __syncthreads();
  for (int64_t c = threadIdx.x; c < columns; c += blockDim.x) {
    float total = 0;
    for (int g = 0; g < group.count(); g++) total += sums[g * columns + c];
    part[c] = total;
  }
  __syncthreads();  // before the next sums are written over these
}

/** sum, dout and dsum: those of the row that is worked on, and of the next one. A thread reads what it
 * copied. */
struct Staged {
  RowPack<float>* packs;  // [stages][tensors][kPacks][threads]
  int tensors;

  static size_t bytes(unsigned threads, int tensors) {
    return static_cast<size_t>(kStages * tensors * kPacks) * threads * sizeof(RowPack<float>);
  }
  __device__ RowPack<float>* at(int stage, int tensor, int i) const {
    return packs + ((stage * tensors + tensor) * kPacks + i) * blockDim.x + threadIdx.x;
  }
  template <class T>
  __device__ RowPack<T> get(int stage, int tensor, int i) const {
    const uint4 bits = *reinterpret_cast<const uint4*>(at(stage, tensor, i));
    return {bits.x, bits.y, bits.z, bits.w};
  }
};

/** grid: as many blocks as fit, each takes rows in turns; shared: the group's, then what is staged. */
template <class T>
__global__ void __launch_bounds__(kMostThreadsBackward)
    norm_backward_kernel(const __grid_constant__ NormBackwardRows op, unsigned group_size) {
  constexpr int kCount = RowPack<T>::kCount;
  extern __shared__ uint4 memory[];
  RowGroup group(group_size, *reinterpret_cast<RowGroup::Shared*>(memory));
  const Staged staged{reinterpret_cast<RowPack<float>*>(memory + sizeof(RowGroup::Shared) / sizeof(uint4)),
                      op.dsum ? 3 : 2};
  const int packs = static_cast<int>(op.columns / kCount);
  const float scale = 1.0f / static_cast<float>(op.columns);
  const bool is_float32 = op.weight_dtype == DType::Float32;
  const int64_t step = static_cast<int64_t>(gridDim.x) * group.count();
  int64_t row = static_cast<int64_t>(blockIdx.x) * group.count() + group.index();
  const int64_t rounds = (op.end - static_cast<int64_t>(blockIdx.x) * group.count() + step - 1) / step;
  const auto fetch = [&](int64_t from, int stage) {
    if (from < op.end) {
      const T *const sum = op.sum.row<const T>(from), *const dout = op.dout.row<const T>(from);
      const T* const dsum = op.dsum ? op.dsum.row<const T>(from) : nullptr;
      for_packs<T, kPacks>(group, packs, [&](int i, int at) {
        sm80::copy_async(sm80::shared_address(staged.at(stage, 0, i)), sum + at, true);
        sm80::copy_async(sm80::shared_address(staged.at(stage, 1, i)), dout + at, true);
        if (dsum != nullptr) sm80::copy_async(sm80::shared_address(staged.at(stage, 2, i)), dsum + at, true);
      });
    }
    sm80::commit_copies();
  };
  float dweight[kPacks][kCount] = {}, dbias[kPacks][kCount] = {};
  fetch(row, 0);
  for (int64_t round = 0; round < rounds; round++, row += step) {
    const int stage = static_cast<int>(round % kStages);
    fetch(row + step, stage ^ 1);
    const bool inside = row < op.end;
    const int packs_here = inside ? packs : 0;
    const float mean = inside && op.mean != nullptr ? op.mean[row] : 0.0f;
    const float r = inside ? op.reciprocal_deviation[row] : 0.0f;
    sm80::wait_copies<1>();
    float sums[2] = {};  // of g, of g n
    for_packs<T, kPacks>(group, packs_here, [&](int i, int at) {
      float n[kCount], dy[kCount], weight[kCount];
      staged.get<T>(stage, 0, i).get(n);
      staged.get<T>(stage, 1, i).get(dy);
      load_shared<T>(op.weight, is_float32, at, weight);
      for (int e = 0; e < kCount; e++) {
        n[e] = (n[e] - mean) * r;
        dweight[i][e] = fmaf(dy[e], n[e], dweight[i][e]);
        dbias[i][e] += dy[e];
        sums[0] = fmaf(dy[e], weight[e], sums[0]);
        sums[1] = fmaf(dy[e] * weight[e], n[e], sums[1]);
      }
    });
    group.reduce<Sum>(sums);
    const float mean_g = op.mean != nullptr ? sums[0] * scale : 0.0f, mean_gn = sums[1] * scale;
    T* const dx = op.dx.row<T>(row);
    for_packs<T, kPacks>(group, packs_here, [&](int i, int at) {
      float n[kCount], d[kCount], weight[kCount];
      staged.get<T>(stage, 0, i).get(n);
      staged.get<T>(stage, 1, i).get(d);
      load_shared<T>(op.weight, is_float32, at, weight);
      for (int e = 0; e < kCount; e++) d[e] = r * (d[e] * weight[e] - mean_g - (n[e] - mean) * r * mean_gn);
      if (op.dsum) {
        staged.get<T>(stage, 2, i).get(n);
        for (int e = 0; e < kCount; e++) d[e] += n[e];
      }
      RowPack<T> made;
      made.set(d);
      store(dx + at, made);
    });
  }
  sm80::wait_copies<0>();
  __syncthreads();  // what was staged has been read by all: the sums take its place
  float* const sums = reinterpret_cast<float*>(staged.packs);
  const int64_t part = blockIdx.x * op.columns;
  store_part<T>(group, packs, op.columns, dweight, sums, op.dweight + part);
  if (op.dbias != nullptr) store_part<T>(group, packs, op.columns, dbias, sums, op.dbias + part);
}

/** dx for any row, which is read twice. */
template <class T>
__global__ void __launch_bounds__(kMostThreadsAny)
    norm_backward_any_kernel(const __grid_constant__ NormBackwardRows op, unsigned group_size) {
  __shared__ RowGroup::Shared shared;
  RowGroup group(group_size, shared);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * group.count() + group.index();
  const bool inside = row < op.end, is_float32 = op.weight_dtype == DType::Float32;
  const int64_t columns = inside ? op.columns : 0;
  const T *const sum = op.sum.row<const T>(row), *const dout = op.dout.row<const T>(row);
  const float mean = inside && op.mean != nullptr ? op.mean[row] : 0.0f;
  const float r = inside ? op.reciprocal_deviation[row] : 0.0f;
  float sums[2] = {};  // of g, of g n
  for (int64_t c = group.lane(); c < columns; c += group.size()) {
    const float g = static_cast<float>(dout[c]) * value_at<T>(op.weight, is_float32, c);
    sums[0] += g;
    sums[1] = fmaf(g, (static_cast<float>(sum[c]) - mean) * r, sums[1]);
  }
  group.reduce<Sum>(sums);
  const float scale = 1.0f / static_cast<float>(op.columns);
  const float mean_g = op.mean != nullptr ? sums[0] * scale : 0.0f, mean_gn = sums[1] * scale;
  T* const dx = op.dx.row<T>(row);
  const T* const dsum = op.dsum ? op.dsum.row<const T>(row) : nullptr;
  for (int64_t c = group.lane(); c < columns; c += group.size()) {
    const float g = static_cast<float>(dout[c]) * value_at<T>(op.weight, is_float32, c);
    const float d = r * (g - mean_g - (static_cast<float>(sum[c]) - mean) * r * mean_gn);
    dx[c] = from_float<T>(dsum != nullptr ? d + static_cast<float>(dsum[c]) : d);
  }
}

/** The parts of dweight and dbias that go with it. grid: columns over threads, parts; block: 256. */
template <class T>
__global__ void norm_columns_kernel(const __grid_constant__ NormBackwardRows op) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumnThreads + threadIdx.x;
  if (column >= op.columns) return;
  float dweight = 0, dbias = 0;
  for (int64_t row = blockIdx.y; row < op.end; row += gridDim.y) {
    const float mean = op.mean != nullptr ? op.mean[row] : 0.0f, r = op.reciprocal_deviation[row];
    const float dy = static_cast<float>(op.dout.row<const T>(row)[column]);
    dweight = fmaf(dy, (static_cast<float>(op.sum.row<const T>(row)[column]) - mean) * r, dweight);
    dbias += dy;
  }
  op.dweight[blockIdx.y * op.columns + column] = dweight;
  if (op.dbias != nullptr) op.dbias[blockIdx.y * op.columns + column] = dbias;
}

/** to = the sum of the parts. grid: 32 columns a block; block: 8 warps, each adds up every eighth part. */
template <class W>
__global__ void __launch_bounds__(kColumnThreads)
    sum_parts_kernel(const float* from, int64_t parts, int64_t columns, W* to) {
  constexpr int kWarps = kColumnThreads / kColumnsEach;
  __shared__ float sums[kWarps][kColumnsEach];
  const unsigned lane = threadIdx.x % kColumnsEach, warp = threadIdx.x / kColumnsEach;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumnsEach + lane;
  float total = 0;
  if (column < columns) {
#pragma unroll 4
    for (int64_t part = warp; part < parts; part += kWarps) total += from[part * columns + column];
  }
  sums[warp][lane] = total;
  __syncthreads();
  if (warp > 0 || column >= columns) return;
  for (int w = 1; w < kWarps; w++) total += sums[w][lane];
  to[column] = from_float<W>(total);
}

bool on_16_bytes(const void* vector) { return reinterpret_cast<uintptr_t>(vector) % 16 == 0; }

template <class T>
void run_forward(const Cuda& cuda, const NormForwardRows& op) {
  const int64_t packs = op.columns / RowPack<T>::kCount;
  const bool held = op.columns % RowPack<T>::kCount == 0 && packs > 0 && packs <= kPacks * kMostThreads &&
                    aligned({&op.x, &op.residual, &op.out, &op.sum}, 16) && on_16_bytes(op.weight) &&
                    on_16_bytes(op.bias);
  const RowThreads threads = held ? RowThreads(packs, kPacks, kMostThreads)
                                  : RowThreads(op.columns, kColumnsOfThread, kMostThreadsAny);
  const dim3 grid(static_cast<unsigned>(threads.blocks(op.end)));
  if (held) {
    launch<norm_forward_kernel<T>>(cuda, grid, threads.block, 0, op, threads.group);
  } else {
    launch<norm_forward_any_kernel<T>>(cuda, grid, threads.block, 0, op, threads.group);
  }
}

/** With room for `parts` parts of both gradients, as long as this lives. */
Memory allocate_parts(const Cuda& cuda, NormBackwardRows& op, int64_t parts, bool has_bias) {
  const int64_t elements = parts * op.columns;
  Memory memory = allocate(cuda, static_cast<size_t>(elements * (has_bias ? 2 : 1)) * sizeof(float));
  op.dweight = static_cast<float*>(memory.data);
  op.dbias = has_bias ? op.dweight + elements : nullptr;
  return memory;
}

template <class T>
void run_backward(const Cuda& cuda, NormBackwardRows op, const Tensor& dweight, const Tensor& dbias) {
  const int64_t packs = op.columns / RowPack<T>::kCount, multiprocessors = cuda.gpu->multiprocessors;
  const RowThreads group_threads(packs, kPacks, kMostThreadsBackward);
  const size_t shared = sizeof(RowGroup::Shared) + Staged::bytes(group_threads.block, op.dsum ? 3 : 2);
  const bool held = op.columns % RowPack<T>::kCount == 0 && packs <= kPacks * kMostThreadsBackward &&
                    shared <= static_cast<size_t>(cuda.gpu->shared_bytes) &&
                    aligned({&op.sum, &op.dout, &op.dsum, &op.dx}, 16) && on_16_bytes(op.weight);
  int64_t parts;
  Memory memory;
  if (held) {
    const int64_t most = multiprocessors * std::max<int64_t>(1, kMostThreadsBackward / group_threads.block);
    parts = std::min(most, (group_threads.blocks(op.end) + kRowsEach - 1) / kRowsEach);
    memory = allocate_parts(cuda, op, parts, static_cast<bool>(dbias));
    launch<norm_backward_kernel<T>>(cuda, dim3(static_cast<unsigned>(parts)), group_threads.block, shared, op,
                                    group_threads.group);
  } else {
    const RowThreads threads(op.columns, kColumnsOfThread, kMostThreadsAny);
    const int64_t across = (op.columns + kColumnThreads - 1) / kColumnThreads;
    const int64_t most = std::max<int64_t>(1, 8 * multiprocessors / across);
    parts = std::min(most, (op.end + 4 * kRowsEach - 1) / (4 * kRowsEach));
    memory = allocate_parts(cuda, op, parts, static_cast<bool>(dbias));
    launch<norm_backward_any_kernel<T>>(cuda, dim3(static_cast<unsigned>(threads.blocks(op.end))),
                                        threads.block, 0, op, threads.group);
    launch<norm_columns_kernel<T>>(cuda, dim3(static_cast<unsigned>(across), static_cast<unsigned>(parts)),
                                   kColumnThreads, 0, op);
  }
  const dim3 grid(static_cast<unsigned>((op.columns + kColumnsEach - 1) / kColumnsEach));
  visit_float(op.weight_dtype, [&]<class W>(W) {
    const float *const weights = op.dweight, *const biases = op.dbias;
    launch<sum_parts_kernel<W>>(cuda, grid, kColumnThreads, 0, weights, parts, op.columns, dweight.data<W>());
    if (dbias) {
      launch<sum_parts_kernel<W>>(cuda, grid, kColumnThreads, 0, biases, parts, op.columns, dbias.data<W>());
    }
  });
}

}  // namespace

void run(const Cuda& cuda, const NormForward& op) {
  visit_float(op.x.dtype, [&]<class T>(T) { run_forward<T>(cuda, rows_of(op)); });
}

void run(const Cuda& cuda, const NormBackward& op) {
  if (op.sum.size(-1) == 0) return;
  visit_float(op.sum.dtype, [&]<class T>(T) { run_backward<T>(cuda, rows_of(op), op.dweight, op.dbias); });
}

}  // namespace longseq
