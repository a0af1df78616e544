// Sums of rows that lie apart: eight vectors of their columns at a time, over all of them, in registers.
#include "embedding/embedding.h"
#include "tile/vec_part.h"

namespace longseq::LONGSEQ_ISA {
namespace {

/** Of `vectors` vectors from `column` on, of which the last has `count` elements. */
template <int vectors, class T>
LONGSEQ_INLINE void sum_rows(const EmbeddingSumTask& task, int64_t column, int count) {
  Vec sums[vectors];
  for (Vec& sum : sums) sum = zero();
  for (int64_t first = 0; first < task.count; first += kEmbeddingPart) {
    const int64_t end = first + kEmbeddingPart < task.count ? first + kEmbeddingPart : task.count;
    Vec part[vectors];
    for (Vec& sum : part) sum = zero();
    for (int64_t i = first; i < end; i++) {
      const T* const row = task.dy.row<const T>(task.rows[i]) + task.first_column + column;
#pragma GCC unroll 8
      for (int v = 0; v < vectors; v++) part[v] = add(part[v], load_first(row + v * kLanes, count));
    }
    for (int v = 0; v < vectors; v++) sums[v] = add(sums[v], part[v]);
  }
  for (int v = 0; v < vectors; v++) store_first(task.sums + column + v * kLanes, sums[v], count);
}

}  // namespace

void run(const EmbeddingSumTask& task) {
  visit_float(task.dtype, [&]<class T>(T) {
    constexpr int kVectors = 8;
    int64_t column = 0;
    for (; column + kVectors * kLanes <= task.columns; column += kVectors * kLanes) {
      sum_rows<kVectors, T>(task, column, kLanes);
    }
    for (; column + kLanes <= task.columns; column += kLanes) sum_rows<1, T>(task, column, kLanes);
    if (column < task.columns) sum_rows<1, T>(task, column, static_cast<int>(task.columns - column));
  });
}

}  // namespace longseq::LONGSEQ_ISA
