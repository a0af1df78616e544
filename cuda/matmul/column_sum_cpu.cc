// Sums of columns: eight vectors of them at a time, over all rows, in registers.
#include "matmul/tiles.h"
#include "tile/panels.h"

namespace longseq::LONGSEQ_ISA {

void run(const ColumnSumTask& task) {
  visit_pointer(task.x.dtype, [&]<class T>(const T*) {
    const auto* const x = reinterpret_cast<const T*>(task.x.data);
    constexpr int kVectors = 8;
    int64_t column = 0;
    for (; column + kVectors * kLanes <= task.columns; column += kVectors * kLanes) {
      Vec sums[kVectors];
      for (Vec& sum : sums) sum = zero();
      for (int64_t row = 0; row < task.rows; row++) {
        const T* const at = x + row * task.x.stride + column;
#pragma GCC unroll 8
        for (int i = 0; i < kVectors; i++) sums[i] = add(sums[i], load(at + i * kLanes));
      }
      for (int i = 0; i < kVectors; i++) store(task.sums + column + i * kLanes, sums[i]);
    }
    for (; column < task.columns; column += kLanes) {
      Vec sum = zero();
      for (int64_t row = 0; row < task.rows; row++) {
        sum = add(sum, load_part(x + row * task.x.stride + column, task.columns - column));
      }
      store_part(task.sums + column, sum, task.columns - column);
    }
  });
}

}  // namespace longseq::LONGSEQ_ISA
