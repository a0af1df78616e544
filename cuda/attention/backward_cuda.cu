// Attention's backward pass on a GPU: how the work is cut, and what is launched.
#include <algorithm>

#include "attention/attention.h"
#include "attention/gpu_call.h"
#include "attention/gpu_passes.h"
#include "attention/mask_panels.h"
#include "attention/sources_sm90.h"
#include "core/cuda.h"
#include "core/division.h"
#include "elementwise/elementwise.h"

namespace longseq {
namespace {

/** launch(kernel); of a mask that goes through the GPU in panels, for the keys of each. */
template <class Launch>
void launch_keys(const Cuda& cuda, const GpuCall& call, DType dtype, const BackwardSm80& kernel,
                 Launch launch) {
  if (!call.mask || !call.mask->in_panels) return launch(kernel);
  Memory intervals;
  if (kernel.forward.visible.begin != nullptr) {
    intervals = allocate(cuda, static_cast<size_t>(kernel.forward.queries) * 2 * sizeof(int32_t));
  }
  for_each_panel(cuda, *call.mask, MaskAxis::Columns, dtype == DType::Float32, [&](const MaskPanel& panel) {
    launch(keys_of(cuda, panel, dtype, kernel, static_cast<int32_t*>(intervals.data)));
  });
}

int columns_of(Kernels kernels, int head_dim) {
  return kernels == Kernels::Sm90 ? static_cast<int>(query_sum_columns(head_dim))
                                  : backward_columns_sm80(head_dim);
}

/** dq by blocks of queries, which write it as it is, and then dk and dv: launch_query, launch_keys. */
template <class LaunchQuery, class LaunchKeys>
void backward_apart(const Cuda& cuda, const GpuCall& call, BackwardSm80& kernel, const AttentionBackward& op,
                    LaunchQuery launch_query, LaunchKeys launch_keys_of) {
  const DType dtype = op.forward.q.dtype;
  const GpuResult dq(cuda, op.dq, op.adds_to_dq);
  kernel.dq = rows_of(dq.written());
  kernel.dq_float32 = op.dq.dtype == DType::Float32;
  kernel.dq_sign = sign_of(op.forward.score.scale);
  launch_queries(cuda, call, dtype, kernel, launch_query);
  dq.finish();
  launch_keys(cuda, call, dtype, kernel, launch_keys_of);
}

void backward_float32(const Cuda& cuda, const GpuCall& call, BackwardSm80& kernel,
                      const AttentionBackward& op) {
  std::shared_ptr<const GpuMaskCopy> transposed;
  if (call.mask && call.mask->in_panels) {
    kernel.mask_transposed = kernel.mask_columns;  // of which each panel is transposed there
  } else if (call.mask) {
    transposed = transposed_gpu_mask(cuda, *op.forward.visibility->mask);
    kernel.mask_transposed = transposed->columns;
  }
  backward_apart(
      cuda, call, kernel, op, [&](const BackwardSm80& part) { launch_query_gradient_float32(cuda, part); },
      [&](const BackwardSm80& part) { launch_key_gradients_float32(cuda, part); });
}

int64_t padded(int64_t queries) { return round_up(queries, kGpuTileRows); }

/** What turns the kernels' sums of dq into dq. */
float sum_scale(const AttentionBackward& op) {
  const float unit = op.kernels == Kernels::Sm90 ? 1 : backward_sum_unit_sm80(op.forward.q.dtype);
  return op.forward.score.scale * unit;
}

/** Whether dq is made by blocks of queries, with two products more. */
bool is_apart(const AttentionForward& op, Kernels kernels, bool deterministic) {
  return op.q.dtype == DType::Float32 ||
         (kernels == Kernels::Sm90 && (deterministic || op.q.size(3) > kMostSummedSm90));
}

/** Whether the kernels turn sums of dq into dq themselves. */
bool finishes_within(const GpuCall& call, const AttentionBackward& op) {
  return !op.sums && op.dq.dtype == op.forward.q.dtype && rows_aligned(op.dq) &&
         !(call.mask && call.mask->in_panels);
}

/** Of all batches, each share of one a head of its own. */
int64_t key_heads(const BackwardSm80& kernel) {
  return int64_t{kernel.forward.batch} * (kernel.forward.heads / kernel.forward.group);
}

/** Into how many parts the query heads of a group are divided, for as many blocks: where there are few
 * blocks, and those of causal order have unlike work, multiprocessors would wait for the longest. */
int shares_of_keys(const Cuda& cuda, const BackwardSm80& kernel, const AttentionBackward& op) {
  if (is_apart(op.forward, op.kernels, op.deterministic)) return 1;
  const ForwardSm80& forward = kernel.forward;
  const int64_t blocks = ceil_div(int64_t{forward.keys}, kGpuTileRows) * key_heads(kernel);
  const int64_t wanted = (sees_all(forward.visible) ? 2 : 4) * cuda.gpu->multiprocessors;
  int shares = 1;
  while (shares < forward.group && (forward.group % shares != 0 || blocks * shares < wanted)) shares++;
  return shares;
}

/** Of how many heads of keys the queries' rows, statistics and sums, are prepared before the kernels run. */
int64_t heads_prepared_before(const Cuda& cuda, const GpuCall& call, const BackwardSm80& kernel,
                              const AttentionBackward& op) {
  const AttentionForward& forward = op.forward;
  if (op.kernels == Kernels::Sm90 && !is_apart(forward, op.kernels, op.deterministic) &&
      finishes_within(call, op) && rows_aligned(forward.out) && rows_aligned(op.dout)) {
    return heads_prepared_before_sm90(cuda, kernel);
  }
  return key_heads(kernel);
}

void clear(const Cuda& cuda, const Memory& memory, size_t bytes) {
  cuda_check(cudaMemsetAsync(memory.data, 0, bytes, cuda.stream.get()), "clearing");
}

/** What the kernels add dq up in, behind their progress: zeros where rows are prepared. */
Memory query_sums(const Cuda& cuda, const GpuCall& call, BackwardSm80& kernel, const AttentionBackward& op,
                  int64_t prepared) {
  const auto head_bytes =
      static_cast<size_t>(kernel.forward.group * kernel.padded_queries * kernel.dq_columns) * sizeof(float);
  const auto heads = static_cast<size_t>(key_heads(kernel));
  const auto progress =
      static_cast<size_t>(round_up(static_cast<int64_t>(heads * sizeof(HeadProgress)), 256));
  Memory sums = allocate(cuda, progress + heads * head_bytes);
  clear(cuda, sums, progress + static_cast<size_t>(prepared) * head_bytes);
  kernel.dq_sum = reinterpret_cast<float*>(static_cast<char*>(sums.data) + progress);
  if (finishes_within(call, op)) kernel.progress = static_cast<HeadProgress*>(sums.data);
  return sums;
}

/** dq is summed where it is needed in the order in which blocks of keys come, or in turns. */
void backward_together(const Cuda& cuda, const GpuCall& call, BackwardSm80& kernel,
                       const AttentionBackward& op, int64_t prepared) {
  const DType dtype = op.forward.q.dtype;
  kernel.dq_columns = columns_of(op.kernels, kernel.forward.head_dim);
  Memory own, turns;
  if (op.sums) {
    kernel.dq_sum = static_cast<float*>(op.sums->dq.data) + op.first_query * kernel.dq_columns;
  } else {
    own = query_sums(cuda, call, kernel, op, prepared);
    kernel.dq = rows_of(op.dq);
    kernel.sum_scale = sum_scale(op);
  }
  if (op.deterministic) {
    const int64_t rows = int64_t{kernel.forward.batch} * kernel.forward.heads * kernel.padded_queries;
    turns = allocate(cuda, static_cast<size_t>(rows / 16) * sizeof(int32_t));
    kernel.dq_turns = static_cast<int32_t*>(turns.data);
  }
  launch_keys(cuda, call, dtype, kernel, [&](const BackwardSm80& part) {
    if (op.deterministic) clear(cuda, turns, turns.bytes);
    if (op.kernels == Kernels::Sm90) {
      launch_backward_sm90(cuda, dtype, part, whole_queries(part));
    } else {
      launch_backward_sm80(cuda, dtype, part);
    }
  });
  if (!op.sums) finish_query_gradient(cuda, kernel, op.dq, op.kernels);
}

void backward_16_bits(const Cuda& cuda, const GpuCall& call, BackwardSm80& kernel,
                      const AttentionBackward& op, int64_t prepared) {
  if (!is_apart(op.forward, op.kernels, op.deterministic)) {
    return backward_together(cuda, call, kernel, op, prepared);
  }
  const DType dtype = op.forward.q.dtype;
  backward_apart(
      cuda, call, kernel, op,
      [&](const BackwardSm80& part) { launch_query_gradient_sm90(cuda, dtype, part); },
      [&](const BackwardSm80& part) {
        if (part.forward.head_dim > kMostSummedSm90) {
          launch_key_gradients_sm90(cuda, dtype, part);
        } else {
          launch_backward_sm90(cuda, dtype, part, whole_queries(part));
        }
      });
}

/** Some of a tensor's heads; none of no tensor. */
Tensor heads_of(const Tensor& x, int axis, int64_t begin, int64_t count) {
  if (!x) return x;
  Tensor part = x;
  part.offset += begin * x.stride(axis);
  part.shape[static_cast<size_t>(axis)] = count;
  return part;
}

/** The same for some of the key heads and the query heads that go with them. */
AttentionBackward some_heads(const AttentionBackward& op, int64_t begin, int64_t count) {
  AttentionBackward part = op;
  AttentionForward& forward = part.forward;
  const int64_t group = forward.q.size(2) / forward.k.size(2);
  for (Tensor* const x : {&forward.k, &forward.v, &part.dk, &part.dv}) *x = heads_of(*x, 2, begin, count);
  for (Tensor* const x : {&forward.q, &forward.out, &part.dout, &part.dq}) {
    *x = heads_of(*x, 2, begin * group, count * group);
  }
  for (Tensor* const x : {&forward.log_sum_exp, &part.dlog_sum_exp}) {
    *x = heads_of(*x, 1, begin * group, count * group);
  }
  forward.score.alibi_slopes = heads_of(forward.score.alibi_slopes, 0, begin * group, count * group);
  return part;
}

/** Key heads whose sums of dq, in float32, are there at once: all, unless those are large and fewer fill the
 * GPU. */
int64_t heads_at_once(const Cuda& cuda, const AttentionForward& op, Kernels kernels, bool deterministic) {
  constexpr int64_t kSumBytes = int64_t{1} << 28, kBlocksEach = 32;
  const int64_t heads = op.k.size(2);
  if (is_apart(op, kernels, deterministic)) return heads;
  const int64_t head_bytes =
      op.q.elements() / heads / op.q.size(3) * columns_of(kernels, static_cast<int>(op.q.size(3))) * 4;
  const int64_t head_blocks = op.q.size(0) * ceil_div(op.k.size(1), kGpuTileRows);
  const int64_t filling = ceil_div(kBlocksEach * cuda.gpu->multiprocessors, head_blocks);
  const int64_t parts = ceil_div(heads, std::max(filling, kSumBytes / std::max<int64_t>(head_bytes, 1)));
  return ceil_div(heads, parts);
}

/** What BackwardSm80 calls statistics: memory for all queries, made for those of the first `pairs` heads. */
Memory statistics_of_rows(const Cuda& cuda, const AttentionBackward& op, int64_t pairs) {
  const Tensor& q = op.forward.q;
  const int64_t rows = q.size(0) * q.size(2) * padded(q.size(1));
  Memory statistics = allocate(cuda, static_cast<size_t>(rows) * sizeof(float2));
  find_row_statistics(cuda, op, padded(q.size(1)), pairs, static_cast<float2*>(statistics.data));
  return statistics;
}

/** Gradients of a kernel's shares of keys, in float32, where it has more than one. */
class KeyShares {
 public:
  KeyShares(const Cuda& cuda, BackwardSm80& kernel, const Tensor& k)
      : cuda_(cuda), shares_(kernel.key_shares) {
    if (shares_ == 1) return;
    const int64_t row = k.size(2) * shares_ * k.size(3), elements = k.size(0) * k.size(1) * row;
    memory_ = allocate(cuda, static_cast<size_t>(2 * elements) * sizeof(float));
    dk_ = static_cast<float*>(memory_.data);
    dv_ = dk_ + elements;
    kernel.dk = {dk_, k.size(1) * row, row, k.size(3)};
    kernel.dv = {dv_, k.size(1) * row, row, k.size(3)};
    kernel.dk_float32 = kernel.dv_float32 = true;
    kernel.adds_to_dk = kernel.adds_to_dv = false;
  }
  void finish(const Tensor& dk, bool adds_to_dk, const Tensor& dv, bool adds_to_dv) const {
    if (shares_ == 1) return;
    sum_shares(cuda_, dk_, shares_, dk, adds_to_dk);
    sum_shares(cuda_, dv_, shares_, dv, adds_to_dv);
  }

