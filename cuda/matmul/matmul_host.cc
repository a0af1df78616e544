// The matrix product on the CPU engine: operands are packed in blocks that are worked on together, and the
// blocks of C that they give are cut into tasks. The cuts depend on shapes alone, and every element's sum has
// a fixed order, so results are the same bits at any thread count.
#include <algorithm>

#include "core/thread_pool.h"
#include "matmul/matmul.h"
#include "matmul/tiles.h"

namespace longseq {
namespace {

/** What is packed at a time: at most 16 MiB of each operand, and batch entries together up to that. Another
 * pass over C for each kBlock of the depth, and over A for each kBlock of the columns, is then a fraction of
 * a percent. */
constexpr int64_t kBlock = 2048, kPackedBudget = int64_t{16} << 20;
/** Of C, a task: their panels of B, a step deep, fill half of a second-level cache of 1 MiB. */
constexpr int64_t kTaskRows = 192, kTaskColumns = 256;
/** Fewer tasks than this may leave cores idle: then they are made smaller. */
constexpr int64_t kFewTasks = 64;
constexpr int64_t kPackBytes = 256 << 10;  // of a task
/** Below this many multiply-adds, waking the pool costs more than it saves. */
constexpr double kSmall = 2e6;

int64_t ceil_div(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }
int64_t round_up(int64_t value, int64_t unit) { return ceil_div(value, unit) * unit; }

/** Near `size`, so that the last of the pieces is no sliver. */
int64_t even_piece(int64_t whole, int64_t size, int64_t unit) {
  return round_up(ceil_div(whole, std::max<int64_t>(1, ceil_div(whole, size))), unit);
}

/** A block of an operand in panels: lanes are the rows of A or the columns of B. */
struct Panels {
  const Matrix& matrix;
  bool as_rows, bfloat16;
  int64_t width, slack;  // of a panel
  char* memory = nullptr;
  int64_t lanes = 0, depth = 0;  // of the block in hand
  int64_t first_lane = 0, first_depth = 0;

