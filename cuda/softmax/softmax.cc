#include "softmax/softmax.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/thread_pool.h"

namespace longseq {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements a task: an exponential costs more than an element's traffic

/** Calls work(part of the rows, slot) for all of them, in parallel. */
template <class RowsOperation, class F>
void for_parts(const RowsOperation& all, F work) {
  const int64_t per_task = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, all.columns));
  parallel_for((all.end + per_task - 1) / per_task, [&](int64_t task, int slot) {
    RowsOperation part = all;
    part.begin = task * per_task;
    part.end = std::min(all.end, part.begin + per_task);
    work(part, slot);
  });
}

void check_rows(const Tensor& x, const char* name) {
  check(is_float(x.dtype), Code::DType, "softmax: ", name, " is ", name_of(x.dtype),
        ", expected float32, bfloat16 or float16");
  check_row_stride("softmax", x, name);
}

void check_like(const Tensor& tensor, const char* name, const Tensor& like, const char* like_name) {
  check_rows_like("softmax", tensor, name, like, like_name);
  check(tensor.dtype == like.dtype, Code::DType, "softmax: ", name, " is ", name_of(tensor.dtype),
        ", expected ", name_of(like.dtype), " (that of ", like_name, ")");
}

void check_scale(double scale) {
  check(std::isfinite(static_cast<float>(scale)), Code::Option, "softmax: scale is not a finite float32");
}

Tensor broadcast_mask(const Tensor& mask, const Tensor& x) {
  check(mask.dtype == DType::UInt8, Code::DType, "softmax: mask is ", name_of(mask.dtype),
        ", expected uint8");
  check(mask.device() == x.device(), Code::Device, "softmax: mask is on another device than x");
  bool fits = mask.rank >= 1 && mask.rank <= x.rank && mask.size(-1) == x.size(-1);
  Tensor out = mask;
  out.rank = x.rank;
  out.shape = x.shape;
  for (int axis = 1; fits && axis <= x.rank; axis++) {
    const int64_t size = axis <= mask.rank ? mask.size(-axis) : 1;
    fits = size == 1 || size == x.size(-axis);
    out.strides[static_cast<size_t>(x.rank - axis)] = size == 1 ? 0 : mask.stride(-axis);
  }
  check(fits, Code::Shape, "softmax: mask has the shape ", shape_text(mask),
        ", expected one that broadcasts to ", shape_text(x), " (that of x) with rows of ", x.size(-1));
  check_row_stride("softmax", mask, "mask");
  return out;
}

}  // namespace

SoftmaxForwardRows rows_of(const SoftmaxForward& op) {
  CausalPrefix prefix{.causal = op.causal, .columns = op.x.size(-1), .queries = {}};
  if (op.causal) prefix.queries = Divisor(op.x.size(-2));
  return {.dtype = op.x.dtype,
          .columns = op.x.size(-1),
          .begin = 0,
          .end = row_count(op.x),
          .scale = op.scale,
          .prefix = prefix,
          .x = rows_of(op.x),
          .mask = rows_of(op.mask),
          .out = rows_of(op.out),
          .exponentials = nullptr};
}

SoftmaxBackwardRows rows_of(const SoftmaxBackward& op) {
  return {.dtype = op.out.dtype,
          .columns = op.out.size(-1),
          .begin = 0,
          .end = row_count(op.out),
          .scale = op.scale,
          .out = rows_of(op.out),
          .dout = rows_of(op.dout),
          .dx = rows_of(op.dx)};
}

void run(const Cpu& cpu, const SoftmaxForward& op) {
  const SoftmaxForwardRows all = rows_of(op);
  const int64_t per_slot = (all.columns + 15) / 16 * 16;  // no cache line has two owners
  const Memory scratch =
      allocate(cpu, static_cast<size_t>(thread_count().threads * per_slot) * sizeof(float));
  for_parts(all, [&](SoftmaxForwardRows& part, int slot) {
    part.exponentials = static_cast<float*>(scratch.data) + slot * per_slot;
    run(cpu, part);
  });
}

void run(const Cpu& cpu, const SoftmaxBackward& op) {
  for_parts(rows_of(op), [&](const SoftmaxBackwardRows& part, int) { run(cpu, part); });
}

void softmax_forward(Tensor x, std::optional<Tensor> mask, double scale, bool causal, Tensor out) {
  check_rows(x, "x");
  check(!causal || x.rank >= 2, Code::Shape, "softmax: x has the shape ", shape_text(x),
        ", expected [..., Sq, Sk] for causal");
  check_scale(scale);
  check_like(out, "out", x, "x");
  Tensor seen = mask ? broadcast_mask(*mask, x) : Tensor{};
  if (x.elements() == 0) return;  // of rows without columns there may be any number
  const auto device = x.device();
  device->submit(SoftmaxForward{.x = x,
                                .mask = std::move(seen),
                                .scale = static_cast<float>(scale),
                                .causal = causal,
                                .out = std::move(out)});
}

void softmax_backward(Tensor out, Tensor dout, double scale, Tensor dx) {
  check_rows(out, "out");
  check_scale(scale);
  check_like(dout, "dout", out, "out");
  check_like(dx, "dx", out, "out");
  if (out.elements() == 0) return;
  const auto device = out.device();
  device->submit(SoftmaxBackward{std::move(out), std::move(dout), static_cast<float>(scale), std::move(dx)});
}

}  // namespace longseq
