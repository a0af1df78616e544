// Checks of the activations' arguments, the same for every engine, and the CPU engine's loop over blocks of
// rows.
#include "activation/activation.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "activation/rows.h"
#include "activation/tasks.h"
#include "core/division.h"
#include "core/thread_pool.h"

namespace longseq {
namespace {

constexpr int64_t kGrain = 1 << 15;    // elements a task: some tens of microseconds
constexpr int64_t kMostPartials = 64;  // partial sums of a column: more than there are threads to gain

/** What a task takes: neighbouring rows at one distance, of one block of rows, and a block of their columns.
 */
struct Block {
  int64_t index, row, rows, column, columns;
};

/** Calls body(block) in parallel; a block of rows is one task for each block of columns. */
template <size_t count, class Body>
void for_blocks(const Rows<count>& rows, int64_t block_rows, Body body) {
  const int64_t column_blocks = ceil_div(rows.columns, kGrain);
  parallel_for(ceil_div(rows.rows, block_rows) * column_blocks, [&](int64_t task) {
    const int64_t column = task % column_blocks * kGrain, index = task / column_blocks;
    const int64_t end = std::min(rows.rows, (index + 1) * block_rows);
    for (int64_t row = index * block_rows, taken; row < end; row += taken) {
      taken = rows.run(row, end - row);
      body(Block{index, row, taken, column, std::min(kGrain, rows.columns - column)});
    }
  });
}

int64_t rows_of_grain(int64_t columns) { return std::max<int64_t>(1, kGrain / columns); }

/** A tensor's part of a block; `index` is the tensor's among those that `rows` was made of. */
template <size_t count>
RowsOf part(const Tensor& tensor, const Rows<count>& rows, int index, const Block& block) {
  const int64_t at = rows.offset(index, block.row) + block.column;
  return {tensor.data<char>() + at * size_of(tensor.dtype), rows.stride(index)};
}

const char* part(const Tensor& bias, const Block& block) {
  return bias ? bias.data<char>() + block.column * size_of(bias.dtype) : nullptr;
}

/** y = the sum of the partial sums, in their order. */
void add_partials(const float* partials, int64_t count, const Tensor& y) {
  const int64_t columns = y.size(0), grain = std::max<int64_t>(1, kGrain / count);
  visit_float(y.dtype, [&]<class T>(T) {
    parallel_for(ceil_div(columns, grain), [&](int64_t task) {
      for (int64_t i = task * grain; i < std::min(columns, (task + 1) * grain); i++) {
        float sum = 0;
        for (int64_t p = 0; p < count; p++) sum += partials[p * columns + i];
        y.data<T>()[i] = from_float<T>(sum);
      }
    });
  });
}

void check_input(const Tensor& x, const char* what) {
  check(x.rank >= 1, Code::Shape, what, " has no axes, expected [..., F]");
  check(is_float(x.dtype), Code::DType, what, " is ", name_of(x.dtype),
        ", expected float32, bfloat16 or float16");
  check(x.size(-1) <= 1 || x.stride(-1) == 1, Code::Shape, what, "'s last axis has stride ", x.stride(-1),
        ", expected 1");
}

bool same_shape(const Tensor& a, const Tensor& b) {
  return a.rank == b.rank && std::equal(a.shape.begin(), a.shape.begin() + a.rank, b.shape.begin());
}

void check_like(const Tensor& tensor, const char* what, const Tensor& like, const char* like_name) {
  check(same_shape(tensor, like), Code::Shape, what, " has the shape ", shape_text(tensor), ", expected ",
        shape_text(like), " (that of ", like_name, ")");
  check(tensor.dtype == like.dtype, Code::DType, what, " is ", name_of(tensor.dtype), ", expected ",
        name_of(like.dtype), " (that of ", like_name, ")");
  check(tensor.device() == like.device(), Code::Device, what, " is on another device than ", like_name);
  check_input(tensor, what);
}

void check_bias(const Tensor& bias, const char* what, const Tensor& x) {
  check(bias.rank == 1 && bias.size(0) == x.size(-1), Code::Shape, what, " has the shape ", shape_text(bias),
        ", expected [", x.size(-1), "] (the rows of x)");
  check(bias.size(0) <= 1 || bias.stride(0) == 1, Code::Shape, what, " has stride ", bias.stride(0),
        ", expected 1");
  check(bias.dtype == x.dtype, Code::DType, what, " is ", name_of(bias.dtype), ", expected ",
        name_of(x.dtype), " (that of x)");
  check(bias.device() == x.device(), Code::Device, what, " is on another device than x");
}

}  // namespace

void run(const Cpu& cpu, const GeluForward& op) {
  if (op.y.elements() == 0) return;
  const Rows<2> rows({&op.x, &op.y});
  for_blocks(rows, rows_of_grain(rows.columns), [&](const Block& block) {
    run(cpu, GeluForwardTask{op.x.dtype, op.form, part(op.x, rows, 0, block), part(op.y, rows, 1, block),
                             part(op.bias, block), block.rows, block.columns});
  });
}

void run(const Cpu& cpu, const GeluBackward& op) {
  const Tensor& dbias = op.dbias;
  if (op.dx.elements() == 0) {
    if (dbias) std::memset(dbias.data<char>(), 0, static_cast<size_t>(dbias.bytes()));
    return;
  }
  const Rows<3> rows({&op.x, &op.dy, &op.dx});
  // By shape alone, so that the sums are the same bits at any thread count.
  const int64_t block_rows = std::max(rows_of_grain(rows.columns), ceil_div(rows.rows, kMostPartials));
  const int64_t partials = dbias ? ceil_div(rows.rows, block_rows) : 0;
  const size_t bytes = static_cast<size_t>(partials * rows.columns) * sizeof(float);
  const Memory scratch = bytes ? allocate(cpu, bytes) : Memory{};
  float* const sums = static_cast<float*>(scratch.data);
  if (bytes) std::memset(sums, 0, bytes);
  for_blocks(rows, block_rows, [&](const Block& block) {
    float* const sum = sums ? sums + block.index * rows.columns + block.column : nullptr;
    run(cpu,
        GeluBackwardTask{op.x.dtype, op.form, part(op.x, rows, 0, block), part(op.dy, rows, 1, block),
                         part(op.dx, rows, 2, block), part(op.bias, block), sum, block.rows, block.columns});
  });
  if (dbias) add_partials(sums, partials, dbias);
}

void run(const Cpu& cpu, const SwigluForward& op) {
  if (op.y.elements() == 0) return;
  const Rows<3> rows({&op.gate, &op.up, &op.y});
  for_blocks(rows, rows_of_grain(rows.columns), [&](const Block& block) {
    run(cpu, SwigluForwardTask{op.y.dtype, part(op.gate, rows, 0, block), part(op.up, rows, 1, block),
                               part(op.y, rows, 2, block), block.rows, block.columns});
  });
}

void run(const Cpu& cpu, const SwigluBackward& op) {
  if (op.dy.elements() == 0) return;
  const Rows<5> rows({&op.gate, &op.up, &op.dy, &op.dgate, &op.dup});
  for_blocks(rows, rows_of_grain(rows.columns), [&](const Block& block) {
    run(cpu, SwigluBackwardTask{op.dy.dtype, part(op.gate, rows, 0, block), part(op.up, rows, 1, block),
                                part(op.dy, rows, 2, block), part(op.dgate, rows, 3, block),
                                part(op.dup, rows, 4, block), block.rows, block.columns});
  });
}

void gelu_forward(Tensor x, std::optional<Tensor> bias, bool tanh, Tensor y) {
  check_input(x, "gelu: x");
  if (bias) check_bias(*bias, "gelu: bias", x);
  check_like(y, "gelu: y", x, "x");
  const auto device = x.device();
  device->submit(GeluForward{std::move(x), std::move(bias).value_or(Tensor{}),
                             tanh ? GeluForm::Tanh : GeluForm::Erf, std::move(y)});
}

void gelu_backward(Tensor x, std::optional<Tensor> bias, bool tanh, Tensor dy, Tensor dx,
                   std::optional<Tensor> dbias) {
  check_input(x, "gelu: x");
  if (bias) check_bias(*bias, "gelu: bias", x);
  if (dbias) check_bias(*dbias, "gelu: dbias", x);
  check_like(dy, "gelu: dy", x, "x");
  check_like(dx, "gelu: dx", x, "x");
  const auto device = x.device();
  device->submit(GeluBackward{std::move(x), std::move(bias).value_or(Tensor{}),
                              tanh ? GeluForm::Tanh : GeluForm::Erf, std::move(dy), std::move(dx),
                              std::move(dbias).value_or(Tensor{})});
}

void swiglu_forward(Tensor gate, Tensor up, Tensor y) {
  check_input(gate, "swiglu: gate");
  check_like(up, "swiglu: up", gate, "gate");
  check_like(y, "swiglu: y", gate, "gate");
  const auto device = gate.device();
  device->submit(SwigluForward{std::move(gate), std::move(up), std::move(y)});
}

void swiglu_backward(Tensor gate, Tensor up, Tensor dy, Tensor dgate, Tensor dup) {
  check_input(gate, "swiglu: gate");
  check_like(up, "swiglu: up", gate, "gate");
  check_like(dy, "swiglu: dy", gate, "gate");
  check_like(dgate, "swiglu: dgate", gate, "gate");
  check_like(dup, "swiglu: dup", gate, "gate");
  const auto device = gate.device();
  device->submit(
      SwigluBackward{std::move(gate), std::move(up), std::move(dy), std::move(dgate), std::move(dup)});
}

}  // namespace longseq
