// Attention on a GPU: what the kernels are given, how the work is cut, and the small kernels around them.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "attention/attention.h"
#include "attention/attention_sm80.h"
#include "attention/gpu_mask.h"
#include "attention/visibility.h"
#include "core/cuda.h"
#include "elementwise/elementwise.h"
#include "tile/sum.h"

namespace longseq {
namespace {

constexpr float kLog2e = 1.4426950408889634f;
constexpr int64_t kTileRows =
    128;  // of queries: the forward kernel's, and what padded rows are rounded up to
constexpr int64_t kCachedBytes = int64_t{20} << 20;  // of keys and values that are worked on together
constexpr int kThreads = 256;

int64_t ceil_div(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }

Tensor scratch_like(const Cuda& cuda, const Tensor& x, DType dtype) {
  Tensor made = x;
  made.dtype = dtype;
  made.offset = 0;
  int64_t stride = 1;
  for (int axis = x.rank - 1; axis >= 0; axis--) {
    made.strides[static_cast<size_t>(axis)] = stride;
    stride *= x.size(axis);
  }
  made.storage = std::make_shared<Storage>(x.device(), allocate(cuda, static_cast<size_t>(made.bytes())));
  return made;
}

/** Whether every row begins at 16 bytes, as the kernels' copies need it. */
bool rows_aligned(const Tensor& x) {
  const auto multiple = [&](int64_t elements) { return elements * size_of(x.dtype) % 16 == 0; };
  if (reinterpret_cast<uintptr_t>(x.data<char>()) % 16 != 0) return false;
  for (int axis = 0; axis < 3; axis++) {
    if (x.size(axis) > 1 && !multiple(x.stride(axis))) return false;
  }
  return true;
}

Tensor as_input(const Cuda& cuda, const Tensor& x, DType dtype) {
  if (x.dtype == dtype && rows_aligned(x)) return x;
  const Tensor copy = scratch_like(cuda, x, dtype);
  run(cuda, Copy{x, copy});
  return copy;
}

template <class T>
__global__ void multiply_kernel(T* x, float factor, int64_t elements) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < elements;
       i += int64_t{gridDim.x} * kThreads) {
    x[i] = from_float<T>(static_cast<float>(x[i]) * factor);
  }
}

/** The kernels take scores times a positive scale: of another, the sign goes to the queries. */
Tensor with_sign(const Cuda& cuda, const Tensor& q, float scale) {
  if (scale > 0) return as_input(cuda, q, q.dtype);
  const Tensor copy = scratch_like(cuda, q, q.dtype);
  if (scale == 0) {
    run(cuda, Fill{copy, 0});
    return copy;
  }
  run(cuda, Copy{q, copy});
  visit_float(q.dtype, [&]<class T>(T) {
    const auto blocks =
        static_cast<unsigned>(std::clamp<int64_t>(ceil_div(copy.elements(), kThreads), 1, 4096));
    launch<multiply_kernel<T>>(cuda, dim3(blocks), kThreads, 0, copy.data<T>(), -1.0f, copy.elements());
  });
  return copy;
}
/** In place, of rows with gaps too: x = -x, or 0 where the scale is. */
void negate(const Cuda& cuda, const Tensor& x, float scale) {
  if (scale == 0) return run(cuda, Fill{x, 0});
  const Tensor negative = with_sign(cuda, x, -1);
  run(cuda, Copy{negative, x});
}
float magnitude(float scale) { return scale == 0 ? 1 : std::fabs(scale); }

/** A result that the kernels can write; copied to its place when this ends. */
class Result {
 public:
  Result(const Cuda& cuda, const Tensor& y, bool fits = true) : cuda_(cuda), y_(y) {
    written_ = fits && rows_aligned(y) ? y : scratch_like(cuda, y, y.dtype);
  }
  const Tensor& written() const { return written_; }
  void finish() const {
    if (written_.storage != y_.storage) run(cuda_, Copy{written_, y_});
  }

 private:
  const Cuda& cuda_;
  Tensor y_, written_;
};

