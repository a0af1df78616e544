// The matrix product on the CPU engine: operands are packed in blocks that are worked on together, and the
// blocks of C that they give are cut into tasks. The cuts depend on shapes alone, and every element's sum has
// a fixed order, so results are the same bits at any thread count.
#include <algorithm>

#include "core/division.h"
#include "core/thread_pool.h"
#include "matmul/matmul.h"
#include "matmul/tiles.h"

namespace longseq {
namespace {

/** What is packed at a time of A, and of B: up to 64 and 16 MiB, and batch entries together up to
 * kPackedBudget. Packing costs a percent of a product as large as a block, and a block has tasks for hundreds
 * of cores. */
constexpr int64_t kBlockRows = 8192, kBlockColumns = 2048, kBlockDepth = 2048;
constexpr int64_t kPackedBudget = int64_t{64} << 20;
/** Of C, a task: with what it takes of A and B in a step of the depth, within a second-level cache of 1 MiB.
 * (Measured: 384 x 256 and 192 x 512 were no faster, 192 x 512 slower where the cache is shared.) */
constexpr int64_t kTaskRows = 192, kTaskColumns = 256;
/** Fewer tasks than this may leave cores idle: then they are made smaller. */
constexpr int64_t kFewTasks = 64, kLeastTask = 48 * 128;
constexpr int64_t kPackBytes = 256 << 10;  // of a task
/** Below this many multiply-adds, waking the pool costs more than it saves. */
constexpr double kSmall = 2e6;

/** Near `size`, so that the last of the pieces is no sliver. */
int64_t even_piece(int64_t whole, int64_t size, int64_t unit) {
  return round_up(ceil_div(whole, std::max<int64_t>(1, ceil_div(whole, size))), unit);
}

/** A block of an operand in panels: lanes are the rows of A or the columns of B. */
struct Panels {
  Matrix matrix;
  bool as_rows, bfloat16;
  int64_t width, slack;  // of a panel
  char* memory = nullptr;
  int64_t first_lane = 0, lanes = 0, first_depth = 0, depth = 0;  // of the block in hand

  void take_lanes(int64_t first, int64_t count) { first_lane = first, lanes = count; }
  void take_depth(int64_t first, int64_t count) { first_depth = first, depth = count; }
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

/** A call in blocks: batch entries that are worked on together, of each some rows, columns and depth. */
class Blocks {
 public:
  Blocks(const Cpu& cpu, const Matmul& op)
      : cpu_(cpu),
        op_(op),
        small_(static_cast<double>(op.batch * op.m) * static_cast<double>(op.n * op.k) < kSmall),
        bfloat16_(op.a.tensor.dtype == DType::BFloat16 && instruction_set() == InstructionSet::Avx512Bf16),
        // Sums that wait for the next block of the depth are float32: the result's own where it is.
        sums_apart_(op.k > kBlockDepth && op.out.tensor.dtype != DType::Float32) {
    run(cpu, FindTileShape{&tile_});
    a_ = {op.a, true, bfloat16_, tile_.rows, tile_.slack};
    b_ = {op.b, false, bfloat16_, tile_.columns, 0};
    const int64_t rows = std::min(op.m, kBlockRows), columns = std::min(op.n, kBlockColumns);
    const int64_t depth = std::min(op.k, kBlockDepth);
    const int64_t a_bytes = a_.bytes_of(rows, depth), b_bytes = b_.bytes_of(columns, depth);
    together_ = std::clamp<int64_t>(kPackedBudget / std::max<int64_t>(1, a_bytes + b_bytes), 1, op.batch);
    const auto use = op.out.tensor.device()->memory();
    packed_ = HostBlock(static_cast<size_t>(together_ * (a_bytes + b_bytes)), use);
    a_.memory = static_cast<char*>(packed_.data());
    b_.memory = a_.memory + together_ * a_bytes;
    if (sums_apart_) sums_ = HostBlock(static_cast<size_t>(together_ * rows * columns) * 4, use);

    while (op.batch * ceil_div(op.m, task_rows_) * ceil_div(op.n, task_columns_) < kFewTasks &&
           task_rows_ * task_columns_ > kLeastTask) {
      (task_rows_ * 2 >= task_columns_ ? task_rows_ : task_columns_) /= 2;
    }
    scratch_bytes_ =
        round_up(round_up(task_rows_, tile_.rows) * round_up(task_columns_, tile_.columns) * 4, 4096);
    scratch_ = HostBlock(static_cast<size_t>(scratch_bytes_ * (small_ ? 1 : thread_count().threads)), use);
  }

