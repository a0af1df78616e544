// Attention as the border calls it: checked, and handed to the device's queue.
#include "attention/attention.h"

#include <utility>

#include "attention/attention_api.h"
#include "attention/attention_checks.h"
#include "elementwise/elementwise.h"

namespace longseq {
namespace {

DType dtype_of(const AttentionForward& op) { return op.q.dtype; }
DType dtype_of(const AttentionBackward& op) { return op.forward.q.dtype; }

/** Hands the operation, or its reference form, to the device's queue. */
template <class Reference, class Operation>
void queue(Operation op, const std::shared_ptr<Device>& device,
           const std::optional<std::string>& implementation) {
  if (implementation == "reference") {
    device->submit(Reference{std::move(op)});
    return;
  }
  op.kernels = choose_kernels(*device, dtype_of(op), implementation);
  device->submit(std::move(op));
}

}  // namespace

void attention_forward(Tensor q, Tensor k, Tensor v, Tensor out, Tensor log_sum_exp,
                       AttentionOptions options) {
  const auto device = q.device();
  queue<ReferenceForward>(checked_forward(std::move(q), std::move(k), std::move(v), std::move(out),
                                          std::move(log_sum_exp), options),
                          device, options.implementation);
}

void attention_forward_merged(Tensor q, Tensor k, Tensor v, Tensor before, Tensor out, Tensor log_sum_exp,
                              AttentionOptions options) {
  const auto device = q.device();
  check(before.dtype == DType::Float32, Code::DType, "attention: before is ", name_of(before.dtype),
        ", expected float32 (it is merged with)");
  if (!device->is_cpu() && q.dtype != DType::Float32 && options.implementation != "reference") {
    AttentionForward op = checked_forward(q, k, v, out, log_sum_exp, options);
    op.before = with_batch(std::move(before), 4);
    check_like(op.before, "attention: before", op.q, "q");
    return queue<ReferenceForward>(std::move(op), device, options.implementation);
  }
  const Tensor part = Tensor::empty(device, DType::Float32, std::span(out.shape.data(), out.rank));
  const Tensor sums =
      Tensor::empty(device, DType::Float32, std::span(log_sum_exp.shape.data(), log_sum_exp.rank));
  attention_forward(std::move(q), std::move(k), std::move(v), part, sums, options);
  attention_merge({before, part}, {log_sum_exp, sums}, out, log_sum_exp);
}

void attention_backward(Tensor q, Tensor k, Tensor v, Tensor out, Tensor log_sum_exp, Tensor dout,
                        std::optional<Tensor> dlog_sum_exp, Tensor dq, Tensor dk, Tensor dv, bool adds_to_dq,
                        bool adds_to_dk, bool adds_to_dv, AttentionOptions options) {
  const auto device = q.device();
  AttentionBackward op{.forward = checked_forward(std::move(q), std::move(k), std::move(v), std::move(out),
                                                  std::move(log_sum_exp), options),
                       .dout = with_batch(std::move(dout), 4),
                       .dlog_sum_exp = {},
                       .dq = with_batch(std::move(dq), 4),
                       .dk = with_batch(std::move(dk), 4),
                       .dv = with_batch(std::move(dv), 4),
                       .adds_to_dq = adds_to_dq,
                       .adds_to_dk = adds_to_dk,
                       .adds_to_dv = adds_to_dv,
                       .deterministic = options.deterministic};
  if (dlog_sum_exp) op.dlog_sum_exp = with_batch(std::move(*dlog_sum_exp), 3);
  check_output_gradients(op);
  check_gradient(op.dq, "attention: dq", op.forward.q, "q", adds_to_dq);
  check_gradient(op.dk, "attention: dk", op.forward.k, "k", adds_to_dk);
  check_gradient(op.dv, "attention: dv", op.forward.v, "v", adds_to_dv);
  queue<ReferenceBackward>(std::move(op), device, options.implementation);
}

QueryGradientHandle query_gradient_begin(Tensor q, Tensor out, Tensor log_sum_exp, Tensor dout,
                                         AttentionOptions options) {
  const auto device = q.device();
  check(q.rank == 4 && is_float(q.dtype), Code::Shape, "queryGradient: q is ", name_of(q.dtype), " ",
        shape_text(q), ", expected floats of [B, Sq, Hq, D]");
  check(!options.deterministic, Code::Option, "queryGradient: its sums have no order");
  AttentionBackward op;
  op.forward.q = std::move(q);
  op.forward.out = std::move(out);
  op.forward.log_sum_exp = std::move(log_sum_exp);
  op.forward.score.scale = static_cast<float>(options.scale);
  op.dout = std::move(dout);
  const Tensor& queries = op.forward.q;
  check_like(op.forward.out, "attention: out", queries, "q");
  check_log_sum_exp(op.forward.log_sum_exp, "attention: logSumExp", queries);
  check_output_gradients(op);
  op.adds_to_dq = true;
  if (options.implementation == "reference") {  // adds dq of each part to rows of float32
    op.dq = Tensor::empty(device, DType::Float32,
                          std::span(queries.shape.data(), static_cast<size_t>(queries.rank)));
    device->submit(Fill{op.dq, 0});
  } else {
    op.kernels = choose_kernels(*device, dtype_of(op), options.implementation);
    op.sums = std::make_shared<QuerySums>();
    device->submit(BeginQuerySums{op});
  }
  return std::make_shared<AttentionBackward>(std::move(op));
}

void query_gradient_add(QueryGradientHandle gradient, int64_t first, int64_t count, Tensor k, Tensor v,
                        Tensor dk, Tensor dv, bool adds_to_dk, bool adds_to_dv, AttentionOptions options) {
  AttentionBackward op = *gradient;
  const auto device = op.forward.q.device();
  const int64_t queries = op.forward.q.size(1), end = first + count;
  check(first >= 0 && count >= 0 && end <= queries && first % kQuerySumRows == 0 &&
            (end % kQuerySumRows == 0 || end == queries),
        Code::Shape, "queryGradient: got the queries ", first, " to ", end, " of ", queries,
        ", expected multiples of ", kQuerySumRows, ", or the last");
  op.forward = checked_forward(op.forward.q.rows(1, first, count), std::move(k), std::move(v),
                               op.forward.out.rows(1, first, count),
                               op.forward.log_sum_exp.rows(2, first, count), options);
  op.dout = op.dout.rows(1, first, count);
  if (op.dq) op.dq = op.dq.rows(1, first, count);
  op.dk = std::move(dk);
  op.dv = std::move(dv);
  op.adds_to_dk = adds_to_dk;
  op.adds_to_dv = adds_to_dv;
  op.first_query = first;
  check_gradient(op.dk, "attention: dk", op.forward.k, "k", adds_to_dk);
  check_gradient(op.dv, "attention: dv", op.forward.v, "v", adds_to_dv);
  if (options.implementation == "reference") {
    device->submit(ReferenceBackward{std::move(op)});
  } else {
    device->submit(std::move(op));
  }
}

void query_gradient_finish(QueryGradientHandle gradient, Tensor dq) {
  AttentionBackward op = *gradient;
  check_gradient(dq, "attention: dq", op.forward.q, "q", false);
  const auto device = dq.device();
  if (op.sums) {
    op.dq = std::move(dq);
    op.adds_to_dq = false;
    device->submit(FinishQuerySums{std::move(op)});
  } else {
    device->submit(Copy{op.dq, std::move(dq)});
  }
}

void attention_merge(std::vector<Tensor> outs, std::vector<Tensor> log_sum_exps, Tensor out,
                     Tensor log_sum_exp) {
  check(!outs.empty() && outs.size() == log_sum_exps.size(), Code::Option,
        "mergeAttention: expected at least one part");
  check(out.rank == 3 || out.rank == 4, Code::Shape, "mergeAttention: out has the shape ", shape_text(out),
        ", expected [B, Sq, Hq, D] or [T, Hq, D]");
  AttentionMerge op{
      .outs = {}, .log_sum_exps = {}, .out = with_batch(out, 4), .log_sum_exp = with_batch(log_sum_exp, 3)};
  check_log_sum_exp(op.log_sum_exp, "mergeAttention: logSumExp", op.out);
  for (size_t i = 0; i < outs.size(); i++) {
    check(is_float(outs[i].dtype), Code::DType, "mergeAttention: a part's out is ", name_of(outs[i].dtype),
          ", expected float32, bfloat16 or float16");
    op.outs.push_back(with_batch(outs[i], 4));
    op.log_sum_exps.push_back(with_batch(log_sum_exps[i], 3));
    check_like(op.outs.back(), "mergeAttention: a part's out", op.out, "the first part's");
    check_log_sum_exp(op.log_sum_exps.back(), "mergeAttention: a part's logSumExp", op.out);
  }
  const auto device = out.device();
  device->submit(std::move(op));
}

}  // namespace longseq