GpuRows rows_of(const Tensor& x) { return {x.data<char>(), x.stride(0), x.stride(1), x.stride(2)}; }
GpuStatistics statistics_of(const Tensor& x) { return {x.data<float>(), x.stride(0), x.stride(1)}; }

/** The rule's arrays, in memory that the GPU reads. */
struct DeviceRule {
  Memory memory;
  RuleView view;
};

DeviceRule device_rule(const Cuda& cuda, const VisibilityRule& rule) {
  DeviceRule out{.memory = {}, .view = view_of(rule)};
  const size_t documents = rule.documents.size() * 8, key_documents = rule.key_documents.size() * 8,
               queries = rule.query_positions.size() * sizeof(Piece),
               keys = rule.key_positions.size() * sizeof(Piece);
  const size_t bytes = documents + key_documents + queries + keys;
  const Memory staging = allocate_staging(cuda, bytes);
  out.memory = allocate(cuda, bytes);
  char *to = static_cast<char*>(staging.data), *from = static_cast<char*>(out.memory.data);
  const auto place = [&]<class T>(const T*& items, size_t size) {
    if (size > 0) std::memcpy(to, items, size);
    items = reinterpret_cast<const T*>(from);
    to += size;
    from += size;
  };
  place(out.view.documents, documents);
  place(out.view.key_documents, key_documents);
  place(out.view.query_pieces, queries);
  place(out.view.key_pieces, keys);
  upload(cuda, out.memory.data, staging, bytes);
  return out;
}

__global__ void intervals_kernel(RuleView rule, const int32_t* mask_begin, const int32_t* mask_end,
                                 int queries, int keys, int32_t* begin, int32_t* end) {
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row >= queries) return;
  KeyRange range = visible_keys(rule, row);
  if (mask_begin != nullptr) {
    range.begin = max(range.begin, int64_t{mask_begin[row]});
    range.end = max(range.begin, min(range.end, int64_t{mask_end[row]}));
  }
  begin[row] = static_cast<int32_t>(min(range.begin, int64_t{keys}));
  end[row] = static_cast<int32_t>(min(range.end, int64_t{keys}));
}

__global__ void positions_kernel(RuleView rule, int queries, int keys, int32_t* of_queries,
                                 int32_t* of_keys) {
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row < queries) of_queries[row] = static_cast<int32_t>(query_position(rule, row));
  if (row < keys) of_keys[row] = static_cast<int32_t>(key_position(rule, row));
}

/** Both directions' view of a call: the operands in a form that the kernels take, and who sees what. */
class Call {
 public:
  Call(const Cuda& cuda, const AttentionForward& op)
      : q(with_sign(cuda, op.q, op.score.scale)),
        k(as_input(cuda, op.k, op.k.dtype)),
        v(as_input(cuda, op.v, op.v.dtype)) {
    const VisibilityRule& rule = *op.visibility;
    kernel.q = rows_of(q);
    kernel.k = rows_of(k);
    kernel.v = rows_of(v);
    kernel.batch = static_cast<int32_t>(q.size(0));
    kernel.queries = static_cast<int32_t>(q.size(1));
    kernel.keys = static_cast<int32_t>(k.size(1));
    kernel.heads = static_cast<int32_t>(q.size(2));
    kernel.group = static_cast<int32_t>(q.size(2) / std::max<int64_t>(k.size(2), 1));
    kernel.head_dim = static_cast<int32_t>(q.size(3));
    kernel.packed = kernel.splits = 1;
    const int64_t head_bytes = 2 * k.size(1) * k.size(3) * size_of(k.dtype) * std::max(1, kernel.group);
    kernel.heads_together = static_cast<int32_t>(std::max<int64_t>(
        1, std::min<int64_t>(int64_t{kernel.batch} * kernel.heads,
                             kCachedBytes / std::max<int64_t>(1, head_bytes) * std::max(1, kernel.group))));
    score(op.score);
    see(cuda, rule);
    if (op.score.alibi_slopes) {
      slopes = op.score.alibi_slopes;
      kernel.score.slopes = slopes.data<float>();
      positions = allocate(cuda, static_cast<size_t>(kernel.queries + int64_t{kernel.keys}) * 4);
      auto* const of_queries = static_cast<int32_t*>(positions.data);
      const int64_t rows = std::max(kernel.queries, kernel.keys);
      launch<positions_kernel>(cuda, dim3(static_cast<unsigned>(ceil_div(rows, kThreads))), kThreads, 0,
                               rule_on_gpu(cuda, rule), kernel.queries, kernel.keys, of_queries,
                               of_queries + kernel.queries);
      kernel.score.query_positions = of_queries;
      kernel.score.key_positions = of_queries + kernel.queries;
    }
  }

