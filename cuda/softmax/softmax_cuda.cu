// Softmax on a GPU, bound by memory: a row is held in the registers of the threads that share it. Rows that
// are too long for that, or do not lie on 16 bytes, are read again instead.
#include "core/cuda.h"
#include "softmax/softmax.h"
#include "tile/row_group.h"

namespace longseq {
namespace {

constexpr unsigned kMostThreads = 1024, kMostThreadsAny = 512;
constexpr int kPacks = 4;            // of 16 bytes, that a thread has of a row: loads in flight
constexpr int kColumnsOfThread = 8;  // of a row that is not held, before further threads share it
constexpr float kLog2E = 1.44269504f;

/** e^x; 0 for -inf. */
__device__ float exponential(float x) { return sm80::exp2_approximate(x * kLog2E); }

/** What is taken off the scores before the exponential; where nothing is visible they stay -inf. */
__device__ float base_of(float most) { return most == -INFINITY ? 0.0f : most; }
__device__ float share_of(float sum) { return sum == 0 ? 0.0f : 1.0f / sum; }

/** The mask's bytes of a pack. */
template <int count>
struct MaskBytes {
  uint32_t words[count / 4];

  __device__ void load(const uint8_t* from) {
    if constexpr (count == 8) {
      const uint2 bits = __ldg(reinterpret_cast<const uint2*>(from));
      words[0] = bits.x;
      words[1] = bits.y;
    } else {
      words[0] = __ldg(reinterpret_cast<const uint32_t*>(from));
    }
  }
  __device__ bool visible(int e) const { return (words[e / 4] >> (e % 4 * 8) & 0xff) != 0; }
};

/** grid: rows over groups; block: 256, or the threads of a row. What the causal rule hides is not read. */
template <class T>
__global__ void __launch_bounds__(kMostThreads)
    softmax_forward_kernel(const __grid_constant__ SoftmaxForwardRows op, unsigned group_size) {
  constexpr int kCount = RowPack<T>::kCount;
  __shared__ RowGroup::Shared shared;
  RowGroup group(group_size, shared);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * group.count() + group.index();
  const bool inside = row < op.end;
  const int packs = inside ? static_cast<int>(op.columns / kCount) : 0;
  const int seen = inside ? static_cast<int>(op.prefix.of(row)) : 0;
  const T* const x = op.x.row<const T>(row);
  const uint8_t* const mask = op.mask ? op.mask.row<const uint8_t>(row) : nullptr;
  RowPack<T> held[kPacks] = {};
  MaskBytes<kCount> bytes[kPacks] = {};
  for_packs<T, kPacks>(group, packs, [&](int i, int at) {
    if (at >= seen) return;
    held[i] = load_once(x + at);
    if (mask != nullptr) bytes[i].load(mask + at);
  });
  float s[kPacks][kCount];
  float most = -INFINITY;
  for_packs<T, kPacks>(group, packs, [&](int i, int at) {
    held[i].get(s[i]);
    for (int e = 0; e < kCount; e++) {
      const bool visible = at + e < seen && (mask == nullptr || bytes[i].visible(e));
      s[i][e] = visible ? s[i][e] * op.scale : -INFINITY;
      most = fmaxf(most, s[i][e]);
    }
  });
  const float base = base_of(group.reduce<Maximum>(most));
  float sum = 0;
  for_packs<T, kPacks>(group, packs, [&](int i, int) {
    for (int e = 0; e < kCount; e++) {
      s[i][e] = exponential(s[i][e] - base);
      sum += s[i][e];
    }
  });
  const float share = share_of(group.reduce<Sum>(sum));
  T* const out = op.out.row<T>(row);
  for_packs<T, kPacks>(group, packs, [&](int i, int at) {
    for (int e = 0; e < kCount; e++) s[i][e] *= share;
    RowPack<T> made;
    made.set(s[i]);
    store(out + at, made);
  });
}

/** The same for any row: it is read three times. */
template <class T>
__global__ void __launch_bounds__(kMostThreadsAny)
    softmax_forward_any_kernel(const __grid_constant__ SoftmaxForwardRows op, unsigned group_size) {
  __shared__ RowGroup::Shared shared;
  RowGroup group(group_size, shared);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * group.count() + group.index();
  const bool inside = row < op.end;
  const int64_t seen = inside ? op.prefix.of(row) : 0;
  const T* const x = op.x.row<const T>(row);
  const uint8_t* const mask = op.mask ? op.mask.row<const uint8_t>(row) : nullptr;
  const auto score = [&](int64_t c) {
    return mask == nullptr || mask[c] != 0 ? static_cast<float>(x[c]) * op.scale : -INFINITY;
  };
  float most = -INFINITY;
  for (int64_t c = group.lane(); c < seen; c += group.size()) most = fmaxf(most, score(c));
  const float base = base_of(group.reduce<Maximum>(most));
  float sum = 0;
  for (int64_t c = group.lane(); c < seen; c += group.size()) sum += exponential(score(c) - base);
  const float share = share_of(group.reduce<Sum>(sum));
  T* const out = op.out.row<T>(row);
  for (int64_t c = group.lane(); inside && c < op.columns; c += group.size()) {
    out[c] = from_float<T>(c < seen ? exponential(score(c) - base) * share : 0.0f);
  }
}

/** grid, block: as forward. */
template <class T>
__global__ void __launch_bounds__(kMostThreads)
    softmax_backward_kernel(const __grid_constant__ SoftmaxBackwardRows op, unsigned group_size) {
  constexpr int kCount = RowPack<T>::kCount;
  __shared__ RowGroup::Shared shared;
  RowGroup group(group_size, shared);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * group.count() + group.index();
  const int packs = row < op.end ? static_cast<int>(op.columns / kCount) : 0;
  const T *const out = op.out.row<const T>(row), *const dout = op.dout.row<const T>(row);
  RowPack<T> held[kPacks], dheld[kPacks];
  for_packs<T, kPacks>(group, packs, [&](int i, int at) {
    held[i] = load_once(out + at);
    dheld[i] = load_once(dout + at);
  });
  float mean = 0;
  for_packs<T, kPacks>(group, packs, [&](int i, int) {
    float p[kCount], dp[kCount];
    held[i].get(p);
    dheld[i].get(dp);
    for (int e = 0; e < kCount; e++) mean = fmaf(p[e], dp[e], mean);
  });
  mean = group.reduce<Sum>(mean);
  T* const dx = op.dx.row<T>(row);
  for_packs<T, kPacks>(group, packs, [&](int i, int at) {
    float p[kCount], dp[kCount];
    held[i].get(p);
    dheld[i].get(dp);
    for (int e = 0; e < kCount; e++) dp[e] = op.scale * (p[e] * (dp[e] - mean));
    RowPack<T> made;
    made.set(dp);
    store(dx + at, made);
  });
}

/** The same for any row: it is read twice. */
template <class T>
__global__ void __launch_bounds__(kMostThreadsAny)
    softmax_backward_any_kernel(const __grid_constant__ SoftmaxBackwardRows op, unsigned group_size) {
  __shared__ RowGroup::Shared shared;
  RowGroup group(group_size, shared);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * group.count() + group.index();
  const int64_t columns = row < op.end ? op.columns : 0;
  const T *const out = op.out.row<const T>(row), *const dout = op.dout.row<const T>(row);
  float mean = 0;
  for (int64_t c = group.lane(); c < columns; c += group.size()) {
    mean = fmaf(static_cast<float>(out[c]), static_cast<float>(dout[c]), mean);
  }
  mean = group.reduce<Sum>(mean);
  T* const dx = op.dx.row<T>(row);
  for (int64_t c = group.lane(); c < columns; c += group.size()) {
    dx[c] = from_float<T>(op.scale * (static_cast<float>(out[c]) * (static_cast<float>(dout[c]) - mean)));
  }
}

/** Launches `held_kernel` where a row fits in registers and `aligned`, else `any_kernel`. */
template <class T, auto held_kernel, auto any_kernel, class RowsOperation>
void launch_rows(const Cuda& cuda, const RowsOperation& op, bool aligned) {
  const int64_t packs = op.columns / RowPack<T>::kCount;
  const bool held = aligned && op.columns % RowPack<T>::kCount == 0 && packs <= kPacks * kMostThreads;
  const RowThreads threads = held ? RowThreads(packs, kPacks, kMostThreads)
                                  : RowThreads(op.columns, kColumnsOfThread, kMostThreadsAny);
  const dim3 grid(static_cast<unsigned>(threads.blocks(op.end)));
  if (held) {
    launch<held_kernel>(cuda, grid, threads.block, 0, op, threads.group);
  } else {
    launch<any_kernel>(cuda, grid, threads.block, 0, op, threads.group);
  }
}

}  // namespace

void run(const Cuda& cuda, const SoftmaxForward& op) {
  visit_float(op.x.dtype, [&]<class T>(T) {
    const SoftmaxForwardRows rows = rows_of(op);
    const bool on_packs = aligned({&rows.x, &rows.out}, 16) && rows.mask.aligned(RowPack<T>::kCount);
    launch_rows<T, softmax_forward_kernel<T>, softmax_forward_any_kernel<T>>(cuda, rows, on_packs);
  });
}

void run(const Cuda& cuda, const SoftmaxBackward& op) {
  visit_float(op.out.dtype, [&]<class T>(T) {
    const SoftmaxBackwardRows rows = rows_of(op);
    const bool on_packs = aligned({&rows.out, &rows.dout, &rows.dx}, 16);
    launch_rows<T, softmax_backward_kernel<T>, softmax_backward_any_kernel<T>>(cuda, rows, on_packs);
  });
}

}  // namespace longseq