 private:
  const Cuda& cuda_;
  const int shares_;
  Memory memory_;
  float *dk_ = nullptr, *dv_ = nullptr;
};

void run_heads(const Cuda& cuda, const AttentionBackward& op) {
  const AttentionForward& forward = op.forward;
  const GpuCall call(cuda, forward);
  BackwardSm80 kernel{};
  kernel.forward = call.kernel;
  const DType dtype = forward.q.dtype;
  const Tensor dout = as_input(cuda, op.dout, dtype);
  kernel.dout = rows_of(dout);
  kernel.scale = positive_scale(forward.score.scale);
  kernel.padded_queries = padded(op.sums ? op.sums->queries : kernel.forward.queries);
  kernel.forward.out = rows_of(forward.out);
  kernel.forward.log_sum_exp = statistics_of(forward.log_sum_exp);
  if (op.dlog_sum_exp) kernel.dlog_sum_exp = statistics_of(op.dlog_sum_exp);
  kernel.key_shares = shares_of_keys(cuda, kernel, op);
  kernel.forward.group /= kernel.key_shares;
  const int64_t prepared = heads_prepared_before(cuda, call, kernel, op);
  kernel.prepares = prepared < key_heads(kernel);
  Memory own;
  if (op.sums) {
    kernel.statistics = static_cast<float2*>(op.sums->statistics.data) + op.first_query;
  } else {
    own = statistics_of_rows(cuda, op, prepared * kernel.forward.group);
    kernel.statistics = static_cast<float2*>(own.data);
  }
  if (call.mask) kernel.mask_columns = call.mask->columns;
  const GpuResult dk(cuda, op.dk, op.adds_to_dk), dv(cuda, op.dv, op.adds_to_dv);
  kernel.dk = rows_of(dk.written());
  kernel.dv = rows_of(dv.written());
  kernel.dk_float32 = op.dk.dtype == DType::Float32;
  kernel.dv_float32 = op.dv.dtype == DType::Float32;
  kernel.adds_to_dq = op.adds_to_dq;
  kernel.adds_to_dk = op.adds_to_dk;
  kernel.adds_to_dv = op.adds_to_dv;
  const KeyShares shares(cuda, kernel, forward.k);
  if (dtype == DType::Float32) {
    backward_float32(cuda, call, kernel, op);
  } else {
    backward_16_bits(cuda, call, kernel, op, prepared);
  }
  shares.finish(dk.written(), op.adds_to_dk, dv.written(), op.adds_to_dv);
  dk.finish();
  dv.finish();
}

/** dq of the call's queries among those of all, where it is not summed within kernels: rows of float32. */
Tensor rows_among_sums(const AttentionBackward& op) {
  Tensor dq = op.forward.q;
  dq.dtype = DType::Float32;
  dq.strides[3] = 1;
  dq.strides[2] = dq.size(3);
  dq.strides[1] = dq.size(2) * dq.stride(2);
  dq.strides[0] = op.sums->queries * dq.stride(1);
  dq.offset = op.first_query * dq.stride(1);
  dq.storage = std::make_shared<Storage>(op.forward.q.device(), op.sums->dq);
  return dq;
}

void check_sums(const AttentionBackward& op) {
  check(op.sums->queries >= 0, Code::OutOfMemory, "attention: there was no memory for the sums of dq");
}

/** A call whose dq is added to sums that it shares with others. */
void run_part(const Cuda& cuda, const AttentionBackward& op) {
  check_sums(op);
  AttentionBackward part = op;
  if (is_apart(op.forward, op.kernels, op.deterministic)) part.dq = rows_among_sums(op);
  run_heads(cuda, part);
}

/** dk and dv by the queries of several tensors, to whose sums dq is added. */
void run_query_parts(const Cuda& cuda, const AttentionBackward& op) {
  const AttentionForward& forward = op.forward;
  const QueryParts& parts = *forward.query_parts;
  const DType dtype = forward.q.dtype;
  const GpuCall call(cuda, forward);
  const Sources q(parts.q, [&](const Tensor& x) { return query_input(cuda, x, forward.score.scale); }),
      dout(parts.dout, [&](const Tensor& x) { return as_input(cuda, x, dtype); });
  GpuQueryParts queries{q.rows(), dout.rows(), {}, {}, {}, parts.parts};
  for (size_t i = 0; i < parts.q.size(); i++) {
    queries.statistics.push_back(reinterpret_cast<const float2*>(parts.statistics[i].data<float>()));
    queries.sums.push_back(parts.sums[i].data<float>());
    queries.padded.push_back(parts.q[i].size(1));
  }
  BackwardSm80 kernel{};
  kernel.forward = call.kernel;
  kernel.key_shares = 1;
  kernel.scale = positive_scale(forward.score.scale);
  kernel.dq_sum = queries.sums[0];  // there is dq to make
  const GpuResult dk(cuda, op.dk), dv(cuda, op.dv);
  kernel.dk = rows_of(dk.written());
  kernel.dv = rows_of(dv.written());
  kernel.dk_float32 = op.dk.dtype == DType::Float32;
  kernel.dv_float32 = op.dv.dtype == DType::Float32;
  launch_backward_sm90(cuda, dtype, kernel, queries);
  dk.finish();
  dv.finish();
}

}  // namespace

void run(const Cuda& cuda, const AttentionBackward& op) {
  const AttentionForward& forward = op.forward;
  const int64_t heads = forward.k.size(2);
  if (forward.k.size(0) * heads == 0) return;
  if (is_empty(forward) || forward.k.size(1) == 0) {
    if (!op.adds_to_dq) run(cuda, Fill{op.dq, 0});
    if (!op.adds_to_dk) run(cuda, Fill{op.dk, 0});
    if (!op.adds_to_dv) run(cuda, Fill{op.dv, 0});
    return;
  }
  if (forward.query_parts) return run_query_parts(cuda, op);
  if (op.sums) return run_part(cuda, op);
  const int64_t count = heads_at_once(cuda, forward, op.kernels, op.deterministic);
  for (int64_t begin = 0; begin < heads; begin += count) {
    run_heads(cuda, some_heads(op, begin, std::min(count, heads - begin)));
  }
}

void run(const Cuda& cuda, const BeginQuerySums& begin) {
  const AttentionBackward& op = begin.op;
  const Tensor& q = op.forward.q;
  if (is_empty(op.forward)) return;
  if (const auto& parts = op.forward.query_parts) {
    find_row_statistics(cuda, op, q.size(1), q.size(0) * q.size(2),
                        reinterpret_cast<float2*>(parts->statistics[0].data<float>()));
    return run(cuda, Fill{parts->sums[0], 0});
  }
  const int64_t rows = q.size(0) * q.size(2) * padded(q.size(1));
  const int64_t elements = is_apart(op.forward, op.kernels, op.deterministic)
                               ? q.elements()
                               : rows * columns_of(op.kernels, static_cast<int>(q.size(3)));
  op.sums->statistics = statistics_of_rows(cuda, op, q.size(0) * q.size(2));
  op.sums->dq = allocate(cuda, static_cast<size_t>(elements) * sizeof(float));
  clear(cuda, op.sums->dq, op.sums->dq.bytes);
  op.sums->queries = q.size(1);
}

void run(const Cuda& cuda, const FinishQuerySums& finish) {
  const AttentionBackward& op = finish.op;
  const Tensor& q = op.forward.q;
  if (is_empty(op.forward)) return;
  const auto& parts = op.forward.query_parts;
  if (!parts) check_sums(op);
  if (!parts && is_apart(op.forward, op.kernels, op.deterministic))
    return run(cuda, Copy{rows_among_sums(op), op.dq});
  BackwardSm80 kernel{};
  kernel.forward.batch = static_cast<int32_t>(q.size(0));
  kernel.forward.queries = static_cast<int32_t>(q.size(1));
  kernel.forward.heads = static_cast<int32_t>(q.size(2));
  kernel.forward.head_dim = static_cast<int32_t>(q.size(3));
  kernel.padded_queries = padded(q.size(1));
  kernel.dq_columns = columns_of(op.kernels, kernel.forward.head_dim);
  kernel.dq_sum = parts ? parts->sums[0].data<float>() : static_cast<float*>(op.sums->dq.data);
  kernel.dq = rows_of(op.dq);
  kernel.sum_scale = sum_scale(op);
  finish_query_gradient(cuda, kernel, op.dq, op.kernels);
}

}  // namespace longseq