  Tensor q, k, v, slopes;
  ForwardSm80 kernel{};
  std::shared_ptr<const GpuMaskCopy> mask;
  std::shared_ptr<const VisibilityRule> rule;

 private:
  void score(const ScoreRule& rule) {
    GpuScore& score = kernel.score;
    score.has_softcap = rule.softcap > 0;
    const float scale = magnitude(rule.scale);
    score.before_cap = score.has_softcap ? scale / rule.softcap : 0;
    score.exponent = (score.has_softcap ? rule.softcap : scale) * kLog2e;
    score.slope_unit = kLog2e / score.exponent;
  }

  RuleView rule_on_gpu(const Cuda& cuda, const VisibilityRule& rule) {
    if (device.memory.data == nullptr) device = device_rule(cuda, rule);
    return device.view;
  }

  void see(const Cuda& cuda, const VisibilityRule& rule) {
    GpuIntervals& visible = kernel.visible;
    const auto only_piece = [](const std::vector<Piece>& pieces, int64_t start) {
      return pieces.size() == 1 && (start < 0 || pieces[0].start == start);
    };
    const bool has_blocks = rule.mask != nullptr && rule.mask->kind() == Mask::Kind::Blocks;
    if (has_blocks) {
      mask = gpu_mask(cuda, *rule.mask);
      kernel.mask = mask->rows;
    }
    const int64_t shift = rule.query_positions.empty() ? 0 : rule.query_positions[0].start;
    visible.shift = static_cast<int32_t>(shift);
    if ((rule.mask == nullptr || has_blocks) && rule.documents.empty() &&
        only_piece(rule.query_positions, -1) && only_piece(rule.key_positions, 0)) {
      const auto side = [](int64_t window) { return static_cast<int32_t>(window < 0 ? INT32_MAX : window); };
      visible.left = side(rule.window_left);
      visible.right = rule.causal && rule.window_right != 0 ? 0 : side(rule.window_right);
      return;
    }
    const size_t size = static_cast<size_t>(kernel.queries) * 4;
    intervals = allocate(cuda, 4 * size);
    auto* const begin = static_cast<int32_t*>(intervals.data);
    auto* const end = begin + kernel.queries;
    const int32_t *mask_begin = nullptr, *mask_end = nullptr;
    if (rule.mask != nullptr && !has_blocks) {
      const Memory staging = allocate_staging(cuda, 2 * size);
      std::memcpy(staging.data, rule.mask->intervals().begin, size);
      std::memcpy(static_cast<char*>(staging.data) + size, rule.mask->intervals().end, size);
      upload(cuda, end + kernel.queries, staging, 2 * size);
      mask_begin = end + kernel.queries;
      mask_end = mask_begin + kernel.queries;
    }
    launch<intervals_kernel>(cuda, dim3(static_cast<unsigned>(ceil_div(kernel.queries, kThreads))), kThreads,
                             0, rule_on_gpu(cuda, rule), mask_begin, mask_end, kernel.queries, kernel.keys,
                             begin, end);
    visible.begin = begin;
    visible.end = end;
  }

  DeviceRule device{};
  Memory intervals, positions;
};

bool is_empty(const AttentionForward& op) { return op.q.size(0) * op.q.size(1) * op.q.size(2) == 0; }

/** One of the partial results that are merged. */
struct Part {
  GpuRows out;
  GpuStatistics log_sum_exp;
  DType dtype;
};

