#pragma once
// The instructions of Hopper that kernels are made of: copies of boxes of a tensor (TMA), products of a
// warpgroup (wgmma). Layouts of fragments and of tiles in shared memory: PTX ISA, "wgmma.mma_async".
//
// A tile in shared memory is cut in pages of 64 columns (128 bytes a row) whose 16-byte chunks are permuted
// by the row's last three bits; a page begins at a multiple of 1,024 bytes.
#include <cuda.h>

#include <cstdint>

#include "tile/barrier.h"
#include "tile/sm80.h"

namespace longseq::sm90 {

using sm80::Barrier, sm80::Barriers, sm80::Ring;

/** A block's shared memory, which begins at a multiple of 1,024, as pages must. */
__device__ inline char* aligned_memory() {
  extern __shared__ __align__(1024) char bytes[];
  return bytes;
}

/** The barriers that a thread has made are there for the copies of tensors too. */
__device__ inline void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/** What this thread has written to shared memory, or read there, comes before later copies of boxes. */
__device__ inline void publish_writes() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/** The same of global memory. */
__device__ inline void publish_global_writes() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

/** The box at these coordinates, the innermost first, into shared memory; elsewhere than in the tensor,
 * zeros. */
__device__ inline void copy_box(uint32_t to, const CUtensorMap& map, const Barrier& barrier, int column,
                                int row, int head, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, "
      "%5, "
      "%6}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrier.address()), "r"(column), "r"(row), "r"(head), "r"(batch)
      : "memory");
}
/** Whole rows of 16 bytes. */
__device__ inline void copy_bytes(uint32_t to, const void* from, int bytes, const Barrier& barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier.address())
      : "memory");
}
/** Adds floats, 16-byte aligned, from shared memory to global; reads them later, before wait_reductions ends.
 */
__device__ inline void reduce_bytes(float* to, uint32_t from, int bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to),
               "r"(from), "r"(bytes)
               : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
/** What this thread reduces has been added. */
__device__ inline void finish_reductions() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
/** What this thread reduces has been read, but for the `left` latest. */
template <int left>
__device__ inline void wait_reductions() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(left) : "memory");
}
/** The box at these coordinates from shared memory, as far as it is in the tensor; read later, before
 * wait_reductions ends. */
__device__ inline void store_box(const CUtensorMap& map, uint32_t from, int column, int row, int head,
                                 int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map),
      "r"(from), "r"(column), "r"(row), "r"(head), "r"(batch)
      : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
/** Four 8 x 8 matrices; lanes 8 i .. 8 i + 7 give the addresses of matrix i's rows in memory. */
__device__ inline void store_matrices(uint32_t to, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(r[0]),
               "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}
/** Four 8 x 8 matrices, transposed; lanes 8 i .. 8 i + 7 give the addresses of matrix i's rows in memory. */
__device__ inline void store_matrices_transposed(uint32_t to, const uint32_t* r) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(r[0]),
               "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

/** An operand whose columns a product sums over (depth); `bytes` further is the next step of 16 of them,
 * which is 32 within a page. */
__device__ inline uint64_t depth_operand(uint32_t address) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 |
         uint64_t{1} << 62;
}
/** An operand whose rows a product sums over; the next 16 of them are 2,048 bytes further, and the next 64
 * columns `page_bytes`. */
__device__ inline uint64_t row_operand(uint32_t address, int page_bytes) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | static_cast<uint64_t>(page_bytes >> 4) << 16 |
         uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}
__device__ inline uint64_t further(uint64_t operand, int bytes) { return operand + (bytes >> 4); }

/** Before products that read registers written since the last ones. */
__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/** All but the `left` groups committed last are done. */
template <int left>
__device__ inline void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(left) : "memory");
}

/** Registers of a product that is under way: the compiler may not keep or move copies of them across this. */
template <int count>
__device__ inline void pin(float (&d)[count]) {
#pragma unroll
  for (float& x : d) asm volatile("" : "+f"(x)::"memory");
}

/** Of 64 x 16 and 16 x kColumns elements. */
template <class T, int kColumns>
struct Product;

#define LONGSEQ_8(io, i) \
  io(d[i]), io(d[i + 1]), io(d[i + 2]), io(d[i + 3]), io(d[i + 4]), io(d[i + 5]), io(d[i + 6]), io(d[i + 7])
#define LONGSEQ_16(io, i) LONGSEQ_8(io, i), LONGSEQ_8(io, i + 8)
#define LONGSEQ_32(io, i) LONGSEQ_16(io, i), LONGSEQ_16(io, i + 16)
#define LONGSEQ_64(io, i) LONGSEQ_32(io, i), LONGSEQ_32(io, i + 32)
#define LONGSEQ_OUT(x) "=f"(x)
#define LONGSEQ_IN_OUT(x) "+f"(x)

#define LONGSEQ_T32                                                                        \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23," \
  "%24,%25,%26,%27,%28,%29,%30,%31"
#define LONGSEQ_T40 LONGSEQ_T32 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define LONGSEQ_T48 LONGSEQ_T40 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define LONGSEQ_T64 LONGSEQ_T48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define LONGSEQ_T128                                                                                  \
  LONGSEQ_T64                                                                                         \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,"     \
  "%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108," \
  "%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

