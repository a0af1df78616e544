// Cross entropy on a GPU, bound by memory: forward reads the logits once, with a maximum that is raised on
// the way; backward reads them once and writes once, if need be in their place. Rows may begin anywhere:
// packs of 16 bytes begin at the first multiple of 16, and single elements stand before and behind them.
//
// The loss of all rows: each block adds up its rows', then one block adds up those, in an order that is
// always the same.
#include "core/cuda.h"
#include "loss/loss.h"
#include "tile/row_group.h"

namespace longseq {
namespace {

constexpr unsigned kMostThreads = 512, kTotalThreads = 1024;
constexpr int kPacks = 4;      // that a thread loads before it uses the first
constexpr int kPacksEach = 8;  // of a row, before further threads share it
constexpr float kLog2E = 1.44269504f;

/** e^x; 0 for -inf. */
__device__ float exponential(float x) { return sm80::exp2_approximate(x * kLog2E); }
/** What is taken off the logits before the exponential; where all are -inf they stay so. */
__device__ float base_of(float most) { return most == -INFINITY ? 0.0f : most; }

/** A row's elements before its first pack, and its packs. */
struct RowParts {
  int64_t head, packs;
};
template <class T>
__device__ RowParts parts_of(const T* row, int64_t columns) {
  const auto behind = static_cast<int64_t>(reinterpret_cast<uintptr_t>(row) % 16);
  const int64_t head = min((16 - behind) % 16 / static_cast<int64_t>(sizeof(T)), columns);
  return {head, (columns - head) / RowPack<T>::kCount};
}

/** The elements of a row that are in no pack: f(column). */
template <class T, class F>
__device__ void for_single(const RowGroup& group, const RowParts& parts, int64_t columns, F f) {
  for (int64_t c = group.lane(); c < parts.head; c += group.size()) f(c);
  const int64_t tail = parts.head + parts.packs * RowPack<T>::kCount;
  for (int64_t c = tail + group.lane(); c < columns; c += group.size()) f(c);
}

/** The sum of exp(x - most) over what a thread has seen, and the highest of it. */
struct Exponentials {
  float most = -INFINITY, sum = 0;