__device__ float load_element(const void* data, DType dtype, int64_t at) {
  switch (dtype) {
    case DType::BFloat16:
      return static_cast<const BFloat16*>(data)[at];
    case DType::Float16:
      return static_cast<const Float16*>(data)[at];
    default:
      return static_cast<const float*>(data)[at];
  }
}

__device__ void store_element(void* data, DType dtype, int64_t at, float value) {
  switch (dtype) {
    case DType::BFloat16:
      static_cast<BFloat16*>(data)[at] = BFloat16::from(value);
      break;
    case DType::Float16:
      static_cast<Float16*>(data)[at] = Float16::from(value);
      break;
    default:
      static_cast<float*>(data)[at] = value;
  }
}

/** A warp a row: always summed in the parts' order. */
__global__ void merge_kernel(const Part* parts, int count, GpuRows out, DType dtype,
                             GpuStatistics log_sum_exp, int queries, int heads, int head_dim, int64_t rows) {
  const int64_t index = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (index >= rows) return;
  const int64_t query = index / heads % queries, head = index % heads, batch = index / heads / queries;
  float most = -INFINITY;
  for (int p = 0; p < count; p++) {
    const GpuStatistics& part = parts[p].log_sum_exp;
    const float value = part.data[batch * part.batch + head * part.head + query];
    most = isnan(value) || value > most ? value : most;
  }
  float values[8] = {}, sum = 0;
  for (int p = 0; p < count && most != -INFINITY; p++) {
    const Part& part = parts[p];
    const float weight = expf(
        part.log_sum_exp.data[batch * part.log_sum_exp.batch + head * part.log_sum_exp.head + query] - most);
    if (weight == 0) continue;
    sum += weight;
    const int64_t at = batch * part.out.batch + query * part.out.row + head * part.out.head;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      if (lane + 32 * i < head_dim)
        values[i] += weight * load_element(part.out.data, part.dtype, at + lane + 32 * i);
    }
  }
  const float inverse = most == -INFINITY ? 0 : 1 / sum;
  const int64_t at = batch * out.batch + query * out.row + head * out.head;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    if (lane + 32 * i < head_dim) store_element(out.data, dtype, at + lane + 32 * i, values[i] * inverse);
  }
  if (lane == 0) {
    log_sum_exp.data[batch * log_sum_exp.batch + head * log_sum_exp.head + query] =
        most == -INFINITY ? most : most + logf(sum);
  }
}

void merge(const Cuda& cuda, const std::vector<Part>& parts, const Tensor& out, const Tensor& log_sum_exp) {
  const int64_t rows = out.size(0) * out.size(1) * out.size(2);
  if (rows == 0) return;
  const size_t bytes = parts.size() * sizeof(Part);
  const Memory staging = allocate_staging(cuda, bytes), on_gpu = allocate(cuda, bytes);
  std::memcpy(staging.data, parts.data(), bytes);
  upload(cuda, on_gpu.data, staging, bytes);
  launch<merge_kernel>(cuda, dim3(static_cast<unsigned>(ceil_div(rows, kThreads / 32))), kThreads, 0,
                       static_cast<const Part*>(on_gpu.data), static_cast<int>(parts.size()), rows_of(out),
                       out.dtype, statistics_of(log_sum_exp), static_cast<int>(out.size(1)),
                       static_cast<int>(out.size(2)), static_cast<int>(out.size(3)), rows);
}

