// Sums of columns on the CPU engine: parts of the rows, then the parts, both cut by shape alone.
#include <algorithm>

#include "core/thread_pool.h"
#include "matmul/matmul.h"
#include "matmul/tiles.h"

namespace longseq {
namespace {

/** Rows of a part: at least so many, and so many more that there are at most kMostParts. */
constexpr int64_t kPartRows = 256, kMostParts = 256;
constexpr int64_t kTaskColumns = 1024;

}  // namespace

void run(const Cpu& cpu, const ColumnSum& op) {
  const int64_t rows = op.x.size(0), columns = op.x.size(1);
  const int64_t part_rows = std::max(kPartRows, (rows + kMostParts - 1) / kMostParts);
  const int64_t parts = (rows + part_rows - 1) / part_rows;
  const int64_t cuts = (columns + kTaskColumns - 1) / kTaskColumns;
  const HostBlock memory(static_cast<size_t>((parts + 1) * columns) * 4, op.x.device()->memory());
  float *const partial = static_cast<float*>(memory.data()), *const sums = partial + parts * columns;
  parallel_for(parts * cuts, [&](int64_t task) {
    const int64_t part = task / cuts, column = task % cuts * kTaskColumns, first = part * part_rows;
    run(cpu, ColumnSumTask{{op.x.data<char>() + (first * op.x.stride(0) + column) * size_of(op.x.dtype),
                            op.x.stride(0), op.x.dtype},
                           std::min(part_rows, rows - first),
                           std::min(kTaskColumns, columns - column),
                           partial + part * columns + column});
  });
  parallel_for(cuts, [&](int64_t cut) {
    const int64_t column = cut * kTaskColumns, end = std::min(columns, column + kTaskColumns);
    run(cpu, ColumnSumTask{{reinterpret_cast<char*>(partial + column), columns, DType::Float32},
                           parts,
                           end - column,
                           sums + column});
    visit_float(op.y.dtype, [&]<class T>(T) {
      T* const y = op.y.data<T>();
      for (int64_t c = column; c < end; c++) {
        y[c] = from_float<T>(op.accumulate ? static_cast<float>(y[c]) + sums[c] : sums[c]);
      }
    });
  });
}

}  // namespace longseq
