// Norms on a GPU, bound by memory: a row is held in the registers of the threads that share it, so each
// element is read once and written once. Rows that are too long for that, or do not lie on 16 bytes, are read
// again instead.
//
// Gradients of the weight and the bias: each block adds up the rows it takes, then a second kernel adds up
// the blocks' sums, both in an order that is always the same.
#include <algorithm>

#include "core/cuda.h"
#include "norm/norm.h"
#include "tile/parts.h"
#include "tile/row_group.h"

namespace longseq {
namespace {

constexpr unsigned kMostThreads = 1024, kMostThreadsAny = 512;
constexpr int kPacks = 4;          // of 16 bytes, that a thread has of a row: loads in flight
constexpr int kPacksBackward = 2;  // whose sums it holds too: twice as many would halve the threads that fit
constexpr int kStages = 2;         // rows that are there or on their way, of a group's backward
constexpr int kColumnsOfThread = 8;  // of a row that is not held, before further threads share it
constexpr unsigned kColumnThreads = 256;
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
                           const float (&held)[kPacksBackward][RowPack<T>::kCount], float* sums,
                           float* part) {
  float* const to = group.count() == 1 ? part : sums + group.index() * columns;
  for_packs<T, kPacksBackward>(group, packs, [&](int i, int at) {
#pragma unroll
    for (int e = 0; e < RowPack<T>::kCount; e += 4) {
      *reinterpret_cast<float4*>(to + at + e) =
          make_float4(held[i][e], held[i][e + 1], held[i][e + 2], held[i][e + 3]);
    }
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
 * copied; what a thread has lies a warp's width apart, at distances that are constants. */
class Staged {
 public:
  static size_t bytes(unsigned threads, int tensors) {
    return static_cast<size_t>(tensors * kStages * kPacksBackward) * threads * sizeof(RowPack<float>);
  }
  __device__ Staged(void* memory, int tensors)
      : own_(static_cast<RowPack<float>*>(memory) +
             threadIdx.x / 32 * (tensors * kStages * kPacksBackward * 32) + threadIdx.x % 32) {}
  __device__ RowPack<float>* at(int stage, int tensor, int i) const {
    return own_ + ((tensor * kStages + stage) * kPacksBackward + i) * 32;
  }
  template <class T>
  __device__ RowPack<T> get(int stage, int tensor, int i) const {
    const uint4 bits = *reinterpret_cast<const uint4*>(at(stage, tensor, i));
    return {bits.x, bits.y, bits.z, bits.w};
  }

 private:
  RowPack<float>* own_;
};

/** How backward is cut: constants of the launch, which registers have no room for. */
struct BackwardCut {
  unsigned group, step;  // threads of a row; rows of all blocks together
  int packs;             // of a row
  float scale;           // 1 / C
};

/** grid: as many blocks as fit, each takes rows in turns; shared: the group's, then what is staged. */
template <class T>
__global__ void __launch_bounds__(kMostThreads)
    norm_backward_kernel(const __grid_constant__ NormBackwardRows op,
                         const __grid_constant__ BackwardCut cut) {
  constexpr int kCount = RowPack<T>::kCount;
  extern __shared__ uint4 memory[];
  RowGroup group(cut.group, *reinterpret_cast<RowGroup::Shared*>(memory));
  void* const behind = memory + sizeof(RowGroup::Shared) / sizeof(uint4);
  const Staged staged(behind, op.dsum ? 3 : 2);
  const bool is_float32 = op.weight_dtype == DType::Float32;
  const auto fetch = [&](int64_t from, int stage) {
    if (from < op.end) {
      const T *const sum = op.sum.row<const T>(from), *const dout = op.dout.row<const T>(from);
      const T* const dsum = op.dsum ? op.dsum.row<const T>(from) : nullptr;
      for_packs<T, kPacksBackward>(group, cut.packs, [&](int i, int at) {
        sm80::copy_async(sm80::shared_address(staged.at(stage, 0, i)), sum + at);
        sm80::copy_async(sm80::shared_address(staged.at(stage, 1, i)), dout + at);
        if (dsum != nullptr) sm80::copy_async(sm80::shared_address(staged.at(stage, 2, i)), dsum + at);
      });
    }
    sm80::commit_copies();
  };
  float dweight[kPacksBackward][kCount] = {}, dbias[kPacksBackward][kCount] = {};
  int64_t first = static_cast<int64_t>(blockIdx.x) * group.count();  // of the block's rows
  fetch(first + group.index(), 0);
  for (int stage = 0; first < op.end; first += cut.step, stage ^= 1) {
    const int64_t row = first + group.index();
    fetch(row + cut.step, stage ^ 1);
    const bool inside = row < op.end;
    const int packs_here = inside ? cut.packs : 0;
    const float mean = inside && op.mean != nullptr ? op.mean[row] : 0.0f;
    const float r = inside ? op.reciprocal_deviation[row] : 0.0f;
    sm80::wait_copies<1>();
    float sums[2] = {};  // of g, of g n
    for_packs<T, kPacksBackward>(group, packs_here, [&](int i, int at) {
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
    const float shift = op.mean != nullptr ? -r * sums[0] * cut.scale : 0.0f;
    const float slope = -r * (r * sums[1] * cut.scale);  // r * r alone may be past float's range
    T* const dx = op.dx.row<T>(row);
    for_packs<T, kPacksBackward>(group, packs_here, [&](int i, int at) {
      float n[kCount], d[kCount], weight[kCount];
      staged.get<T>(stage, 0, i).get(n);
      staged.get<T>(stage, 1, i).get(d);
      load_shared<T>(op.weight, is_float32, at, weight);
      for (int e = 0; e < kCount; e++) {
        d[e] = fmaf(n[e] - mean, slope, fmaf(d[e] * weight[e], r, shift));
      }
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
  float* const sums = static_cast<float*>(behind);
  const int64_t part = blockIdx.x * op.columns;
  store_part<T>(group, cut.packs, op.columns, dweight, sums, op.dweight + part);
  if (op.dbias != nullptr) store_part<T>(group, cut.packs, op.columns, dbias, sums, op.dbias + part);
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
  const RowThreads group_threads(packs, kPacksBackward, kMostThreads);
  const size_t shared = sizeof(RowGroup::Shared) + Staged::bytes(group_threads.block, op.dsum ? 3 : 2);
  const bool held = op.columns % RowPack<T>::kCount == 0 && packs <= kPacksBackward * kMostThreads &&
                    shared <= static_cast<size_t>(cuda.gpu->shared_bytes) &&
                    aligned({&op.sum, &op.dout, &op.dsum, &op.dx}, 16) && on_16_bytes(op.weight);
  int64_t parts;
  Memory memory;
  if (held) {
    const int64_t most = multiprocessors * std::max<int64_t>(1, kMostThreads / group_threads.block);
    parts = std::min(most, (group_threads.blocks(op.end) + kRowsEach - 1) / kRowsEach);
    memory = allocate_parts(cuda, op, parts, static_cast<bool>(dbias));
    const BackwardCut cut{group_threads.group, static_cast<unsigned>(parts * group_threads.rows_each_block()),
                          static_cast<int>(packs), 1.0f / static_cast<float>(op.columns)};
    launch<norm_backward_kernel<T>>(cuda, dim3(static_cast<unsigned>(parts)), group_threads.block, shared, op,
                                    cut);
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
  visit_float(op.weight_dtype, [&]<class W>(W) {
    sum_parts<W>(cuda, {{op.dweight, op.dbias}, {dweight.data<W>(), dbias ? dbias.data<W>() : nullptr}},
                 parts, op.columns);
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