/** Log-sum-exp in powers of 2, and delta = rowsum(dout * out) - dlogSumExp: a warp a row. */
__global__ void statistics_kernel(GpuRows out, GpuRows dout, DType dtype, GpuStatistics log_sum_exp,
                                  GpuStatistics dlog_sum_exp, int queries, int64_t padded, int heads,
                                  int head_dim, int64_t rows, float2* to) {
  const int64_t index = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (index >= rows) return;
  const int64_t query = index % padded, head = index / padded % heads, batch = index / padded / heads;
  float2 statistics = make_float2(INFINITY, 0);
  if (query < queries) {
    const int64_t out_at = batch * out.batch + query * out.row + head * out.head;
    const int64_t dout_at = batch * dout.batch + query * dout.row + head * dout.head;
    float sum = 0;
    for (int d = lane; d < head_dim; d += 32) {
      sum += load_element(out.data, dtype, out_at + d) * load_element(dout.data, dtype, dout_at + d);
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
    if (dlog_sum_exp.data != nullptr) {
      sum -= dlog_sum_exp.data[batch * dlog_sum_exp.batch + head * dlog_sum_exp.head + query];
    }
    const float value = log_sum_exp.data[batch * log_sum_exp.batch + head * log_sum_exp.head + query];
    statistics = value == -INFINITY ? make_float2(INFINITY, 0) : make_float2(value * kLog2e, sum);
  }
  if (lane == 0) to[index] = statistics;
}

/** dq = scale times the kernel's sums. */
template <class T>
__global__ void finish_kernel(SumView sum, GpuRows dq, float scale, int queries, int64_t padded, int heads,
                              int head_dim, int64_t elements) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < elements;
       i += int64_t{gridDim.x} * kThreads) {
    const int d = static_cast<int>(i % head_dim);
    const int64_t head = i / head_dim % heads, query = i / head_dim / heads % queries,
                  batch = i / head_dim / heads / queries;
    const float value = sum.at((batch * heads + head) * padded, static_cast<int>(query), d) * scale;
    static_cast<T*>(dq.data)[batch * dq.batch + query * dq.row + head * dq.head + d] = from_float<T>(value);
  }
}

int splits_of(const Cuda& cuda, const ForwardSm80& op) {
  const int64_t tiles =
      ceil_div(int64_t{op.queries} * op.packed, kTileRows) * (op.heads / op.packed) * op.batch;
  const int64_t slots = 2 * cuda.gpu->multiprocessors;
  constexpr int64_t kLeastKeys = 512, kMost = 64;
  if (5 * tiles > 4 * slots) return 1;
  return static_cast<int>(std::clamp<int64_t>(std::min(slots / tiles, op.keys / kLeastKeys), 1, kMost));
}

}  // namespace

void run(const Cuda& cuda, const AttentionForward& op) {
  if (is_empty(op)) return;
  Call call(cuda, op);
  ForwardSm80& kernel = call.kernel;
  const bool is_float = op.q.dtype == DType::Float32;
  // The heads of a group share keys and values: where there are few queries they fill a tile together.
  if (kernel.group > 1 && kernel.queries < kTileRows) kernel.packed = kernel.group;
  kernel.splits = splits_of(cuda, kernel);
  const auto launch_kernel = [&] {
    if (is_float) {
      launch_forward_float32(cuda, kernel);
    } else {
      launch_forward_sm80(cuda, op.q.dtype, kernel);
    }
  };
  if (kernel.splits == 1) {
    const Result out(cuda, op.out);
    kernel.out = rows_of(out.written());
    kernel.out_float32 = op.out.dtype == DType::Float32;
    kernel.log_sum_exp = statistics_of(op.log_sum_exp);
    launch_kernel();
    out.finish();
    return;
  }
  const int64_t rows = op.q.size(0) * op.q.size(1) * op.q.size(2), head_dim = op.q.size(3);
  const Memory partial = allocate(cuda, static_cast<size_t>(kernel.splits * rows * (head_dim + 1)) * 4);
  auto* const outs = static_cast<float*>(partial.data);
  float* const sums = outs + kernel.splits * rows * head_dim;
  kernel.out = {outs, rows / kernel.batch * head_dim, kernel.heads * head_dim, head_dim};
  kernel.out_float32 = true;
  kernel.log_sum_exp = {sums, rows / kernel.batch, kernel.queries};
  launch_kernel();
  std::vector<Part> parts;
  for (int64_t part = 0; part < kernel.splits; part++) {
    parts.push_back({kernel.out, kernel.log_sum_exp, DType::Float32});
    parts.back().out.data = outs + part * rows * head_dim;
    parts.back().log_sum_exp.data = sums + part * rows;
  }
  merge(cuda, parts, op.out, op.log_sum_exp);
}

