// Checks of the matrix product's arguments, the same for every engine, and the way to the device's queue.
#include "matmul/matmul.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "elementwise/elementwise.h"

namespace longseq {
namespace {

/** What a call and its operands are named in messages. */
struct Names {
  const char *call, *a, *b, *bias, *out;
};

constexpr Names kMatmul{"matmul: ", "a", "b", "bias", "out"};
constexpr Names kLinear{"linear: ", "x", "weight", "bias", "y"};
constexpr Names kLinearInput{"linear: ", "dy", "weight", "", "dx"};
constexpr Names kLinearWeight{"linear: ", "dy", "x", "", "dweight"};

void check_operand(const Tensor& x, const Names& names, const char* name, const Tensor& a) {
  check(x.device() == a.device(), Code::Device, names.call, name, " is on another device than ", names.a);
  check(x.dtype == a.dtype, Code::DType, names.call, name, " is ", name_of(x.dtype), ", expected ",
        name_of(a.dtype), " (that of ", names.a, ")");
}

void check_result(const Tensor& y, const Names& names, const char* name, const Tensor& a) {
  check(y.device() == a.device(), Code::Device, names.call, name, " is on another device than ", names.a);
  check(y.dtype == a.dtype || y.dtype == DType::Float32, Code::DType, names.call, name, " is ",
        name_of(y.dtype), ", expected ", name_of(a.dtype), " (that of ", names.a, ") or float32");
}

void check_bias(const Tensor& bias, const Names& names, const char* name, int64_t columns) {
  check(bias.rank == 1 && bias.size(0) == columns, Code::Shape, names.call, name, " has the shape ",
        shape_text(bias), ", expected [", columns, "] (the columns of ", names.out, ")");
}

/** The first byte of its storage that a tensor with elements reaches, and the one behind the last. */
std::pair<int64_t, int64_t> reach(const Tensor& x) {
  int64_t last = x.offset;
  for (int axis = 0; axis < x.rank; axis++) last += (x.size(axis) - 1) * x.stride(axis);
  return {x.offset * size_of(x.dtype), (last + 1) * size_of(x.dtype)};
}

void check_apart(const Tensor& out, const Tensor& x, const Names& names, const char* name) {
  if (out.storage != x.storage || out.elements() == 0 || x.elements() == 0) return;
  const auto [out_begin, out_end] = reach(out);
  const auto [begin, end] = reach(x);
  check(out_end <= begin || end <= out_begin, Code::Option, names.call, names.out, " and ", name,
        " overlap in memory");
}

Tensor packed(const Tensor& x) {
  Tensor copy = Tensor::empty(x.device(), x.dtype, std::span(x.shape.data(), static_cast<size_t>(x.rank)));
  x.device()->submit(Copy{x, copy});
  return copy;
}

/** [.., C] as [R, C]; empty where that is no view. */
std::optional<Tensor> as_rows(const Tensor& x) {
  Tensor rows{.storage = x.storage, .dtype = x.dtype, .rank = 2, .offset = x.offset};
  int64_t count = 1, stride = 0;
  for (int axis = 0; axis < x.rank - 1; axis++) {
    if (x.size(axis) == 1) continue;
    if (count != 1 && x.elements() != 0 && stride != x.stride(axis) * x.size(axis)) return std::nullopt;
    count *= x.size(axis);
    stride = x.stride(axis);
  }
  rows.shape = {count, x.size(-1)};
  rows.strides = {stride, x.stride(-1)};
  return rows;
}

Tensor rows_of(const Tensor& x) {
  if (const auto rows = as_rows(x)) return *rows;
  return *as_rows(packed(x));
}

/** The matrix of the last two axes, in whichever order lies in rows; empty where neither does. */
std::optional<Matrix> as_matrix(const Tensor& x, bool transposed) {
  const int64_t batch_stride = x.rank == 3 ? x.stride(0) : 0;
  // Row r, column c of memory; a lone row may have any stride.
  const auto lies = [&](int row_axis, int column_axis) {
    const int64_t rows = x.size(row_axis), columns = x.size(column_axis);
    return (columns <= 1 || x.stride(column_axis) == 1) && (rows <= 1 || x.stride(row_axis) >= columns);
  };
  const auto made = [&](int row_axis, int column_axis, bool transposed) {
    const bool alone = x.size(row_axis) <= 1;
    const int64_t stride = alone ? x.size(column_axis) : x.stride(row_axis);
    return Matrix{x, std::max<int64_t>(stride, 1), batch_stride, transposed};
  };
  if (lies(-2, -1)) return made(-2, -1, transposed);
  if (lies(-1, -2)) return made(-1, -2, !transposed);
  return std::nullopt;
}

Matrix matrix_of(const Tensor& x, bool transposed) {
  if (const auto matrix = as_matrix(x, transposed)) return *matrix;
  return *as_matrix(packed(x), transposed);
}

/** op(x)'s rows and columns. */
std::pair<int64_t, int64_t> sizes_of(const Tensor& x, bool transposed) {
  return transposed ? std::pair{x.size(-1), x.size(-2)} : std::pair{x.size(-2), x.size(-1)};
}

/** The product of two matrices, or of two batches of them, all of which have two axes or all three. */
void multiply(const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias, const Tensor& out,
              bool transpose_a, bool transpose_b, bool accumulate, const Names& names) {
  const auto [m, k] = sizes_of(a, transpose_a);
  const auto [b_k, n] = sizes_of(b, transpose_b);
  check(b_k == k, Code::Shape, names.call, names.b, " has ", b_k, transpose_b ? " columns" : " rows",
        ", expected ", k, " (the ", transpose_a ? "rows" : "columns", " of ", names.a, ")");
  const auto [out_m, out_n] = sizes_of(out, false);
  check(out_m == m && out_n == n, Code::Shape, names.call, names.out, " has the shape ", shape_text(out),
        ", expected its matrices to be [", m, ", ", n, "]");
  check(std::max({m, n, k, out.rank == 3 ? out.size(0) : 1}) <= INT32_MAX, Code::Shape, names.call,
        "an axis has at most 2^31 - 1 elements");
  if (bias) check_bias(*bias, names, names.bias, n);
  const auto result = as_matrix(out, false);
  check(result && !result->transposed, Code::Shape, names.call, names.out,
        " has no contiguous rows: its last axis has stride ", out.stride(-1), ", expected 1");
  if (out.elements() == 0) return;
  const auto device = out.device();
  std::visit([](const auto& engine) { require_products(engine); }, device->engine());
  device->submit(Matmul{.batch = out.rank == 3 ? out.size(0) : 1,
                        .m = m,
                        .n = n,
                        .k = k,
                        .a = matrix_of(a, transpose_a),
                        .b = matrix_of(b, transpose_b),
                        .out = *result,
                        .bias = !bias                ? Tensor{}
                                : bias->contiguous() ? *bias
                                                     : packed(*bias),
                        .accumulate = accumulate});
}

void check_tensors(const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias, const Tensor& out,
                   const Names& names) {
  check(is_float(a.dtype), Code::DType, names.call, names.a, " is ", name_of(a.dtype),
        ", expected float32, bfloat16 or float16");
  check_operand(b, names, names.b, a);
  if (bias) check_operand(*bias, names, names.bias, a);
  check_result(out, names, names.out, a);
  check_apart(out, a, names, names.a);
  check_apart(out, b, names, names.b);
  if (bias) check_apart(out, *bias, names, names.bias);
}

bool same_leading_axes(const Tensor& x, const Tensor& y) {
  return x.rank == y.rank && std::equal(x.shape.begin(), x.shape.begin() + x.rank - 1, y.shape.begin());
}

/** x [.., K] times a matrix of two axes. */
void multiply_rows(const Tensor& x, const Tensor& matrix, const std::optional<Tensor>& bias, const Tensor& y,
                   bool transpose, const Names& names) {
  check(matrix.rank == 2, Code::Shape, names.call, names.b, " has the shape ", shape_text(matrix),
        ", expected two axes");
  check(same_leading_axes(x, y), Code::Shape, names.call, names.out, " has the shape ", shape_text(y),
        ", expected that of ", names.a, ", ", shape_text(x), ", but for its last axis");
  const auto y_rows = as_rows(y);
  check(y_rows.has_value(), Code::Shape, names.call, names.out,
        " has leading axes that lie apart, expected rows at one stride");
  multiply(rows_of(x), matrix, bias, *y_rows, false, transpose, false, names);
}

void sum_columns(const Tensor& x, const Tensor& y, bool accumulate) {
  Tensor rows = rows_of(x);
  if (rows.size(1) > 1 && rows.stride(1) != 1) rows = packed(rows);
  const auto device = y.device();
  device->submit(ColumnSum{std::move(rows), y, accumulate});
}

}  // namespace

void matmul(Tensor a, Tensor b, std::optional<Tensor> bias, Tensor out, bool transpose_a, bool transpose_b,
            bool accumulate) {
  check(a.rank >= 2, Code::Shape, "matmul: a has the shape ", shape_text(a),
        ", expected [.., M, K] or [B, M, K]");
  check_tensors(a, b, bias, out, kMatmul);
  if (b.rank == 2 && !(a.rank == 2)) {
    check(!transpose_a, Code::Option, "matmul: transposeA is given for a of the shape ", shape_text(a),
          ", expected two axes, or three of b too");
    const auto out_rows = same_leading_axes(a, out) ? as_rows(out) : std::nullopt;
    check(out_rows.has_value(), Code::Shape, "matmul: out has the shape ", shape_text(out),
          ", expected that of a, ", shape_text(a), ", but for its last axis, at one stride");
    return multiply(rows_of(a), b, bias, *out_rows, false, transpose_b, accumulate, kMatmul);
  }
  check(b.rank == a.rank && a.rank <= 3, Code::Shape, "matmul: b has the shape ", shape_text(b),
        ", expected [K, N], or [B, K, N] for a of three axes");
  check(out.rank == a.rank, Code::Shape, "matmul: out has the shape ", shape_text(out), ", expected ", a.rank,
        " axes as a has");
  if (a.rank == 3) {
    check(b.size(0) == a.size(0), Code::Shape, "matmul: b has batch size ", b.size(0), ", expected ",
          a.size(0), " (that of a)");
    check(out.size(0) == a.size(0), Code::Shape, "matmul: out has batch size ", out.size(0), ", expected ",
          a.size(0), " (that of a)");
  }
  multiply(a, b, bias, out, transpose_a, transpose_b, accumulate, kMatmul);
}

void linear(Tensor x, Tensor weight, std::optional<Tensor> bias, Tensor y) {
  check(x.rank >= 1, Code::Shape, "linear: x has no axis, expected [.., I]");
  check_tensors(x, weight, bias, y, kLinear);
  multiply_rows(x, weight, bias, y, true, kLinear);
}

void linear_backward(Tensor dy, std::optional<Tensor> x, Tensor weight, std::optional<Tensor> dx,
                     std::optional<Tensor> dweight, std::optional<Tensor> dbias, bool adds_to_dweight,
                     bool adds_to_dbias) {
  check(dy.rank >= 1, Code::Shape, "linear: dy has no axis, expected [.., O]");
  check(weight.rank == 2 && weight.size(0) == dy.size(-1), Code::Shape, "linear: weight has the shape ",
        shape_text(weight), ", expected [", dy.size(-1), ", I] (the last axis of dy)");
  if (dx) check_tensors(dy, weight, std::nullopt, *dx, kLinearInput);
  if (x) {
    check(same_leading_axes(dy, *x), Code::Shape, "linear: dy has the shape ", shape_text(dy),
          ", expected that of x, ", shape_text(*x), ", but for its last axis");
    check(weight.size(1) == x->size(-1), Code::Shape, "linear: weight has the shape ", shape_text(weight),
          ", expected [", dy.size(-1), ", ", x->size(-1), "] (the last axes of dy and x)");
  }
  if (dweight) {
    check(x.has_value(), Code::Option, "linear: dweight needs x");
    check_tensors(dy, *x, std::nullopt, *dweight, kLinearWeight);
    check(dweight->rank == 2 && dweight->shape == weight.shape, Code::Shape, "linear: dweight has the shape ",
          shape_text(*dweight), ", expected ", shape_text(weight), " (that of weight)");
  }
  if (dbias) {
    check_bias(*dbias, {"linear: ", "", "", "", "dy"}, "dbias", dy.size(-1));
    check_result(*dbias, kLinearInput, "dbias", dy);
    check(dbias->contiguous(), Code::Shape, "linear: dbias is not contiguous");
  }
  const Tensor dy_rows = rows_of(dy);
  if (dx) multiply_rows(dy, weight, std::nullopt, *dx, false, kLinearInput);
  if (dweight) {
    multiply(dy_rows, rows_of(*x), std::nullopt, *dweight, true, false, adds_to_dweight, kLinearWeight);
  }
  if (dbias) sum_columns(dy_rows, *dbias, adds_to_dbias);
}

void column_sum(Tensor x, Tensor y) {
  check(x.rank >= 1 && is_float(x.dtype) && is_float(y.dtype), Code::DType, "columnSum: x is ",
        name_of(x.dtype), ", expected float32, bfloat16 or float16");
  check(y.device() == x.device(), Code::Device, "columnSum: y is on another device than x");
  check(y.rank == 1 && y.size(0) == x.size(-1) && y.contiguous(), Code::Shape, "columnSum: y has the shape ",
        shape_text(y), ", expected [", x.size(-1), "] (the columns of x)");
  sum_columns(x, y, false);
}

}  // namespace longseq
