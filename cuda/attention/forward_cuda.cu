// Attention's forward pass on a GPU: how the work is cut, and what is launched.
#include <algorithm>

#include "attention/attention.h"
#include "attention/gpu_call.h"
#include "attention/gpu_passes.h"
#include "attention/mask_panels.h"
#include "attention/sources_sm90.h"
#include "core/cuda.h"
#include "core/division.h"

namespace longseq {
namespace {

/** The heads of a group share keys and values: where there are few queries they fill a tile together. */
int packed_heads(const ForwardSm80& op) {
  if (op.queries >= kGpuTileRows) return 1;
  int packed = std::min(op.group, static_cast<int>(kGpuTileRows));
  while (op.group % packed != 0) packed--;
  return packed;
}

int splits_of(const Cuda& cuda, const ForwardSm80& op, Kernels kernels) {
  const int64_t tiles =
      ceil_div(int64_t{op.queries} * op.packed, kGpuTileRows) * (op.heads / op.packed) * op.batch;
  const int64_t multiprocessors = cuda.gpu->multiprocessors;
  const int64_t slots = (kernels == Kernels::Sm90 ? 1 : 2) * multiprocessors;
  constexpr int64_t kLeastKeys = 512, kMost = 256;
  if (5 * tiles > 4 * multiprocessors) return 1;  // parts take longer to merge than they save
  return static_cast<int>(std::clamp<int64_t>(std::min(slots / tiles, op.keys / kLeastKeys), 1, kMost));
}

void launch_forward_hopper(const Cuda& cuda, const ForwardSm80& kernel, const AttentionForward& op) {
  const DType dtype = op.q.dtype;
  if (!op.key_parts) return launch_forward_sm90(cuda, dtype, kernel, whole_keys(kernel));
  const auto input = [&](const Tensor& x) { return as_input(cuda, x, dtype); };
  const Sources k(op.key_parts->k, input), v(op.key_parts->v, input);
  launch_forward_sm90(cuda, dtype, kernel, {k.rows(), v.rows(), op.key_parts->parts});
}

void launch_forward(const Cuda& cuda, const GpuCall& call, const AttentionForward& op) {
  const DType dtype = op.q.dtype;
  launch_queries(cuda, call, dtype, call.kernel, [&](const ForwardSm80& kernel) {
    if (dtype == DType::Float32) {
      launch_forward_float32(cuda, kernel);
    } else if (op.kernels == Kernels::Sm90) {
      launch_forward_hopper(cuda, kernel, op);
    } else {
      launch_forward_sm80(cuda, dtype, kernel);
    }
  });
}

/** The keys in parts, each with a result of its own, which are then merged. */
void forward_in_parts(const Cuda& cuda, GpuCall& call, const AttentionForward& op) {
  ForwardSm80& kernel = call.kernel;
  const int64_t rows = op.q.size(0) * op.q.size(1) * op.q.size(2), head_dim = op.q.size(3);
  const Memory partial = allocate(cuda, static_cast<size_t>(kernel.splits * rows * (head_dim + 1)) * 4);
  auto* const outs = static_cast<float*>(partial.data);
  float* const sums = outs + kernel.splits * rows * head_dim;
  kernel.out = {outs, rows / kernel.batch * head_dim, kernel.heads * head_dim, head_dim};
  kernel.out_float32 = true;
  kernel.log_sum_exp = {sums, rows / kernel.batch, kernel.queries};
  launch_forward(cuda, call, op);
  merge_splits(cuda, kernel, op);
}

}  // namespace

void run(const Cuda& cuda, const AttentionForward& op) {
  if (is_empty(op)) return;
  GpuCall call(cuda, op);
  ForwardSm80& kernel = call.kernel;
  pack_heads(kernel, packed_heads(kernel));
  kernel.splits = splits_of(cuda, kernel, op.kernels);
  if (kernel.splits > 1) return forward_in_parts(cuda, call, op);
  const Tensor before = op.before ? as_input(cuda, op.before, DType::Float32) : Tensor{};
  if (before) kernel.before = rows_of(before);
  const GpuResult out(cuda, op.out);
  kernel.out = rows_of(out.written());
  kernel.out_float32 = op.out.dtype == DType::Float32;
  kernel.log_sum_exp = statistics_of(op.log_sum_exp);
  launch_forward(cuda, call, op);
  out.finish();
}

}  // namespace longseq
