#include "loss/loss.h"

#include <algorithm>
#include <utility>

#include "core/thread_pool.h"

namespace longseq {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements a task: an exponential costs more than an element's traffic
constexpr const char* kOperation = "crossEntropy";

/** Calls work(part of the rows) for all of them, in parallel. */
template <class RowsOperation, class F>
void for_parts(const RowsOperation& all, F work) {
  const int64_t per_task = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, all.columns));
  parallel_for((all.end + per_task - 1) / per_task, [&](int64_t task) {
    RowsOperation part = all;
    part.begin = task * per_task;
    part.end = std::min(all.end, part.begin + per_task);
    work(part);
  });
}

/** One value for each row, or one for all of them. */
Rows values_of(const Tensor& tensor) { return {tensor, tensor.rank}; }

Reduction reduction_of(const std::string& name) {
  for (const auto& [known, reduction] :
       {std::pair{"none", Reduction::None}, {"sum", Reduction::Sum}, {"mean", Reduction::Mean}}) {
    if (name == known) return reduction;
  }
  throw Error(Code::Option,
              text(kOperation, ": reduction is \"", name, "\", expected \"mean\", \"sum\" or \"none\""));
}

int32_t checked_ignore_index(int64_t index) {
  check(index >= INT32_MIN && index <= INT32_MAX, Code::Option, kOperation, ": ignoreIndex is ", index,
        ", expected an int32");
  return static_cast<int32_t>(index);
}

void check_operands(const Tensor& logits, const Tensor& targets, const Tensor& log_sum_exp) {
  check(is_float(logits.dtype), Code::DType, kOperation, ": logits is ", name_of(logits.dtype),
        ", expected float32, bfloat16 or float16");
  check_row_stride(kOperation, logits, "logits");
  check(targets.dtype == DType::Int32, Code::DType, kOperation, ": targets is ", name_of(targets.dtype),
        ", expected int32");
  check(targets.device() == logits.device(), Code::Device, kOperation,
        ": targets is on another device than logits");
  check(targets.rank == logits.rank - 1 &&
            std::equal(targets.shape.begin(), targets.shape.begin() + targets.rank, logits.shape.begin()),
        Code::Shape, kOperation, ": targets has the shape ", shape_text(targets),
        ", expected one element for each row of logits, which is ", shape_text(logits));
  check_row_statistic(kOperation, log_sum_exp, "logSumExp", logits);
}

void check_element(const Tensor& tensor, const char* name, const Tensor& logits) {
  check(tensor.dtype == DType::Float32, Code::DType, kOperation, ": ", name, " is ", name_of(tensor.dtype),
        ", expected float32");
  check(tensor.device() == logits.device(), Code::Device, kOperation, ": ", name,
        " is on another device than logits");
  check(tensor.elements() == 1, Code::Shape, kOperation, ": ", name, " has the shape ", shape_text(tensor),
        ", expected one element");
}

void check_loss(const Tensor& loss, const char* name, Reduction reduction, const Tensor& logits) {
  if (reduction == Reduction::None) return check_row_statistic(kOperation, loss, name, logits);
  check_element(loss, name, logits);
}

}  // namespace

CrossEntropyForwardRows rows_of(const CrossEntropyForward& op) {
  return {.dtype = op.logits.dtype,
          .columns = op.logits.size(-1),
          .begin = 0,
          .end = row_count(op.logits),
          .ignore_index = op.ignore_index,
          .logits = rows_of(op.logits),
          .targets = values_of(op.targets),
          .losses = op.reduction == Reduction::None ? op.loss.data<float>() : nullptr,
          .log_sum_exp = op.log_sum_exp.data<float>()};
}

CrossEntropyBackwardRows rows_of(const CrossEntropyBackward& op) {
  return {.dtype = op.logits.dtype,
          .columns = op.logits.size(-1),
          .begin = 0,
          .end = row_count(op.logits),
          .ignore_index = op.ignore_index,
          .logits = rows_of(op.logits),
          .targets = values_of(op.targets),
          .dloss = values_of(op.dloss),
          .dlogits = rows_of(op.dlogits),
          .log_sum_exp = op.log_sum_exp.data<float>(),
          .count = op.reduction == Reduction::Mean ? op.count.data<float>() : nullptr};
}

void run(const Cpu& cpu, const CrossEntropyForward& op) {
  CrossEntropyForwardRows all = rows_of(op);
  const Memory scratch =
      allocate(cpu, op.reduction == Reduction::None ? 0 : static_cast<size_t>(all.end) * sizeof(float));
  if (op.reduction != Reduction::None) all.losses = static_cast<float*>(scratch.data);
  for_parts(all, [&](const CrossEntropyForwardRows& part) { run(cpu, part); });
  double total = 0, count = 0;
  for (int64_t row = 0; row < all.end; row++) {
    total += all.losses[row];
    count += *all.targets.row<const int32_t>(row) != op.ignore_index;
  }
  *op.count.data<float>() = static_cast<float>(count);
  if (op.reduction == Reduction::Mean) total /= std::max(count, 1.0);
  if (op.reduction != Reduction::None) *op.loss.data<float>() = static_cast<float>(total);
}

void run(const Cpu& cpu, const CrossEntropyBackward& op) {
  for_parts(rows_of(op), [&](const CrossEntropyBackwardRows& part) { run(cpu, part); });
}

void cross_entropy_forward(Tensor logits, Tensor targets, int64_t ignore_index, std::string reduction,
                           Tensor loss, Tensor log_sum_exp, Tensor count) {
  const Reduction kind = reduction_of(reduction);
  check_operands(logits, targets, log_sum_exp);
  check_loss(loss, "loss", kind, logits);
  check_element(count, "count", logits);
  const auto device = logits.device();
  device->submit(CrossEntropyForward{.logits = std::move(logits),
                                     .targets = std::move(targets),
                                     .ignore_index = checked_ignore_index(ignore_index),
                                     .reduction = kind,
                                     .loss = std::move(loss),
                                     .log_sum_exp = std::move(log_sum_exp),
                                     .count = std::move(count)});
}

void cross_entropy_backward(Tensor logits, Tensor targets, Tensor log_sum_exp, Tensor count, Tensor dloss,
                            int64_t ignore_index, std::string reduction, Tensor dlogits) {
  const Reduction kind = reduction_of(reduction);
  check_operands(logits, targets, log_sum_exp);
  check_loss(dloss, "dloss", kind, logits);
  check_element(count, "count", logits);
  check_rows_like(kOperation, dlogits, "dlogits", logits, "logits");
  check(dlogits.dtype == logits.dtype, Code::DType, kOperation, ": dlogits is ", name_of(dlogits.dtype),
        ", expected ", name_of(logits.dtype), " (that of logits)");
  const auto device = logits.device();
  device->submit(CrossEntropyBackward{.logits = std::move(logits),
                                      .targets = std::move(targets),
                                      .log_sum_exp = std::move(log_sum_exp),
                                      .count = std::move(count),
                                      .dloss = std::move(dloss),
                                      .ignore_index = checked_ignore_index(ignore_index),
                                      .reduction = kind,
                                      .dlogits = std::move(dlogits)});
}

}  // namespace longseq
