// A block of C from packed operands (Goto and van de Geijn, "Anatomy of high-performance matrix
// multiplication"): the depth goes in steps whose panels of B stay in the second-level cache; within a step a
// strip of A stays in the first while the panels of B go by, and a tile of C in registers. Each step is
// summed by itself, and then added: the error grows with the square root of a step, not of the whole depth.
#include "matmul/tiles.h"
#include "tile/panels.h"

namespace longseq::LONGSEQ_ISA {
namespace {

constexpr int kStep = 256;  // of the depth, in elements

template <class Product>
void pack(const PackTask& task) {
  using Element = typename Product::Element;
  visit_pointer(task.dtype, [&]<class T>(const T*) {
    if constexpr (Product::kPair == 1 || sizeof(T) == 2) {
      const auto panels = [&]<int kWidth>() {
        for (int64_t lane = 0; lane < task.lanes; lane += kWidth) {
          pack_panel<Product, kWidth>(
              reinterpret_cast<const T*>(task.x) + lane * task.lane_stride, task.lane_stride,
              task.depth_stride, task.lanes - lane, task.depth,
              reinterpret_cast<Element*>(task.panels + lane / kWidth * task.panel_bytes));
        }
      };
      if (task.as_rows) {
        panels.template operator()<kRows>();
      } else {
        panels.template operator()<kTileColumns>();
      }
    }
  });
}

/** A strip of C over one step of the depth, = or +=. */
template <class Product, bool kAdds>
__attribute__((noinline)) void multiply_step(const typename Product::Element* a,
                                             const typename Product::Element* b, int64_t b_panel, int depth,
                                             int64_t columns, float* c) {
  for (int64_t column = 0; column < columns; column += kTileColumns, b += b_panel) {
    Vec sum[kRows][2];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) sum[r][0] = sum[r][1] = zero();
    multiply_add_tile<Product, 2, Lay::DepthMajor>(a, kRows, b, depth, sum);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) {
#pragma GCC unroll 2
      for (int n = 0; n < 2; n++) {
        float* const at = c + r * columns + column + n * kLanes;
        store(at, kAdds ? add(load(at), sum[r][n]) : sum[r][n]);
      }
    }
  }
}

/** y[0, count) += x, widened. */
LONGSEQ_INLINE void add_row(DType dtype, const char* x, int64_t count, float* y) {
  visit_pointer(dtype, [&]<class T>(const T*) {
    for (int64_t i = 0; i < count; i += kLanes) {
      store_part(y + i,
                 add(load_part(y + i, count - i), load_part(reinterpret_cast<const T*>(x) + i, count - i)),
                 count - i);
    }
  });
}

LONGSEQ_INLINE char* row_at(const Rows& rows, int64_t row) {
  return rows.data + row * rows.stride * (rows.dtype == DType::Float32 ? 4 : 2);
}

template <class Product>
void multiply(const ProductTask& task) {
  using Element = typename Product::Element;
  const int64_t depth = (task.depth + Product::kPair - 1) / Product::kPair;
  const int64_t columns = (task.columns + kTileColumns - 1) / kTileColumns * kTileColumns;
  const int64_t b_panel = task.b_panel_bytes / static_cast<int64_t>(sizeof(Element));
  // Once at least, so that a depth of 0 gives zeros.
  for (int64_t k = 0; k == 0 || k < depth; k += kStep) {
    const int step = static_cast<int>(depth - k < kStep ? depth - k : kStep);
    const auto* const b = reinterpret_cast<const Element*>(task.b_panels) + k * kTileColumns;
    for (int64_t row = 0; row < task.rows; row += kRows) {
      const auto* const a =
          reinterpret_cast<const Element*>(task.a_panels + row / kRows * task.a_panel_bytes) + k * kRows;
      float* const c = task.scratch + row * columns;
      if (k == 0) {
        multiply_step<Product, false>(a, b, b_panel, step, columns, c);
      } else {
        multiply_step<Product, true>(a, b, b_panel, step, columns, c);
      }
    }
  }
  for (int64_t row = 0; row < task.rows; row++) {
    float* const c = task.scratch + row * columns;
    if (task.bias) add_row(task.bias_dtype, task.bias, task.columns, c);
    if (task.addend.data) add_row(task.addend.dtype, row_at(task.addend, row), task.columns, c);
    visit_pointer(task.out.dtype, [&]<class T>(const T*) {
      T* const out = reinterpret_cast<T*>(row_at(task.out, row));
      for (int64_t i = 0; i < task.columns; i += kLanes) store_part(out + i, load(c + i), task.columns - i);
    });
  }
}

}  // namespace

void run(const FindTileShape& task) { *task.shape = {kRows, kTileColumns, kRows % kLanes == 0 ? 0 : kLanes}; }

void run(const PackTask& task) {
#if defined(__AVX512BF16__)
  if (task.bfloat16) return pack<BFloat16Product>(task);
#endif
  pack<Float32Product>(task);
}

void run(const ProductTask& task) {
#if defined(__AVX512BF16__)
  if (task.bfloat16) return multiply<BFloat16Product>(task);
#endif
  multiply<Float32Product>(task);
}

}  // namespace longseq::LONGSEQ_ISA