  __device__ void raise(float to) {
    if (!(to > most)) return;  // also of NaN, which the sum has
    sum *= exponential(most - to);
    most = to;
  }
};

/** grid: rows over groups; block: 256, or the threads of a row. sums: of each block's losses, then its
 * counts. Three blocks a multiprocessor: what one waits for in its reductions the others load. */
template <class T>
__global__ void __launch_bounds__(kMostThreads, 3)
    cross_entropy_forward_kernel(const __grid_constant__ CrossEntropyForwardRows op, unsigned group_size,
                                 float* sums) {
  constexpr int kCount = RowPack<T>::kCount;
  __shared__ RowGroup::Shared shared, shared_of_block;
  RowGroup group(group_size, shared);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * group.count() + group.index();
  const bool inside = row < op.end;
  const T* const x = op.logits.row<const T>(row);
  Exponentials seen;
  if (inside) {
    const RowParts parts = parts_of(x, op.columns);
    for_single<T>(group, parts, op.columns, [&](int64_t c) {
      const float value = static_cast<float>(x[c]);
      seen.raise(value);
      seen.sum += exponential(value - base_of(seen.most));
    });
    const T* const from = x + parts.head;
    const int packs = static_cast<int>(parts.packs), step = group.size();
    for (int first = group.lane(); first < packs; first += kPacks * step) {
      RowPack<T> held[kPacks];
      float highest = seen.most;
#pragma unroll
      for (int i = 0; i < kPacks; i++) {
        if (first + i * step < packs) held[i] = load_once(from + int64_t{first + i * step} * kCount);
      }
#pragma unroll
      for (int i = 0; i < kPacks; i++) {
        if (first + i * step >= packs) continue;
        float values[kCount];
        held[i].get(values);
        for (int e = 0; e < kCount; e++) highest = fmaxf(highest, values[e]);
      }
      seen.raise(highest);
      const float base = base_of(seen.most);
#pragma unroll
      for (int i = 0; i < kPacks; i++) {
        if (first + i * step >= packs) continue;
        float values[kCount], sum = 0;
        held[i].get(values);
        for (int e = 0; e < kCount; e++) sum += exponential(values[e] - base);
        seen.sum += sum;
      }
    }
  }
  const float base = base_of(group.reduce<Maximum>(seen.most));
  const float sum = group.reduce<Sum>(seen.sum * exponential(seen.most - base));
  float loss_and_count[2] = {};
  if (inside && group.lane() == 0) {
    const float log_sum_exp = base + logf(sum);
    const int32_t target = *op.targets.row<const int32_t>(row);
    op.log_sum_exp[row] = log_sum_exp;
    if (target != op.ignore_index) {
      const bool is_column = target >= 0 && target < op.columns;
      loss_and_count[0] = is_column ? log_sum_exp - static_cast<float>(x[target]) : NAN;
      loss_and_count[1] = 1;
    }
    if (op.losses != nullptr) op.losses[row] = loss_and_count[0];
  }
  RowGroup block(blockDim.x, shared_of_block);
  block.reduce<Sum>(loss_and_count);
  if (threadIdx.x == 0) {
    sums[blockIdx.x] = loss_and_count[0];
    sums[gridDim.x + blockIdx.x] = loss_and_count[1];
  }
}

/** count, and the loss where it is one number. One block. */
__global__ void __launch_bounds__(kTotalThreads)
    cross_entropy_total_kernel(const float* sums, int64_t blocks, bool is_mean, float* loss, float* count) {
  __shared__ RowGroup::Shared shared;
  RowGroup group(kTotalThreads, shared);
  float loss_and_count[2] = {};
  for (int64_t i = threadIdx.x; i < blocks; i += kTotalThreads) {
    loss_and_count[0] += sums[i];
    loss_and_count[1] += sums[blocks + i];
  }
  group.reduce<Sum>(loss_and_count);
  if (threadIdx.x > 0) return;
  *count = loss_and_count[1];
  if (loss != nullptr)
    *loss = is_mean ? loss_and_count[0] / fmaxf(loss_and_count[1], 1.0f) : loss_and_count[0];
}

/** grid, block: as forward. A thread writes what it read, so dlogits may be logits. */
template <class T>
__global__ void __launch_bounds__(kMostThreads)
    cross_entropy_backward_kernel(const __grid_constant__ CrossEntropyBackwardRows op, unsigned group_size) {
  constexpr int kCount = RowPack<T>::kCount;
  __shared__ RowGroup::Shared shared;
  const RowGroup group(group_size, shared);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * group.count() + group.index();
  if (row >= op.end) return;
  const T* const x = op.logits.row<const T>(row);
  T* const dx = op.dlogits.row<T>(row);
  const bool alike = (reinterpret_cast<uintptr_t>(x) - reinterpret_cast<uintptr_t>(dx)) % 16 == 0;
  const RowParts parts = alike ? parts_of(x, op.columns) : RowParts{op.columns, 0};
  const int32_t target = *op.targets.row<const int32_t>(row);
  const bool is_ignored = target == op.ignore_index;
  const float log_sum_exp = op.log_sum_exp[row];
  float factor = *op.dloss.row<const float>(row);
  if (op.count != nullptr) factor /= fmaxf(*op.count, 1.0f);
  if (target < 0 || target >= op.columns) factor = NAN;
  const auto gradient = [&](float value, bool is_target) {
    const float p = exponential(value - log_sum_exp);
    return (is_target ? p - 1 : p) * factor;
  };
  for_single<T>(group, parts, op.columns, [&](int64_t c) {
    dx[c] = from_float<T>(is_ignored ? 0.0f : gradient(static_cast<float>(x[c]), c == target));
  });
  for (int64_t first = group.lane(); first < parts.packs; first += kPacks * group.size()) {
    RowPack<T> held[kPacks] = {};
#pragma unroll
    for (int i = 0; i < kPacks; i++) {
      const int64_t pack = first + i * group.size();
      if (pack < parts.packs && !is_ignored) held[i] = load_once(x + parts.head + pack * kCount);
    }
#pragma unroll
    for (int i = 0; i < kPacks; i++) {
      const int64_t pack = first + i * group.size(), at = parts.head + pack * kCount;
      if (pack >= parts.packs) continue;
      if (!is_ignored) {
        const int64_t distance = target - at;
        const int hit = distance >= 0 && distance < kCount ? static_cast<int>(distance) : -1;
        float values[kCount];
        held[i].get(values);
        for (int e = 0; e < kCount; e++) values[e] = gradient(values[e], e == hit);
        held[i].set(values);
      }
      store(dx + at, held[i]);
    }
  }
}

template <class T>
RowThreads threads_of(int64_t columns) {
  return {columns / RowPack<T>::kCount, kPacksEach, kMostThreads};
}

}  // namespace

void run(const Cuda& cuda, const CrossEntropyForward& op) {
  const CrossEntropyForwardRows rows = rows_of(op);
  visit_float(op.logits.dtype, [&]<class T>(T) {
    const RowThreads threads = threads_of<T>(rows.columns);
    const int64_t blocks = threads.blocks(rows.end);
    const Memory sums = allocate(cuda, static_cast<size_t>(2 * blocks) * sizeof(float));
    float* const sum_of_block = static_cast<float*>(sums.data);
    launch<cross_entropy_forward_kernel<T>>(cuda, dim3(static_cast<unsigned>(blocks)), threads.block, 0, rows,
                                            threads.group, sum_of_block);
    float* const loss = op.reduction == Reduction::None ? nullptr : op.loss.data<float>();
    launch<cross_entropy_total_kernel>(cuda, dim3(1), kTotalThreads, 0, sum_of_block, blocks,
                                       op.reduction == Reduction::Mean, loss, op.count.data<float>());
  });
}

void run(const Cuda& cuda, const CrossEntropyBackward& op) {
  const CrossEntropyBackwardRows rows = rows_of(op);
  visit_float(op.logits.dtype, [&]<class T>(T) {
    const RowThreads threads = threads_of<T>(rows.columns);
    launch<cross_entropy_backward_kernel<T>>(cuda, dim3(static_cast<unsigned>(threads.blocks(rows.end))),
                                             threads.block, 0, rows, threads.group);
  });
}

}  // namespace longseq