void run(const Cuda& cuda, const AttentionBackward& op) {
  const AttentionForward& forward = op.forward;
  if (forward.k.size(0) * forward.k.size(2) == 0) return;
  if (is_empty(forward) || forward.k.size(1) == 0) {
    for (const Tensor& gradient : {op.dq, op.dk, op.dv}) run(cuda, Fill{gradient, 0});
    return;
  }
  Call call(cuda, forward);
  BackwardSm80 kernel{};
  kernel.forward = call.kernel;
  const DType dtype = forward.q.dtype;
  const Tensor dout = as_input(cuda, op.dout, dtype);
  const int64_t batch = kernel.forward.batch, heads = kernel.forward.heads, queries = kernel.forward.queries,
                head_dim = kernel.forward.head_dim;
  const float scale = forward.score.scale;
  kernel.scale = magnitude(scale);
  kernel.padded_queries = ceil_div(queries, kTileRows) * kTileRows;
  const int64_t padded_rows = batch * heads * kernel.padded_queries;
  const Memory statistics = allocate(cuda, static_cast<size_t>(padded_rows) * sizeof(float2));
  kernel.statistics = static_cast<const float2*>(statistics.data);
  launch<statistics_kernel>(cuda, dim3(static_cast<unsigned>(ceil_div(padded_rows, kThreads / 32))), kThreads,
                            0, rows_of(forward.out), rows_of(op.dout), forward.out.dtype,
                            statistics_of(forward.log_sum_exp),
                            op.dlog_sum_exp ? statistics_of(op.dlog_sum_exp) : GpuStatistics{},
                            static_cast<int>(queries), kernel.padded_queries, static_cast<int>(heads),
                            static_cast<int>(head_dim), padded_rows, static_cast<float2*>(statistics.data));
  kernel.dout = rows_of(dout);
  if (call.mask) kernel.mask_columns = call.mask->columns;
  std::shared_ptr<const GpuMaskCopy> transposed;
  if (call.mask && dtype == DType::Float32) {
    transposed = transposed_gpu_mask(cuda, *forward.visibility->mask);
    kernel.mask_transposed = transposed->columns;
  }
  const Result dk(cuda, op.dk), dv(cuda, op.dv);
  kernel.dk = rows_of(dk.written());
  kernel.dv = rows_of(dv.written());
  kernel.dk_float32 = op.dk.dtype == DType::Float32;
  kernel.dv_float32 = op.dv.dtype == DType::Float32;
  if (dtype == DType::Float32) {
    const Result dq(cuda, op.dq);
    kernel.dq = rows_of(dq.written());
    launch_backward_float32(cuda, kernel);
    if (scale <= 0) negate(cuda, dq.written(), scale);
    dq.finish();
  } else {
    const int64_t columns = backward_columns_sm80(static_cast<int>(head_dim));
    const auto sum_bytes = static_cast<size_t>(padded_rows * columns) * 4;
    const Memory sum = allocate(cuda, sum_bytes);
    cuda_check(cudaMemsetAsync(sum.data, 0, sum_bytes, cuda.stream.get()), "clearing");
    kernel.dq_sum = static_cast<float*>(sum.data);
    launch_backward_sm80(cuda, dtype, kernel);
    const int64_t elements = op.dq.elements();
    const dim3 grid(static_cast<unsigned>(std::min<int64_t>(ceil_div(elements, kThreads), 1 << 20)));
    visit_float(op.dq.dtype, [&]<class T>(T) {
      launch<finish_kernel<T>>(cuda, grid, kThreads, 0, SumView{kernel.dq_sum, static_cast<int>(columns)},
                               rows_of(op.dq), scale * backward_sum_unit_sm80(dtype),
                               static_cast<int>(queries), kernel.padded_queries, static_cast<int>(heads),
                               static_cast<int>(head_dim), elements);
    });
  }
  dk.finish();
  dv.finish();
}

void run(const Cuda& cuda, const AttentionMerge& op) {
  std::vector<Part> parts;
  for (size_t part = 0; part < op.outs.size(); part++) {
    parts.push_back({rows_of(op.outs[part]), statistics_of(op.log_sum_exps[part]), op.outs[part].dtype});
  }
  merge(cuda, parts, op.out, op.log_sum_exp);
}

}  // namespace longseq
