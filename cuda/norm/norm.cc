#include "norm/norm.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "core/thread_pool.h"

namespace longseq {
namespace {

constexpr int64_t kGrain = 1 << 15;   // elements a task, as of elementwise operations
constexpr int64_t kMostParts = 64;    // of the sums over rows: by shape alone, so that sums have one order
constexpr int64_t kColumnGrain = 64;  // columns of those parts that a task adds up: a few cache lines of each

/** Checks x or its like, and the vectors that go with it. Returns the operation's name. */
const char* check_operands(const Tensor& x, const char* x_name, const Tensor& weight,
                           const std::optional<Tensor>& mean, const Tensor& reciprocal_deviation) {
  const char* const operation = mean ? "layerNorm" : "rmsNorm";
  check(is_float(x.dtype), Code::DType, operation, ": ", x_name, " is ", name_of(x.dtype),
        ", expected float32, bfloat16 or float16");
  check_row_stride(operation, x, x_name);
  check(weight.dtype == x.dtype || weight.dtype == DType::Float32, Code::DType, operation, ": weight is ",
        name_of(weight.dtype), ", expected float32", x.dtype == DType::Float32 ? "" : " or ",
        x.dtype == DType::Float32 ? "" : name_of(x.dtype), " (that of ", x_name, ")");
  if (mean) check_row_statistic(operation, *mean, "mean", x);
  check_row_statistic(operation, reciprocal_deviation, "reciprocalDeviation", x);
  return operation;
}

void check_columns(const char* operation, const Tensor& vector, const char* name, const Tensor& x) {
  check(vector.rank == 1 && vector.contiguous(), Code::Shape, operation, ": ", name, " has the shape ",
        shape_text(vector), ", expected [", x.size(-1), "] without gaps (the rows of x)");
  check(vector.size(0) == x.size(-1), Code::Shape, operation, ": ", name, " has ", vector.size(0),
        " values, expected ", x.size(-1), " (the rows of x)");
  check(vector.device() == x.device(), Code::Device, operation, ": ", name, " is on another device than x");
}

void check_dtype(const char* operation, const Tensor& tensor, const char* name, const Tensor& like,
                 const char* like_name) {
  check(tensor.dtype == like.dtype, Code::DType, operation, ": ", name, " is ", name_of(tensor.dtype),
        ", expected ", name_of(like.dtype), " (that of ", like_name, ")");
}

void check_like(const char* operation, const Tensor& tensor, const char* name, const Tensor& like,
                const char* like_name) {
  check_rows_like(operation, tensor, name, like, like_name);
  check_dtype(operation, tensor, name, like, like_name);
}

/** to = the sum of `parts` rows of `columns` floats, in their order. */
void add_parts(const float* from, int64_t parts, int64_t columns, const Tensor& to) {
  visit_float(to.dtype, [&]<class T>(T) {
    parallel_for((columns + kColumnGrain - 1) / kColumnGrain, [&](int64_t task) {
      const int64_t first = task * kColumnGrain, count = std::min(kColumnGrain, columns - first);
      float sums[kColumnGrain] = {};
      for (int64_t part = 0; part < parts; part++) {
        for (int64_t i = 0; i < count; i++) sums[i] += from[part * columns + first + i];
      }
      for (int64_t i = 0; i < count; i++) to.data<T>()[first + i] = from_float<T>(sums[i]);
    });
  });
}

}  // namespace

NormForwardRows rows_of(const NormForward& op) {
  return {.dtype = op.x.dtype,
          .weight_dtype = op.weight.dtype,
          .columns = op.x.size(-1),
          .begin = 0,
          .end = row_count(op.x),
          .eps = op.eps,
          .x = rows_of(op.x),
          .residual = rows_of(op.residual),
          .out = rows_of(op.out),
          .sum = rows_of(op.sum),
          .weight = op.weight.data<char>(),
          .bias = op.bias ? op.bias.data<char>() : nullptr,
          .mean = op.mean ? op.mean.data<float>() : nullptr,
          .reciprocal_deviation = op.reciprocal_deviation.data<float>()};
}

NormBackwardRows rows_of(const NormBackward& op) {
  return {.dtype = op.sum.dtype,
          .weight_dtype = op.weight.dtype,
          .columns = op.sum.size(-1),
          .begin = 0,
          .end = row_count(op.sum),
          .sum = rows_of(op.sum),
          .dout = rows_of(op.dout),
          .dsum = rows_of(op.dsum),
          .dx = rows_of(op.dx),
          .weight = op.weight.data<char>(),
          .mean = op.mean ? op.mean.data<float>() : nullptr,
          .reciprocal_deviation = op.reciprocal_deviation.data<float>(),
          .dweight = nullptr,
          .dbias = nullptr};
}

void run(const Cpu& cpu, const NormForward& op) {
  const NormForwardRows all = rows_of(op);
  const int64_t per_task = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, all.columns));
  parallel_for((all.end + per_task - 1) / per_task, [&](int64_t task) {
    NormForwardRows rows = all;
    rows.begin = task * per_task;
    rows.end = std::min(all.end, rows.begin + per_task);
    run(cpu, rows);
  });
}

