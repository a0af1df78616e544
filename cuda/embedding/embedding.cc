#include "embedding/embedding.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "core/division.h"
#include "core/thread_pool.h"

namespace longseq {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements a task, as of elementwise operations
constexpr int64_t kTaskColumns =
    1024;  // of a task's sums: in the cache, and a few rows keep all threads busy
constexpr int64_t kLeastRowTasks = 64;  // where the table has as many rows
constexpr const char* kOperation = "embedding";

Rows values_of(const Tensor& tensor) { return {tensor, tensor.rank}; }

void check_float(const Tensor& tensor, const char* name) {
  check(is_float(tensor.dtype), Code::DType, kOperation, ": ", name, " is ", name_of(tensor.dtype),
        ", expected float32, bfloat16 or float16");
}

void check_table(const Tensor& table, const char* name) {
  check(table.rank == 2, Code::Shape, kOperation, ": ", name, " has the shape ", shape_text(table),
        ", expected two axes");
  check(table.size(0) <= INT32_MAX, Code::Shape, kOperation, ": ", name, " has ", table.size(0),
        " rows, expected at most 2^31 - 1");
}

/** y or dy: a row of the table for each index. */
void check_rows(const Tensor& rows, const char* name, const Tensor& indices, const Tensor& table,
                const char* table_name) {
  check(indices.dtype == DType::Int32, Code::DType, kOperation, ": indices is ", name_of(indices.dtype),
        ", expected int32");
  check(indices.device() == table.device(), Code::Device, kOperation, ": indices is on another device than ",
        table_name);
  check(indices.elements() <= INT32_MAX, Code::Shape, kOperation, ": indices has ", indices.elements(),
        " elements, expected at most 2^31 - 1");
  check(rows.device() == table.device(), Code::Device, kOperation, ": ", name, " is on another device than ",
        table_name);
  check(rows.rank == indices.rank + 1 &&
            std::equal(indices.shape.begin(), indices.shape.begin() + indices.rank, rows.shape.begin()) &&
            rows.size(-1) == table.size(1),
        Code::Shape, kOperation, ": ", name, " has the shape ", shape_text(rows),
        ", expected that of indices, ", shape_text(indices), ", and ", table.size(1), " (the columns of ",
        table_name, ")");
  check_row_stride(kOperation, rows, name);
}

/** Which rows name each row of the table: those of row v are rows[v ? ends[v - 1] : 0] to before ends[v]. */
void sort_rows(const Tensor& indices, int64_t table_rows, int64_t* ends, int32_t* rows) {
  const Rows values = values_of(indices);
  const int64_t count = indices.elements();
  const auto for_each_inside = [&](auto f) {
    for (int64_t row = 0; row < count; row++) {
      const int32_t index = *values.row<const int32_t>(row);
      if (index >= 0 && index < table_rows) f(row, ends[index]);
    }
  };
  std::fill_n(ends, table_rows, 0);
  for_each_inside([](int64_t, int64_t& hits) { hits++; });
  int64_t begin = 0;
  for (int64_t v = 0; v < table_rows; v++) begin += std::exchange(ends[v], begin);
  for_each_inside([&](int64_t row, int64_t& next) { rows[next++] = static_cast<int32_t>(row); });
}

}  // namespace

void run(const Cpu&, const Embedding& op) {
  const int64_t count = op.indices.elements(), columns = op.table.size(1);
  const Rows table = rows_of(op.table), indices = values_of(op.indices), y = rows_of(op.y);
  const int64_t per_task = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, columns));
  visit_float(op.table.dtype, [&]<class T>(T) {
    parallel_for(ceil_div(count, per_task), [&](int64_t task) {
      for (int64_t row = task * per_task; row < std::min(count, (task + 1) * per_task); row++) {
        const int32_t index = *indices.row<const int32_t>(row);
        if (index >= 0 && index < op.table.size(0)) {
          std::memcpy(y.row<T>(row), table.row<const T>(index), static_cast<size_t>(columns) * sizeof(T));
        } else {
          std::fill_n(y.row<T>(row), columns, from_float<T>(std::nanf("")));
        }
      }
    });
  });
}

void run(const Cpu& cpu, const EmbeddingBackward& op) {
  const int64_t table_rows = op.dtable.size(0), columns = op.dtable.size(1);
  if (table_rows == 0 || columns == 0) return;
  const auto end_bytes = static_cast<size_t>(table_rows) * sizeof(int64_t);
  const Memory scratch =
      allocate(cpu, end_bytes + static_cast<size_t>(op.indices.elements()) * sizeof(int32_t));
  auto* const ends = static_cast<int64_t*>(scratch.data);
  auto* const rows = reinterpret_cast<int32_t*>(static_cast<char*>(scratch.data) + end_bytes);
  sort_rows(op.indices, table_rows, ends, rows);
  const Rows dy = rows_of(op.dy);
  const int64_t width = std::min(columns, kTaskColumns), cuts = ceil_div(columns, width);
  const int64_t per_task =
      std::clamp<int64_t>(table_rows / kLeastRowTasks, 1, std::max<int64_t>(1, kGrain / width));
  parallel_for(ceil_div(table_rows, per_task) * cuts, [&](int64_t task) {
    const int64_t column = task % cuts * width, task_columns = std::min(width, columns - column);
    const int64_t first = task / cuts * per_task;
    for (int64_t v = first; v < std::min(table_rows, first + per_task); v++) {
      const int64_t begin = v > 0 ? ends[v - 1] : 0;
      if (ends[v] == begin && op.accumulate) continue;
      float sums[kTaskColumns];
      run(cpu, EmbeddingSumTask{.dtype = op.dy.dtype,
                                .dy = dy,
                                .rows = rows + begin,
                                .count = ends[v] - begin,
                                .first_column = column,
                                .columns = task_columns,
                                .sums = sums});
      visit_float(op.dtable.dtype, [&]<class T>(T) {
        T* const to = op.dtable.data<T>() + v * columns + column;
        for (int64_t c = 0; c < task_columns; c++) {
          to[c] = from_float<T>(op.accumulate ? static_cast<float>(to[c]) + sums[c] : sums[c]);
        }
      });
    }
  });
}

void embedding(Tensor table, Tensor indices, Tensor y) {
  check_float(table, "table");
  check_table(table, "table");
  check_row_stride(kOperation, table, "table");
  check_rows(y, "y", indices, table, "table");
  check(y.dtype == table.dtype, Code::DType, kOperation, ": y is ", name_of(y.dtype), ", expected ",
        name_of(table.dtype), " (that of table)");
  const auto device = table.device();
  device->submit(Embedding{std::move(table), std::move(indices), std::move(y)});
}

void embedding_backward(Tensor dy, Tensor indices, Tensor dtable, bool accumulate) {
  check_float(dy, "dy");
  check_table(dtable, "dtable");
  check(dtable.contiguous(), Code::Shape, kOperation, ": dtable is not contiguous");
  check_rows(dy, "dy", indices, dtable, "dtable");
  check(dtable.dtype == dy.dtype || dtable.dtype == DType::Float32, Code::DType, kOperation, ": dtable is ",
        name_of(dtable.dtype), ", expected ", name_of(dy.dtype), " (that of dy) or float32");
  const auto device = dtable.device();
  device->submit(EmbeddingBackward{std::move(dy), std::move(indices), std::move(dtable), accumulate});
}

}  // namespace longseq