/* Both operands in shared memory, a by depth; b by rows, or by depth. */
#define LONGSEQ_SHARED_PRODUCT(verb, adds, name, columns, text, operands, n0, n1, n2)                       \
  template <bool kByRows = false>                                                                           \
  __device__ static void verb(D& d, uint64_t a, uint64_t b) {                                               \
    asm volatile("{ .reg .pred adds; setp.ne.b32 adds, " adds                                               \
                 ", 0;\n"                                                                                   \
                 "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." name "." name " {" text "}, %" #n0 \
                 ", %" #n1 ", adds, 1, 1, 0, %" #n2 "; }"                                                   \
                 : operands                                                                                 \
                 : "l"(a), "l"(b), "n"(static_cast<int>(kByRows)));                                         \
  }

#define LONGSEQ_PRODUCT(Element, name, columns, text, operands, n0, n1, n2, n3, n4)                   \
  template <>                                                                                         \
  struct Product<Element, columns> {                                                                  \
    using D = float[columns / 2];                                                                     \
    /* d = a b, and d += a b. */                                                                      \
    LONGSEQ_SHARED_PRODUCT(begin, "0", name, columns, text, operands(LONGSEQ_OUT), n0, n1, n2)        \
    LONGSEQ_SHARED_PRODUCT(add, "1", name, columns, text, operands(LONGSEQ_IN_OUT), n0, n1, n2)       \
    /* d += a b: a in registers, b by rows. */                                                        \
    __device__ static void add(D& d, const uint32_t* a, uint64_t b) {                                 \
      asm volatile(                                                                                   \
          "{ .reg .pred adds; setp.ne.b32 adds, 1, 0;\n"                                              \
          "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." name "." name " {" text "}, {%" #n0 \
          ", %" #n1 ", %" #n2 ", %" #n3 "}, %" #n4 ", adds, 1, 1, 1; }"                               \
          : operands(LONGSEQ_IN_OUT)                                                                  \
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                      \
    }                                                                                                 \
  };
#define LONGSEQ_D64(io) LONGSEQ_32(io, 0)
#define LONGSEQ_D80(io) LONGSEQ_32(io, 0), LONGSEQ_8(io, 32)
#define LONGSEQ_D96(io) LONGSEQ_32(io, 0), LONGSEQ_16(io, 32)
#define LONGSEQ_D128(io) LONGSEQ_64(io, 0)
#define LONGSEQ_D256(io) LONGSEQ_64(io, 0), LONGSEQ_64(io, 64)
#define LONGSEQ_PRODUCTS(Element, name)                                              \
  LONGSEQ_PRODUCT(Element, name, 64, LONGSEQ_T32, LONGSEQ_D64, 32, 33, 34, 35, 36)   \
  LONGSEQ_PRODUCT(Element, name, 80, LONGSEQ_T40, LONGSEQ_D80, 40, 41, 42, 43, 44)   \
  LONGSEQ_PRODUCT(Element, name, 96, LONGSEQ_T48, LONGSEQ_D96, 48, 49, 50, 51, 52)   \
  LONGSEQ_PRODUCT(Element, name, 128, LONGSEQ_T64, LONGSEQ_D128, 64, 65, 66, 67, 68) \
  LONGSEQ_PRODUCT(Element, name, 256, LONGSEQ_T128, LONGSEQ_D256, 128, 129, 130, 131, 132)
LONGSEQ_PRODUCTS(sm80::Bf16, "bf16")
LONGSEQ_PRODUCTS(sm80::Half, "f16")
#undef LONGSEQ_PRODUCT
#undef LONGSEQ_SHARED_PRODUCT
#undef LONGSEQ_PRODUCTS
#undef LONGSEQ_8
#undef LONGSEQ_16
#undef LONGSEQ_32
#undef LONGSEQ_64
#undef LONGSEQ_OUT
#undef LONGSEQ_IN_OUT
#undef LONGSEQ_D64
#undef LONGSEQ_D80
#undef LONGSEQ_D96
#undef LONGSEQ_D128
#undef LONGSEQ_D256
#undef LONGSEQ_T32
#undef LONGSEQ_T40
#undef LONGSEQ_T48
#undef LONGSEQ_T64
#undef LONGSEQ_T128

/** Begins c = left right^T: 64 rows by those of `right`, over kSteps times 16 columns of both, in pages of 64
 * columns that lie so many bytes apart. */
template <class T, int kSteps, int kLeftPage, int kRightPage, int count>
__device__ inline void begin_product(float (&c)[count], uint32_t left, uint32_t right) {
  const uint64_t a = depth_operand(left), b = depth_operand(right);
  begin_products();
#pragma unroll
  for (int step = 0; step < kSteps; step++) {
    const uint64_t left_step = further(a, step / 4 * kLeftPage + step % 4 * 32),
                   right_step = further(b, step / 4 * kRightPage + step % 4 * 32);
    if (step == 0) {
      Product<T, 2 * count>::begin(c, left_step, right_step);
    } else {
      Product<T, 2 * count>::add(c, left_step, right_step);
    }
  }
  commit_products();
}

/** c += left right, to be committed: of 64 rows in registers, and of `right` as many rows as those have
 * columns, in pages of 64 columns that lie kPage bytes apart. */
template <class T, int kPage, int count, int words>
__device__ inline void add_product(float (&c)[count], const uint32_t (&left)[words], uint32_t right) {
  const uint64_t rows = row_operand(right, kPage);
  begin_products();
#pragma unroll
  for (int step = 0; step < words / 4; step++) {
    Product<T, 2 * count>::add(c, left + 4 * step, further(rows, 2048 * step));
  }
}

}  // namespace longseq::sm90