  void run_all() {
    for (first_entry_ = 0; first_entry_ < op_.batch; first_entry_ += together_) {
      entries_ = std::min(together_, op_.batch - first_entry_);
      for (int64_t n = 0; n < op_.n; n += kBlockColumns) {
        b_.take_lanes(n, std::min(kBlockColumns, op_.n - n));
        for (int64_t m = 0; m < op_.m; m += kBlockRows) {
          a_.take_lanes(m, std::min(kBlockRows, op_.m - m));
          // Once at least: a depth of 0 has a result too.
          for (int64_t k = 0; k == 0 || k < op_.k; k += kBlockDepth) {
            for (Panels* const panels : {&a_, &b_}) panels->take_depth(k, std::min(kBlockDepth, op_.k - k));
            pack();
            multiply(k == 0, k + kBlockDepth >= op_.k);
          }
        }
      }
    }
  }

 private:
  void for_each_task(int64_t count, FunctionRef<void(int64_t, int)> body) const {
    if (!small_) return parallel_for(count, body);
    for (int64_t task = 0; task < count; task++) body(task, 0);
  }

  void pack() const {
    const int64_t a_tasks = ceil_div(a_.lanes, a_.piece()), b_tasks = ceil_div(b_.lanes, b_.piece());
    for_each_task(entries_ * (a_tasks + b_tasks), [&](int64_t task, int) {
      const int64_t entry = task / (a_tasks + b_tasks), piece = task % (a_tasks + b_tasks);
      run(cpu_, piece < a_tasks ? a_.task(first_entry_ + entry, entry, piece * a_.piece())
                                : b_.task(first_entry_ + entry, entry, (piece - a_tasks) * b_.piece()));
    });
  }

  void multiply(bool is_first, bool is_last) const {
    const int64_t rows = even_piece(a_.lanes, task_rows_, tile_.rows);
    const int64_t columns = even_piece(b_.lanes, task_columns_, tile_.columns);
    const int64_t row_tasks = ceil_div(a_.lanes, rows), column_tasks = ceil_div(b_.lanes, columns);
    for_each_task(entries_ * row_tasks * column_tasks, [&](int64_t task, int slot) {
      const int64_t entry = task / (row_tasks * column_tasks);
      const int64_t row = task / column_tasks % row_tasks * rows, column = task % column_tasks * columns;
      const Rows out = rows_of_result(entry, row, column), none{nullptr, 0, DType::Float32};
      const Rows so_far = sums_apart_ ? rows_of_sums(entry, row, column) : out;
      ProductTask product{
          .a_panels = a_.at(entry, row),
          .b_panels = b_.at(entry, column),
          .a_panel_bytes = a_.bytes_of_panel(a_.depth),
          .b_panel_bytes = b_.bytes_of_panel(b_.depth),
          .rows = std::min(rows, a_.lanes - row),
          .columns = std::min(columns, b_.lanes - column),
          .depth = a_.depth,
          .bfloat16 = bfloat16_,
          .bias = nullptr,
          .bias_dtype = op_.bias.dtype,
          .addend = so_far,
          .out = is_last ? out : so_far,
          .scratch = reinterpret_cast<float*>(static_cast<char*>(scratch_.data()) + slot * scratch_bytes_)};
      if (is_first) product.addend = op_.accumulate ? out : none;
      if (is_last && op_.bias) {
        product.bias = op_.bias.data<char>() + (b_.first_lane + column) * size_of(op_.bias.dtype);
      }
      run(cpu_, product);
    });
  }

  Rows rows_of_result(int64_t entry, int64_t row, int64_t column) const {
    const Tensor& out = op_.out.tensor;
    const int64_t element = (first_entry_ + entry) * op_.out.batch_stride +
                            (a_.first_lane + row) * op_.out.stride + b_.first_lane + column;
    return {out.data<char>() + element * size_of(out.dtype), op_.out.stride, out.dtype};
  }
  Rows rows_of_sums(int64_t entry, int64_t row, int64_t column) const {
    float* const sums = static_cast<float*>(sums_.data()) + entry * a_.lanes * b_.lanes;
    return {reinterpret_cast<char*>(sums + row * b_.lanes + column), b_.lanes, DType::Float32};
  }

  const Cpu& cpu_;
  const Matmul& op_;
  const bool small_, bfloat16_, sums_apart_;
  TileShape tile_;
  Panels a_, b_;
  int64_t task_rows_ = kTaskRows, task_columns_ = kTaskColumns, scratch_bytes_;
  int64_t first_entry_ = 0, together_, entries_ = 0;
  HostBlock packed_, sums_, scratch_;
};

}  // namespace

void run(const Cpu& cpu, const Matmul& op) { Blocks(cpu, op).run_all(); }

}  // namespace longseq
