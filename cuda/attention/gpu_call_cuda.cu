#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <string>
#include <vector>

#include "attention/gpu_call.h"
#include "attention/visibility.h"
#include "core/division.h"
#include "core/reuse.h"
#include "elementwise/elementwise.h"

namespace longseq {
namespace {

constexpr float kLog2e = 1.4426950408889634f;
constexpr int kThreads = 256;

dim3 blocks_of(int64_t rows) { return dim3(static_cast<unsigned>(ceil_div(rows, kThreads))); }

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

template <class T>
__global__ void negate_kernel(T* x, int64_t elements) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < elements;
       i += int64_t{gridDim.x} * kThreads) {
    x[i] = from_float<T>(-static_cast<float>(x[i]));
  }
}

Tensor negated(const Cuda& cuda, const Tensor& x) {
  const Tensor copy = scratch_like(cuda, x, x.dtype);
  run(cuda, Copy{x, copy});
  visit_float(x.dtype, [&]<class T>(T) {
    const dim3 blocks = blocks_of(std::clamp<int64_t>(copy.elements(), 1, 4096 * kThreads));
    launch<negate_kernel<T>>(cuda, blocks, kThreads, 0, copy.data<T>(), copy.elements());
  });
  return copy;
}

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

/** All begins, and behind them all ends; so are those of a mask, if there is one. */
__global__ void intervals_kernel(RuleView rule, const int32_t* of_mask, int queries, int keys, int32_t* to) {
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row >= queries) return;
  KeyRange range = visible_keys(rule, row);
  if (of_mask != nullptr) {
    range.begin = max(range.begin, int64_t{of_mask[row]});
    range.end = max(range.begin, min(range.end, int64_t{of_mask[queries + row]}));
  }
  to[row] = static_cast<int32_t>(min(range.begin, int64_t{keys}));
  to[queries + row] = static_cast<int32_t>(min(range.end, int64_t{keys}));
}

__global__ void positions_kernel(RuleView rule, int queries, int keys, int32_t* of_queries,
                                 int32_t* of_keys) {
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row < queries) of_queries[row] = static_cast<int32_t>(query_position(rule, row));
  if (row < keys) of_keys[row] = static_cast<int32_t>(key_position(rule, row));
}

/** What intervals are of, where there is no mask. */
std::string key_of(const VisibilityRule& rule, int64_t queries, int64_t keys) {
  std::string key;
  const auto add = [&](const auto* values, size_t count) {
    key.append(reinterpret_cast<const char*>(&count), sizeof(count));
    key.append(reinterpret_cast<const char*>(values), count * sizeof(*values));
  };
  const int64_t numbers[] = {queries, keys, rule.causal, rule.window_left, rule.window_right};
  add(numbers, std::size(numbers));
  add(rule.documents.data(), rule.documents.size());
  add(rule.key_documents.data(), rule.key_documents.size());
  add(rule.query_positions.data(), rule.query_positions.size());
  add(rule.key_positions.data(), rule.key_positions.size());
  return key;
}

/** No tensor's memory and no call's scratch: the device's own, and not counted. */
std::shared_ptr<void> uncounted(const Cuda& cuda, size_t bytes) {
  const Memory memory = allocate(cuda, bytes);
  const auto counted = static_cast<int64_t>(memory.bytes);
  cuda.use->live -= counted;
  return {memory.data, [memory, counted, use = cuda.use](void*) { use->live += counted; }};
}

/** The most keys that a query sees, as far as the rule tells without a look at each. */
int64_t most_seen(const VisibilityRule& rule, int64_t keys) {
  int64_t most = keys;
  const int64_t right = rule.causal ? 0 : rule.window_right;
  if (rule.window_left >= 0 && right >= 0) most = std::min(most, rule.window_left + right + 1);
  const std::vector<int64_t>& documents = rule.key_documents.empty() ? rule.documents : rule.key_documents;
  int64_t longest = documents.empty() ? keys : 0;
  for (size_t d = 1; d < documents.size(); d++) longest = std::max(longest, documents[d] - documents[d - 1]);
  return std::min(most, longest);
}

}  // namespace

int compute_capability(const Cuda& cuda) { return cuda.gpu->compute_capability; }

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

Tensor query_input(const Cuda& cuda, const Tensor& q, float scale) {
  if (scale > 0) return as_input(cuda, q, q.dtype);
  if (scale < 0) return negated(cuda, q);
  const Tensor zeros = scratch_like(cuda, q, q.dtype);
  run(cuda, Fill{zeros, 0});
  return zeros;
}

float positive_scale(float scale) { return scale == 0 ? 1 : std::fabs(scale); }

float sign_of(float scale) { return static_cast<float>((scale > 0) - (scale < 0)); }

GpuResult::GpuResult(const Cuda& cuda, const Tensor& y, bool is_read)
    : cuda_(cuda), y_(y), written_(rows_aligned(y) ? y : scratch_like(cuda, y, y.dtype)) {
  if (is_read && written_.storage != y_.storage) run(cuda, Copy{y_, written_});
}

void GpuResult::finish() const {
  if (written_.storage != y_.storage) run(cuda_, Copy{written_, y_});
}