void run(const Cpu& cpu, const NormBackward& op) {
  const NormBackwardRows all = rows_of(op);
  if (all.columns == 0) return;
  const int64_t least = std::max<int64_t>(1, kGrain / all.columns);
  const int64_t per_part = std::max(least, (all.end + kMostParts - 1) / kMostParts);
  const int64_t parts = (all.end + per_part - 1) / per_part;
  const auto bytes = static_cast<size_t>(parts * all.columns) * sizeof(float);
  const Memory dweight = allocate(cpu, bytes), dbias = allocate(cpu, op.dbias ? bytes : 0);
  parallel_for(parts, [&](int64_t part) {
    const auto part_of = [&](const Memory& memory) {
      float* const values = static_cast<float*>(memory.data) + part * all.columns;
      std::memset(values, 0, static_cast<size_t>(all.columns) * sizeof(float));
      return values;
    };
    NormBackwardRows rows = all;
    rows.begin = part * per_part;
    rows.end = std::min(all.end, rows.begin + per_part);
    rows.dweight = part_of(dweight);
    if (op.dbias) rows.dbias = part_of(dbias);
    run(cpu, rows);
  });
  add_parts(static_cast<const float*>(dweight.data), parts, all.columns, op.dweight);
  if (op.dbias) add_parts(static_cast<const float*>(dbias.data), parts, all.columns, op.dbias);
}

void norm_forward(Tensor x, std::optional<Tensor> residual, Tensor weight, std::optional<Tensor> bias,
                  double eps, Tensor out, std::optional<Tensor> sum, std::optional<Tensor> mean,
                  Tensor reciprocal_deviation) {
  const char* const operation = check_operands(x, "x", weight, mean, reciprocal_deviation);
  check_columns(operation, weight, "weight", x);
  if (bias) {
    check_columns(operation, *bias, "bias", x);
    check_dtype(operation, *bias, "bias", weight, "weight");
  }
  check(std::isfinite(static_cast<float>(eps)) && eps >= 0, Code::Option, operation, ": eps is ", eps,
        ", expected a finite number of 0 or more");
  check(residual.has_value() == sum.has_value(), Code::Option, operation, ": residual and sum go together");
  if (residual) {
    check_like(operation, *residual, "residual", x, "x");
    check_like(operation, *sum, "sum", x, "x");
  }
  check_like(operation, out, "out", x, "x");
  const auto device = x.device();
  device->submit(NormForward{.x = std::move(x),
                             .residual = std::move(residual).value_or(Tensor{}),
                             .weight = std::move(weight),
                             .bias = std::move(bias).value_or(Tensor{}),
                             .eps = static_cast<float>(eps),
                             .out = std::move(out),
                             .sum = std::move(sum).value_or(Tensor{}),
                             .mean = std::move(mean).value_or(Tensor{}),
                             .reciprocal_deviation = std::move(reciprocal_deviation)});
}

void norm_backward(Tensor sum, Tensor weight, std::optional<Tensor> mean, Tensor reciprocal_deviation,
                   Tensor dout, std::optional<Tensor> dsum, Tensor dx, Tensor dweight,
                   std::optional<Tensor> dbias) {
  const char* const operation = check_operands(sum, "x", weight, mean, reciprocal_deviation);
  check_columns(operation, weight, "weight", sum);
  check_like(operation, dout, "dout", sum, "x");
  if (dsum) check_like(operation, *dsum, "dsum", sum, "x");
  check_like(operation, dx, "dx", sum, "x");
  check_columns(operation, dweight, "dweight", sum);
  check_dtype(operation, dweight, "dweight", weight, "weight");
  if (dbias) {
    check_columns(operation, *dbias, "dbias", sum);
    check_dtype(operation, *dbias, "dbias", weight, "weight");
  }
  const auto device = sum.device();
  device->submit(NormBackward{.sum = std::move(sum),
                              .weight = std::move(weight),
                              .mean = std::move(mean).value_or(Tensor{}),
                              .reciprocal_deviation = std::move(reciprocal_deviation),
                              .dout = std::move(dout),
                              .dsum = std::move(dsum).value_or(Tensor{}),
                              .dx = std::move(dx),
                              .dweight = std::move(dweight),
                              .dbias = std::move(dbias).value_or(Tensor{})});
}

}  // namespace longseq