  int64_t bytes_of_panel(int64_t of_depth) const {
    const int64_t elements = bfloat16 ? ceil_div(of_depth, 2) : of_depth;
    return (elements * width + slack) * 4;
  }
  int64_t bytes_of(int64_t of_lanes, int64_t of_depth) const {
    return round_up(ceil_div(of_lanes, width) * bytes_of_panel(of_depth), 64);
  }
  char* at(int64_t entry, int64_t lane) const {
    return memory + entry * bytes_of(lanes, depth) + lane / width * bytes_of_panel(depth);
  }
  /** Lanes of a task that packs. */
  int64_t piece() const {
    return std::max<int64_t>(1, kPackBytes / std::max<int64_t>(1, bytes_of_panel(depth))) * width;
  }
  PackTask task(int64_t batch_entry, int64_t entry, int64_t lane) const {
    const Tensor& x = matrix.tensor;
    const bool lanes_lie_in_rows = matrix.transposed == as_rows;
    const int64_t lane_stride = lanes_lie_in_rows ? 1 : matrix.stride;
    const int64_t depth_stride = lanes_lie_in_rows ? matrix.stride : 1;
    const int64_t first =
        batch_entry * matrix.batch_stride + (first_lane + lane) * lane_stride + first_depth * depth_stride;
    return {x.data<char>() + first * size_of(x.dtype),
            x.dtype,
            lane_stride,
            depth_stride,
            std::min(piece(), lanes - lane),
            depth,
            as_rows,
            bfloat16,
            at(entry, lane),
            bytes_of_panel(depth)};
  }
};

Rows rows_of(const Tensor& x, int64_t element, int64_t stride) {
  return {x.data<char>() + element * size_of(x.dtype), stride, x.dtype};
}

}  // namespace

void run(const Cpu& cpu, const Matmul& op) {
  TileShape tile;
  run(cpu, FindTileShape{&tile});
  const bool bfloat16 =
      op.a.tensor.dtype == DType::BFloat16 && instruction_set() == InstructionSet::Avx512Bf16;
  const bool small = static_cast<double>(op.batch * op.m) * static_cast<double>(op.n * op.k) < kSmall;
  const auto for_each_task = [&](int64_t count, FunctionRef<void(int64_t, int)> body) {
    if (!small) return parallel_for(count, body);
    for (int64_t task = 0; task < count; task++) body(task, 0);
  };
  const auto use = op.out.tensor.device()->memory();

  Panels a{op.a, true, bfloat16, tile.rows, tile.slack}, b{op.b, false, bfloat16, tile.columns, 0};
  const int64_t block_m = std::min(op.m, kBlock), block_n = std::min(op.n, kBlock);
  const int64_t block_k = std::min(op.k, kBlock);
  const int64_t a_bytes = a.bytes_of(block_m, block_k), b_bytes = b.bytes_of(block_n, block_k);
  const int64_t together =
      std::clamp<int64_t>(kPackedBudget / std::max<int64_t>(1, std::max(a_bytes, b_bytes)), 1, op.batch);
  const HostBlock packed(static_cast<size_t>(together * (a_bytes + b_bytes)), use);
  a.memory = static_cast<char*>(packed.data());
  b.memory = a.memory + together * a_bytes;

  int64_t most_rows = kTaskRows, most_columns = kTaskColumns;
  while (op.batch * ceil_div(op.m, most_rows) * ceil_div(op.n, most_columns) < kFewTasks &&
         most_rows * most_columns > 48 * 128) {
    (most_rows > 48 && most_rows * 2 >= most_columns ? most_rows : most_columns) /= 2;
  }
  const int64_t scratch_bytes =
      round_up(round_up(most_rows, tile.rows) * round_up(most_columns, tile.columns) * 4, 4096);
  const HostBlock scratch(static_cast<size_t>(scratch_bytes * (small ? 1 : thread_count().threads)), use);

  // Sums that wait for the next block of the depth are float32: the result's own where it is.
  const bool sums_apart = op.k > kBlock && op.out.tensor.dtype != DType::Float32;
  const HostBlock sums(sums_apart ? static_cast<size_t>(together * op.m * block_n) * 4 : 0, use);

  for (int64_t first_entry = 0; first_entry < op.batch; first_entry += together) {
    const int64_t entries = std::min(together, op.batch - first_entry);
    for (b.first_lane = 0; b.first_lane < op.n; b.first_lane += kBlock) {
      b.lanes = std::min(kBlock, op.n - b.first_lane);
      // Once at least: a depth of 0 has a result too.
      for (int64_t k = 0; k == 0 || k < op.k; k += kBlock) {
        const bool is_first = k == 0, is_last = k + kBlock >= op.k;
        a.first_depth = b.first_depth = k;
        a.depth = b.depth = std::min(kBlock, op.k - k);
        for (a.first_lane = 0; a.first_lane < op.m; a.first_lane += kBlock) {
          a.lanes = std::min(kBlock, op.m - a.first_lane);
          const int64_t a_tasks = ceil_div(a.lanes, a.piece());
          const int64_t b_tasks = a.first_lane == 0 ? ceil_div(b.lanes, b.piece()) : 0;
          for_each_task(entries * (a_tasks + b_tasks), [&](int64_t task, int) {
            const int64_t entry = task / (a_tasks + b_tasks), piece = task % (a_tasks + b_tasks);
            run(cpu, piece < a_tasks ? a.task(first_entry + entry, entry, piece * a.piece())
                                     : b.task(first_entry + entry, entry, (piece - a_tasks) * b.piece()));
          });

          const int64_t rows = even_piece(a.lanes, most_rows, tile.rows);
          const int64_t columns = even_piece(b.lanes, most_columns, tile.columns);
          const int64_t row_tasks = ceil_div(a.lanes, rows), column_tasks = ceil_div(b.lanes, columns);
          for_each_task(entries * row_tasks * column_tasks, [&](int64_t task, int slot) {
            const int64_t entry = task / (row_tasks * column_tasks);
            const int64_t row = task / column_tasks % row_tasks * rows,
                          column = task % column_tasks * columns;
            const int64_t m = a.first_lane + row, n = b.first_lane + column;
            const Rows out =
                rows_of(op.out.tensor, (first_entry + entry) * op.out.batch_stride + m * op.out.stride + n,
                        op.out.stride);
            Rows so_far = out;
            if (sums_apart) {
              float* const first = static_cast<float*>(sums.data()) + entry * op.m * block_n;
              so_far = {reinterpret_cast<char*>(first + m * block_n + column), block_n, DType::Float32};
            }
            const Rows none{nullptr, 0, DType::Float32};
            run(cpu,
                ProductTask{
                    a.at(entry, row), b.at(entry, column), a.bytes_of_panel(a.depth),
                    b.bytes_of_panel(b.depth), std::min(rows, a.lanes - row),
                    std::min(columns, b.lanes - column), a.depth, bfloat16,
                    op.bias && is_last ? op.bias.data<char>() + n * size_of(op.bias.dtype) : nullptr,
                    op.bias.dtype,
                    !is_first       ? so_far
                    : op.accumulate ? out
                                    : none,
                    is_last ? out : so_far,
                    reinterpret_cast<float*>(static_cast<char*>(scratch.data()) + slot * scratch_bytes)});
          });
        }
      }
    }
  }
}

}  // namespace longseq