GpuCall::GpuCall(const Cuda& cuda, const AttentionForward& op)
    // What comes in parts is made ready where these are.
    : q_(op.query_parts ? op.q : query_input(cuda, op.q, op.score.scale)),
      k_(op.key_parts ? op.k : as_input(cuda, op.k, op.k.dtype)),
      v_(op.key_parts ? op.v : as_input(cuda, op.v, op.v.dtype)) {
  kernel.q = rows_of(q_);
  kernel.k = rows_of(k_);
  kernel.v = rows_of(v_);
  kernel.batch = static_cast<int32_t>(q_.size(0));
  kernel.queries = static_cast<int32_t>(op.queries());
  kernel.keys = static_cast<int32_t>(op.keys());
  kernel.keys_in_parts = op.key_parts != nullptr;
  kernel.is_beside_others = op.key_parts || op.query_parts;
  kernel.heads = static_cast<int32_t>(q_.size(2));
  kernel.group = static_cast<int32_t>(q_.size(2) / std::max<int64_t>(k_.size(2), 1));
  kernel.head_dim = static_cast<int32_t>(q_.size(3));
  kernel.splits = 1;
  pack_heads(kernel, 1);
  score(op.score);
  see(cuda, *op.visibility);
  if (op.score.alibi_slopes) place(cuda, op);
}

void GpuCall::score(const ScoreRule& rule) {
  GpuScore& score = kernel.score;
  score.has_softcap = rule.softcap > 0;
  const float scale = positive_scale(rule.scale);
  score.before_cap = score.has_softcap ? scale / rule.softcap : 0;
  score.exponent = (score.has_softcap ? rule.softcap : scale) * kLog2e;
  score.slope_unit = kLog2e / score.exponent;
}

RuleView GpuCall::rule_on_gpu(const Cuda& cuda, const VisibilityRule& rule) {
  if (device_.memory.data == nullptr) device_ = device_rule(cuda, rule);
  return device_.view;
}

void GpuCall::see(const Cuda& cuda, const VisibilityRule& rule) {
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
  visible.most = static_cast<int32_t>(most_seen(rule, kernel.keys));
  if ((rule.mask == nullptr || has_blocks) && rule.documents.empty() &&
      only_piece(rule.query_positions, -1) && only_piece(rule.key_positions, 0)) {
    const auto side = [](int64_t window) { return static_cast<int32_t>(window < 0 ? INT32_MAX : window); };
    visible.left = side(rule.window_left);
    visible.right = rule.causal && rule.window_right != 0 ? 0 : side(rule.window_right);
    return;
  }
  intervals_ = rule.mask == nullptr || has_blocks ? intervals_of_rule(cuda, rule) : intervals(cuda, rule);
  visible.begin = static_cast<const int32_t*>(intervals_.get());
  visible.end = visible.begin + kernel.queries;
}

std::shared_ptr<void> GpuCall::intervals_of_rule(const Cuda& cuda, const VisibilityRule& rule) {
  std::string key = key_of(rule, kernel.queries, kernel.keys);
  if (std::shared_ptr<void> kept = cuda.kept->find(key)) return kept;
  const size_t bytes = static_cast<size_t>(kernel.queries) * 8;
  const bool is_kept = KeptCopies::takes(bytes);
  std::shared_ptr<void> made = is_kept ? uncounted(cuda, bytes) : allocate(cuda, bytes).owner;
  find_intervals(cuda, rule, nullptr, static_cast<int32_t*>(made.get()));
  if (is_kept) cuda.kept->add(std::move(key), made, bytes);
  return made;
}

std::shared_ptr<void> GpuCall::intervals(const Cuda& cuda, const VisibilityRule& rule) {
  const size_t size = static_cast<size_t>(kernel.queries) * 4;
  const Memory memory = allocate(cuda, 4 * size), staging = allocate_staging(cuda, 2 * size);
  auto *const made = static_cast<int32_t*>(memory.data), *const of_mask = made + 2 * int64_t{kernel.queries};
  std::memcpy(staging.data, rule.mask->intervals().begin, size);
  std::memcpy(static_cast<char*>(staging.data) + size, rule.mask->intervals().end, size);
  upload(cuda, of_mask, staging, 2 * size);
  find_intervals(cuda, rule, of_mask, made);
  return memory.owner;
}

void GpuCall::find_intervals(const Cuda& cuda, const VisibilityRule& rule, const int32_t* of_mask,
                             int32_t* to) {
  launch<intervals_kernel>(cuda, blocks_of(kernel.queries), kThreads, 0, rule_on_gpu(cuda, rule), of_mask,
                           kernel.queries, kernel.keys, to);
}

void GpuCall::place(const Cuda& cuda, const AttentionForward& op) {
  slopes_ = op.score.alibi_slopes;
  kernel.score.slopes = slopes_.data<float>();
  positions_ = allocate(cuda, static_cast<size_t>(kernel.queries + int64_t{kernel.keys}) * 4);
  auto* const of_queries = static_cast<int32_t*>(positions_.data);
  launch<positions_kernel>(cuda, blocks_of(std::max(kernel.queries, kernel.keys)), kThreads, 0,
                           rule_on_gpu(cuda, *op.visibility), kernel.queries, kernel.keys, of_queries,
                           of_queries + kernel.queries);
  kernel.score.query_positions = of_queries;
  kernel.score.key_positions = of_queries + kernel.queries;
}

}  // namespace longseq
