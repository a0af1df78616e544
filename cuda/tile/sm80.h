#pragma once
// The instructions of Ampere and later that kernels are made of: asynchronous copies to shared memory, loads
// of 8 x 8 matrices, products of a warp. Layouts of fragments: PTX ISA, "mma.m16n8k16"; lane = 4 group +
// thread.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace longseq::sm80 {

using Bf16 = __nv_bfloat16;
using Half = __half;

__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

/** 16 bytes; zeros where not `inside`, and then nothing is read. */
__device__ inline void copy_async(uint32_t to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(inside ? 16 : 0)
               : "memory");
}
__device__ inline void copy_async(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
/** 4 bytes. */
__device__ inline void copy_word_async(uint32_t to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/** All but the `left` groups committed last have arrived. */
template <int left>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
}

/** Also where the warps of a block are at different places of the code. */
__device__ inline void block_barrier() { asm volatile("barrier.sync 0;" ::: "memory"); }

/** Of `threads` of the block's threads, a whole number of warps; ids 1 to 15. */
__device__ inline void named_barrier(int id, int threads) {
  asm volatile("barrier.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
/** The others may go on past that barrier; this warp does not wait for them. */
__device__ inline void arrive_barrier(int id, int threads) {
  asm volatile("barrier.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/** What others have added with add_release, and all that they had written before. */
__device__ inline int load_acquire(const int* from) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
/** Two counters as they are at some time: what others had written before is there behind a fence. */
__device__ inline int2 load_relaxed(const void* from) {
  int2 two;
  asm volatile("ld.relaxed.gpu.global.v2.s32 {%0, %1}, [%2];"
               : "=r"(two.x), "=r"(two.y)
               : "l"(from)
               : "memory");
  return two;
}
/** What was read before is older than what is read behind this, also of what others wrote. */
__device__ inline void fence_of_gpu() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
__device__ inline void add_release(int* to, int value) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

/** The compiler moves no access to memory across this. */
__device__ inline void keep_order() { asm volatile("" ::: "memory"); }
/** The compiler computes what follows from `x` here, and keeps none of it in registers from before. */
__device__ inline void compute_again(uint32_t& x) { asm volatile("" : "+r"(x)); }

/** Four 8 x 8 matrices; lanes 8 i .. 8 i + 7 give the addresses of matrix i's rows. */
__device__ inline void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}
__device__ inline void load_matrices_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

/** c += a b, of 16 x 16 and 16 x 8 elements. */
template <class T>
__device__ inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ inline void multiply_add<Bf16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ inline void multiply_add<Half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/** Two floats rounded to two elements, `low` in the lower half. */
template <class T>
__device__ inline uint32_t pack(float low, float high);
template <>
__device__ inline uint32_t pack<Bf16>(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
template <>
__device__ inline uint32_t pack<Half>(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

/** Of n lanes side by side, 2 or 4: lane i's word j goes to lane j as its word i. */
template <int n>
__device__ void transpose_words(uint32_t (&words)[n]) {
#pragma unroll
  for (int distance = 1; distance < n; distance *= 2) {
    const bool upper = (threadIdx.x & distance) != 0;
#pragma unroll
    for (int i = 0; i < n; i++) {
      if ((i & distance) != 0) continue;
      const uint32_t taken = __shfl_xor_sync(~0u, upper ? words[i] : words[i + distance], distance);
      (upper ? words[i] : words[i + distance]) = taken;
    }
  }
}

/**
 * A row of a product, of T in memory, 16 bytes at a time: half of a sector, which a lane's two neighbours are
 * of four lanes' tile of 8, takes longer. two(n) gives a lane's two of tile n. All of a warp call it; there
 * are no columns from `columns` on.
 */
template <class T, int kTiles, class Two>
__device__ void write_row(T* to, int columns, const Two& two) {
#pragma unroll
  for (int first = 0; first < kTiles; first += 4) {
    uint32_t words[4];
#pragma unroll
    for (int n = 0; n < 4; n++) {
      const float2 values = two(first + n < kTiles ? first + n : kTiles - 1);
      words[n] = pack<T>(values.x, values.y);
    }
    transpose_words(words);
    const int column = 8 * (first + static_cast<int>(threadIdx.x) % 4);
    if (column < columns) {
      *reinterpret_cast<uint4*>(to + column) = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
}

/** Rows that so many threads copy at once, 16 bytes each, of `chunks` times 16 bytes: a power of two. */
constexpr int rows_a_pass(int threads, int chunks) { return 1 << (31 - __builtin_clz(threads / chunks)); }

/** threadIdx.x, read once: the compiler would read it again wherever registers are short, which takes long.
 */
__device__ inline int thread_index() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}

/** Relative error 2^-20 or so; tanh.approx has 2^-11. */
__device__ inline float tanh_accurate(float x) {
  const float magnitude = fabsf(x);
  if (magnitude < 0.25f) {  // x - x^3/3 + 2 x^5/15 - 17 x^7/315 + 62 x^9/2835
    const float square = x * x;
    return x + x * square *
                   fmaf(square, fmaf(square, fmaf(square, 62.f / 2835, -17.f / 315), 2.f / 15), -1.f / 3);
  }
  float exponential;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(exponential) : "f"(-2.885390081777927f * magnitude));
  return copysignf(__fdividef(1 - exponential, 1 + exponential), x);
}

/** 2^x, 0 for -inf; relative error 2^-22. */
__device__ inline float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace longseq::sm80
