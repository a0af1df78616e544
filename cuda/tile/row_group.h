#pragma once
// For kernels over rows on a GPU: the 16 bytes that a thread reads or writes at a time, and the threads that
// share a row with their sums and maxima.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "core/dtype.h"
#include "tile/sm80.h"

namespace longseq {

/** 16 bytes of elements. */
template <class T>
struct alignas(16) RowPack {
  static constexpr int kCount = 16 / sizeof(T);
  uint32_t words[4];

  __device__ void get(float (&values)[kCount]) const {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if constexpr (std::is_same_v<T, float>) {
        values[i] = __uint_as_float(words[i]);
      } else if constexpr (std::is_same_v<T, BFloat16>) {
        values[2 * i] = __uint_as_float(words[i] << 16);
        values[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000);
      } else {
        values[2 * i] = __half2float(__ushort_as_half(static_cast<uint16_t>(words[i])));
        values[2 * i + 1] = __half2float(__ushort_as_half(static_cast<uint16_t>(words[i] >> 16)));
      }
    }
  }
  __device__ void set(const float (&values)[kCount]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if constexpr (std::is_same_v<T, float>) {
        words[i] = __float_as_uint(values[i]);
      } else if constexpr (std::is_same_v<T, BFloat16>) {
        words[i] = sm80::pack<sm80::Bf16>(values[2 * i], values[2 * i + 1]);
      } else {
        words[i] = sm80::pack<sm80::Half>(values[2 * i], values[2 * i + 1]);
      }
    }
  }
};

/** Past the first-level cache: what is read once must not push out what every row reads. */
template <class T>
__device__ inline RowPack<T> load_once(const T* p) {
  const uint4 bits = __ldcg(reinterpret_cast<const uint4*>(p));
  return {bits.x, bits.y, bits.z, bits.w};
}
/** The same of what nobody reads again, the first to leave the second-level cache. */
template <class T>
__device__ inline RowPack<T> load_last(const T* p) {
  const uint4 bits = __ldcs(reinterpret_cast<const uint4*>(p));
  return {bits.x, bits.y, bits.z, bits.w};
}
template <class T>
__device__ inline void store(T* p, const RowPack<T>& pack) {
  *reinterpret_cast<uint4*>(p) = {pack.words[0], pack.words[1], pack.words[2], pack.words[3]};
}

/** `count` elements, 16 or 32 bytes, of a vector that all rows share: float32 where `is_float32`, else T. */
template <class T, int count>
__device__ inline void load_shared(const void* vector, bool is_float32, int64_t at, float (&values)[count]) {
  static_assert(count == RowPack<T>::kCount);
  if (is_float32) {
    const float4* const from = reinterpret_cast<const float4*>(static_cast<const float*>(vector) + at);
#pragma unroll
    for (int i = 0; i < count / 4; i++) {
      const float4 four = __ldg(from + i);
      values[4 * i] = four.x;
      values[4 * i + 1] = four.y;
      values[4 * i + 2] = four.z;
      values[4 * i + 3] = four.w;
    }
  } else {
    const uint4 bits = __ldg(reinterpret_cast<const uint4*>(static_cast<const T*>(vector) + at));
    RowPack<T>{bits.x, bits.y, bits.z, bits.w}.get(values);
  }
}

/** How many threads share a row, and how many a block has: a power of two of a warp's, or all of a block's.
 */
struct RowThreads {
  unsigned group, block;

  /** At most `each` of the row's `units` a thread, as far as `most` threads go. */
  RowThreads(int64_t units, int64_t each, unsigned most) {
    const int64_t wanted = (units + each - 1) / each;
    group = 1;
    while (group < 32 && group < wanted) group *= 2;
    if (wanted > 32) group = static_cast<unsigned>(wanted < most ? (wanted + 31) / 32 * 32 : most);
    block = group > 32 ? group : 256;
  }
  int64_t rows_each_block() const { return block / group; }
  int64_t blocks(int64_t rows) const { return (rows + rows_each_block() - 1) / rows_each_block(); }
};

struct Sum {
  static constexpr float kIdentity = 0;
  __device__ static float combine(float a, float b) { return a + b; }
};
struct Maximum {
  static constexpr float kIdentity = -INFINITY;
  __device__ static float combine(float a, float b) { return fmaxf(a, b); }
};

/**
 * A thread's place in the group that shares its row, and the group's reductions. All threads of a block call
 * those together, those without a row too.
 */
class RowGroup {
 public:
  static constexpr int kValues = 2;  // at most, in a reduction
  struct Shared {
    float values[2][kValues][32];
  };

  __device__ RowGroup(unsigned size, Shared& shared) : size_(size), shared_(shared) {}

  __device__ int lane() const {
    return static_cast<int>(size_ > 32 ? threadIdx.x : threadIdx.x & (size_ - 1));
  }
  __device__ int size() const { return static_cast<int>(size_); }
  /** Which of the block's groups this is, and how many there are. */
  __device__ int index() const { return static_cast<int>(threadIdx.x / size_); }
  __device__ int count() const { return static_cast<int>(blockDim.x / size_); }

  /** Each value over the group's threads, to all of them; the order is the same each time. */
  template <class Operation, int n>
  __device__ void reduce(float (&values)[n]) {
    static_assert(n <= kValues);
    across_lanes<Operation>(values, size_ < 32 ? size_ : 32);
    if (size_ <= 32) return;
    // Two buffers in turns: who writes one has passed the barrier behind the last reads of it.
    float(&buffer)[kValues][32] = shared_.values[turn_];
    turn_ ^= 1;
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 0) {
      for (int i = 0; i < n; i++) buffer[i][warp] = values[i];
    }
    __syncthreads();
    for (int i = 0; i < n; i++) values[i] = lane < size_ / 32 ? buffer[i][lane] : Operation::kIdentity;
    across_lanes<Operation>(values, 32);
  }
  template <class Operation>
  __device__ float reduce(float value) {
    float values[1] = {value};
    reduce<Operation>(values);
    return values[0];
  }

 private:
  template <class Operation, int n>
  __device__ static void across_lanes(float (&values)[n], unsigned width) {
    for (unsigned distance = width / 2; distance > 0; distance /= 2) {
      for (int i = 0; i < n; i++) {
        values[i] =
            Operation::combine(values[i], __shfl_xor_sync(~0u, values[i], static_cast<int>(distance)));
      }
    }
  }

  unsigned size_, turn_ = 0;
  Shared& shared_;
};

/** The packs of a row that a thread has, at most `most`: f(which, first element). */
template <class T, int most, class F>
__device__ inline void for_packs(const RowGroup& group, int packs, F f) {
#pragma unroll
  for (int i = 0; i < most; i++) {
    const int pack = group.lane() + i * group.size();
    if (pack < packs) f(i, pack * RowPack<T>::kCount);
  }
}

}  // namespace longseq
