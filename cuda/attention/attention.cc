// Checks of attention's arguments, the same for every engine, and the way to the device's queue.
#include "attention/attention.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "attention/attention_api.h"
#include "elementwise/elementwise.h"

namespace longseq {
namespace {

/** [T H D] is [1 T H D], and its log-sum-exp [H T] is [1 H T]: one batch of packed documents. */
Tensor with_batch(Tensor tensor, int rank) {
  if (tensor.rank != rank - 1) return tensor;
  for (int axis = rank - 1; axis > 0; axis--) {
    tensor.shape[static_cast<size_t>(axis)] = tensor.shape[static_cast<size_t>(axis - 1)];
    tensor.strides[static_cast<size_t>(axis)] = tensor.strides[static_cast<size_t>(axis - 1)];
  }
  tensor.shape[0] = 1;
  tensor.strides[0] = 0;
  tensor.rank = rank;
  return tensor;
}

void check_heads(const Tensor& tensor, const char* name, const Tensor& q) {
  check(tensor.rank == q.rank, Code::Shape, "attention: ", name, " has the shape ", shape_text(tensor),
        ", expected ", q.rank, " axes as q has");
  check(tensor.device() == q.device(), Code::Device, "attention: ", name, " is on another device than q");
  check(tensor.dtype == q.dtype, Code::DType, "attention: ", name, " is ", name_of(tensor.dtype),
        ", expected ", name_of(q.dtype), " (that of q)");
  check(tensor.size(-1) <= 1 || tensor.stride(-1) == 1, Code::Shape, "attention: ", name,
        "'s head dimension has stride ", tensor.stride(-1), ", expected 1");
}

void check_like(const Tensor& tensor, const char* what, const Tensor& like, const char* like_name) {
  check(tensor.rank == like.rank && tensor.shape == like.shape, Code::Shape, what, " has the shape ",
        shape_text(tensor), ", expected ", shape_text(like), " (that of ", like_name, ")");
  check(tensor.device() == like.device(), Code::Device, what, " is on another device than ", like_name);
  check(tensor.size(-1) <= 1 || tensor.stride(-1) == 1, Code::Shape, what, "'s last axis has stride ",
        tensor.stride(-1), ", expected 1");
}

void check_log_sum_exp(const Tensor& tensor, const char* what, const Tensor& q) {
  check(tensor.dtype == DType::Float32, Code::DType, what, " is ", name_of(tensor.dtype),
        ", expected float32");
  check(tensor.device() == q.device(), Code::Device, what, " is on another device than q");
  check(tensor.rank == 3 && tensor.size(0) == q.size(0) && tensor.size(1) == q.size(2) &&
            tensor.size(2) == q.size(1),
        Code::Shape, what, " has the shape ", shape_text(tensor), ", expected [B, Hq, Sq] = [", q.size(0),
        ", ", q.size(2), ", ", q.size(1), "]");
  check(tensor.size(2) <= 1 || tensor.stride(2) == 1, Code::Shape, what, "'s rows must be contiguous");
}

void check_boundaries(const std::vector<int64_t>& boundaries, const char* name, int64_t last,
                      const char* last_name) {
  check(boundaries.size() >= 2 && boundaries.front() == 0, Code::Option, "attention: ", name,
        " must start with 0 and have an entry behind each document");
  for (size_t i = 1; i < boundaries.size(); i++) {
    check(boundaries[i] >= boundaries[i - 1], Code::Option, "attention: ", name, " falls from ",
          boundaries[i - 1], " to ", boundaries[i]);
  }
  check(boundaries.back() == last, Code::Option, "attention: ", name, " ends at ", boundaries.back(),
        ", expected ", last, " (", last_name, ")");
}

std::vector<Piece> pieces_of(const std::optional<std::vector<int64_t>>& flat, const char* name, int64_t rows,
                             int64_t start) {
  if (!flat) return {{start, rows}};
  check(flat->size() % 2 == 0, Code::Option, "attention: ", name, " must be pairs of start and length");
  std::vector<Piece> pieces;
  int64_t total = 0, behind = 0;
  for (size_t i = 0; i < flat->size(); i += 2) {
    const Piece piece{(*flat)[i], (*flat)[i + 1]};
    check(piece.start >= behind && piece.length >= 0 && piece.start <= INT32_MAX &&
              piece.length <= INT32_MAX - piece.start,
          Code::Option, "attention: ", name, " must be ascending, disjoint and within 0 to 2^31 - 1");
    behind = piece.start + piece.length;
    total += piece.length;
    pieces.push_back(piece);
  }
  check(total == rows, Code::Option, "attention: ", name, " cover ", total, " rows, expected ", rows);
  return pieces;
}

std::shared_ptr<const VisibilityRule> visibility_of(const AttentionOptions& options, int64_t queries,
                                                    int64_t keys) {
  auto rule = std::make_shared<VisibilityRule>();
  rule->causal = options.causal;
  for (const int64_t side : {options.window_left, options.window_right}) {
    check(side >= -1 && side <= INT32_MAX, Code::Option, "attention: window has ", side,
          ", expected 0 or more, or -1 for unbounded");
  }
  rule->window_left = options.window_left;
  rule->window_right = options.window_right;
  check(!options.key_positions || options.query_positions, Code::Option,
        "attention: keyPositions is given without queryPositions");
  rule->query_positions = pieces_of(options.query_positions, "queryPositions", queries, keys - queries);
  rule->key_positions = pieces_of(options.key_positions, "keyPositions", keys, 0);
  check(!options.documents_keys || options.documents, Code::Option,
        "attention: cuSeqlensKeys is given without cuSeqlens");
  if (options.documents) {
    rule->documents = *options.documents;
    if (options.documents_keys) {
      rule->key_documents = *options.documents_keys;
      check(!options.query_positions, Code::Option,
            "attention: cuSeqlensKeys does not go with queryPositions");
      check_boundaries(rule->documents, "cuSeqlens", queries, "the rows of q");
      check_boundaries(rule->key_documents, "cuSeqlensKeys", keys, "the rows of k");
      check(rule->documents.size() == rule->key_documents.size(), Code::Option,
            "attention: cuSeqlensKeys has ", rule->key_documents.size(), " entries, expected ",
            rule->documents.size(), " (those of cuSeqlens)");
    } else {
      // With positions of a shard, the boundaries are those of the whole sequence.
      const auto end_of = [](const std::vector<Piece>& pieces) {
        return pieces.empty() ? 0 : pieces.back().start + pieces.back().length;
      };
      const int64_t last = std::max(end_of(rule->query_positions), end_of(rule->key_positions));
      const int64_t given = rule->documents.empty() ? 0 : rule->documents.back();
      check_boundaries(rule->documents, "cuSeqlens", options.query_positions ? std::max(last, given) : last,
                       options.query_positions ? "the last position" : "the rows of k");
    }
  }
  rule->mask = options.mask ? *options.mask : nullptr;
  if (rule->mask) {
    check(rule->mask->queries() == queries && rule->mask->keys() == keys, Code::Shape, "attention: mask is [",
          rule->mask->queries(), ", ", rule->mask->keys(), "], expected [", queries, ", ", keys, "]");
  }
  return rule;
}

AttentionForward checked_inputs(Tensor q, Tensor k, Tensor v, const AttentionOptions& options,
                                std::shared_ptr<const KeyParts> key_parts = nullptr,
                                std::shared_ptr<const QueryParts> query_parts = nullptr) {
  check(q.rank == 3 || q.rank == 4, Code::Shape, "attention: q has the shape ", shape_text(q),
        ", expected [B, Sq, Hq, D] or [T, Hq, D]");
  check(is_float(q.dtype), Code::DType, "attention: q is ", name_of(q.dtype),
        ", expected float32, bfloat16 or float16");
  check_heads(q, "q", q);
  check_heads(k, "k", q);
  check_heads(v, "v", q);
  q = with_batch(std::move(q), 4);
  k = with_batch(std::move(k), 4);
  v = with_batch(std::move(v), 4);
  const int64_t head_dim = q.size(3), query_heads = q.size(2), key_heads = k.size(2);
  check(head_dim > 0 && head_dim <= 256 && head_dim % 8 == 0, Code::Shape, "attention: q has head dimension ",
        head_dim, ", expected a multiple of 8 up to 256");
  check(k.size(3) == head_dim, Code::Shape, "attention: k has head dimension ", k.size(3), ", expected ",
        head_dim, " (that of q)");
  check(k.size(0) == q.size(0), Code::Shape, "attention: k has batch size ", k.size(0), ", expected ",
        q.size(0), " (that of q)");
  check(v.shape == k.shape, Code::Shape, "attention: v has the shape ", shape_text(v), ", expected ",
        shape_text(k), " (that of k)");
  check(key_heads > 0 ? query_heads % key_heads == 0 : query_heads == 0, Code::Shape, "attention: q has ",
        query_heads, " heads, expected a multiple of ", key_heads, " (the heads of k)");
  check(std::isfinite(static_cast<float>(options.scale)), Code::Option,
        "attention: scale is not a finite float32");
  check(std::isfinite(static_cast<float>(options.softcap)) && options.softcap >= 0, Code::Option,
        "attention: softcap is ", options.softcap, ", expected a finite number of 0 or more");
  AttentionForward op{.q = std::move(q),
                      .k = std::move(k),
                      .v = std::move(v),
                      .score = {},
                      .visibility = nullptr,
                      .out = {},
                      .log_sum_exp = {},
                      .key_parts = std::move(key_parts),
                      .query_parts = std::move(query_parts)};
  check(op.queries() <= INT32_MAX && op.keys() <= INT32_MAX, Code::Shape,
        "attention: a sequence has at most 2^31 - 1 rows");
  op.score.scale = static_cast<float>(options.scale);
  op.score.softcap = static_cast<float>(options.softcap);
  if (options.alibi_slopes) {
    const Tensor& slopes = *options.alibi_slopes;
    check(slopes.dtype == DType::Float32, Code::DType, "attention: alibiSlopes is ", name_of(slopes.dtype),
          ", expected float32");
    check(slopes.rank == 1 && slopes.size(0) == query_heads && slopes.contiguous(), Code::Shape,
          "attention: alibiSlopes has the shape ", shape_text(slopes), ", expected [", query_heads,
          "] (the heads of q)");
    check(slopes.device() == op.q.device(), Code::Device,
          "attention: alibiSlopes is on another device than q");
    op.score.alibi_slopes = slopes;
  }
  op.visibility = visibility_of(options, op.queries(), op.keys());
  return op;
}

AttentionForward with_results(AttentionForward op, Tensor out, Tensor log_sum_exp) {
  op.out = with_batch(std::move(out), 4);
  op.log_sum_exp = with_batch(std::move(log_sum_exp), 3);
  check_like(op.out, "attention: out", op.q, "q");
  check(op.out.dtype == op.q.dtype || op.out.dtype == DType::Float32, Code::DType, "attention: out is ",
        name_of(op.out.dtype), ", expected ", name_of(op.q.dtype), " or float32");
  check_log_sum_exp(op.log_sum_exp, "attention: logSumExp", op.q);
  return op;
}

AttentionForward checked_forward(Tensor q, Tensor k, Tensor v, Tensor out, Tensor log_sum_exp,
                                 const AttentionOptions& options) {
  return with_results(checked_inputs(std::move(q), std::move(k), std::move(v), options), std::move(out),
                      std::move(log_sum_exp));
}

void check_output_gradients(const AttentionBackward& op) {
  const AttentionForward& forward = op.forward;
  check_like(op.dout, "attention: dout", forward.out, "out");
  check(op.dout.dtype == forward.out.dtype, Code::DType, "attention: dout is ", name_of(op.dout.dtype),
        ", expected ", name_of(forward.out.dtype), " (that of out)");
  if (op.dlog_sum_exp) check_log_sum_exp(op.dlog_sum_exp, "attention: dlogSumExp", forward.q);
}

void check_gradient(const Tensor& gradient, const char* what, const Tensor& like, const char* like_name,
                    bool is_added_to) {
  check_like(gradient, what, like, like_name);
  check(gradient.dtype == DType::Float32 || !is_added_to, Code::DType, what, " is ", name_of(gradient.dtype),
        ", expected float32 (it is added to)");
  check(gradient.dtype == like.dtype || gradient.dtype == DType::Float32, Code::DType, what, " is ",
        name_of(gradient.dtype), ", expected ", name_of(like.dtype), " or float32");
}

/** One of several tensors is like the first one, but for its rows. */
void check_sources(const std::vector<Tensor>& all, const char* name, const Tensor& like, size_t count) {
  check(all.size() == count, Code::Option, "attention: got ", all.size(), " tensors as ", name, ", expected ",
        count);
  for (const Tensor& x : all) {
    check(x.rank == 4 && x.size(0) == like.size(0) && x.size(2) == like.size(2) &&
              x.size(3) == like.size(3) && x.dtype == like.dtype && x.device() == like.device() &&
              x.stride(3) == 1,
          Code::Shape, "attention: a tensor of ", name, " is ", name_of(x.dtype), " ", shape_text(x),
          ", expected ", name_of(like.dtype), " as ", shape_text(like), " but for the rows");
  }
}

std::vector<Part> checked_parts(const std::vector<int64_t>& flat, const std::vector<Tensor>& sources) {
  check(!flat.empty() && flat.size() % 3 == 0 && flat.size() / 3 <= kMostParts, Code::Option,
        "attention: expected source, first row and rows of 1 to ", kMostParts, " parts");
  std::vector<Part> parts;
  for (size_t i = 0; i < flat.size(); i += 3) {
    const Part part{flat[i], flat[i + 1], flat[i + 2]};
    check(part.source >= 0 && part.source < static_cast<int64_t>(sources.size()) && part.first >= 0 &&
              part.count > 0 && part.first % kPartRows == 0 && part.count % kPartRows == 0 &&
              part.count <= sources[static_cast<size_t>(part.source)].size(1) - part.first,
          Code::Option, "attention: a part has ", part.count, " rows from ", part.first, " of source ",
          part.source, ", expected rows that it has, in multiples of ", kPartRows);
    parts.push_back(part);
  }
  return parts;
}

const Tensor& first_of(const std::vector<Tensor>& sources) {
  check(!sources.empty() && sources.size() <= kMostSources, Code::Option, "attention: got ", sources.size(),
        " tensors, expected 1 to ", kMostSources);
  return sources[0];
}

void check_takes_parts(const Tensor& q, const AttentionOptions& options) {
  check(q.rank == 4 && !options.mask && !options.deterministic &&
            takes_parts(q.device(), q.dtype, q.size(3), options.implementation),
        Code::Option, "attention: no kernel takes parts of ", name_of(q.dtype), " ", shape_text(q),
        " with these options");
}

/** What BeginQuerySums makes of a tensor of queries. */
void check_of_queries(const Tensor& x, const char* name, const Tensor& q, int64_t columns) {
  check(x.rank == 4 && x.size(0) == q.size(0) && x.size(1) == q.size(2) && x.size(2) == q.size(1) &&
            x.size(3) == columns && x.dtype == DType::Float32 && x.contiguous() && x.device() == q.device() &&
            q.size(1) % kPartRows == 0,
        Code::Shape, "attention: ", name, " of queries are ", name_of(x.dtype), " ", shape_text(x),
        ", expected float32 [", q.size(0), ", ", q.size(2), ", ", q.size(1), ", ", columns,
        "] of a multiple of ", kPartRows, " queries");
}
void check_statistics(const Tensor& statistics, const Tensor& q) {
  check_of_queries(statistics, "statistics", q, 2);
}
void check_sums(const Tensor& sums, const Tensor& q) {
  check_of_queries(sums, "sums", q, query_sum_columns(q.size(3)));
}

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

int64_t rows_of(const std::vector<Part>& parts) {
  int64_t rows = 0;
  for (const Part& part : parts) rows += part.count;
  return rows;
}

}  // namespace

int64_t AttentionForward::queries() const { return query_parts ? rows_of(query_parts->parts) : q.size(1); }
int64_t AttentionForward::keys() const { return key_parts ? rows_of(key_parts->parts) : k.size(1); }

void attention_forward(Tensor q, Tensor k, Tensor v, Tensor out, Tensor log_sum_exp,
                       AttentionOptions options) {
  const auto device = q.device();
  queue<ReferenceForward>(checked_forward(std::move(q), std::move(k), std::move(v), std::move(out),
                                          std::move(log_sum_exp), options),
                          device, options.implementation);
}

void attention_forward_of_parts(Tensor q, std::vector<Tensor> k, std::vector<Tensor> v,
                                std::vector<int64_t> parts, Tensor out, Tensor log_sum_exp,
                                AttentionOptions options) {
  const auto device = q.device();
  check_takes_parts(q, options);
  check_sources(k, "k", first_of(k), k.size());
  check_sources(v, "v", k[0], k.size());
  for (size_t i = 0; i < k.size(); i++) {
    check(v[i].size(1) == k[i].size(1), Code::Shape, "attention: got ", k[i].size(1), " keys and ",
          v[i].size(1), " values");
  }
  const auto keys = std::make_shared<const KeyParts>(KeyParts{k, v, checked_parts(parts, k)});
  const AttentionForward op =
      with_results(checked_inputs(std::move(q), k[0], v[0], options, keys), out, log_sum_exp);
  queue<ReferenceForward>(op, device, options.implementation);
}

void query_sums_begin(Tensor q, Tensor out, Tensor log_sum_exp, Tensor dout, Tensor statistics, Tensor sums,
                      AttentionOptions options) {
  const auto device = q.device();
  check_takes_parts(q, options);
  check_statistics(statistics, q);
  check_sums(sums, q);
  check_like(out, "attention: out", q, "q");
  check_log_sum_exp(log_sum_exp, "attention: logSumExp", q);
  AttentionBackward op;
  op.forward.q = q;
  op.forward.out = std::move(out);
  op.forward.log_sum_exp = std::move(log_sum_exp);
  op.dout = dout;
  check_output_gradients(op);
  op.forward.query_parts =
      std::make_shared<const QueryParts>(QueryParts{{q}, {dout}, {statistics}, {sums}, {{0, 0, q.size(1)}}});
  device->submit(BeginQuerySums{std::move(op)});
}

void attention_backward_of_parts(std::vector<Tensor> q, std::vector<Tensor> dout,
                                 std::vector<Tensor> statistics, std::vector<Tensor> sums,
                                 std::vector<int64_t> parts, Tensor k, Tensor v, Tensor dk, Tensor dv,
                                 AttentionOptions options) {
  const Tensor& first = first_of(q);
  const auto device = first.device();
  check_takes_parts(first, options);
  check_sources(q, "q", first, q.size());
  check_sources(dout, "dout", first, q.size());
  check(statistics.size() == q.size() && sums.size() == q.size(), Code::Option,
        "attention: expected statistics and sums of ", q.size(), " tensors of queries");
  for (size_t i = 0; i < q.size(); i++) {
    check_statistics(statistics[i], q[i]);
    check_sums(sums[i], q[i]);
    check(dout[i].size(1) == q[i].size(1), Code::Shape, "attention: got ", q[i].size(1), " queries, and ",
          dout[i].size(1), " rows of dout");
  }
  const auto queries =
      std::make_shared<const QueryParts>(QueryParts{q, dout, statistics, sums, checked_parts(parts, q)});
  AttentionBackward op{
      .forward = checked_inputs(first, std::move(k), std::move(v), options, nullptr, queries),
      .dout = dout[0],
      .dlog_sum_exp = {},
      .dq = {},
      .dk = std::move(dk),
      .dv = std::move(dv)};
  check(op.forward.k.size(1) > 0, Code::Shape, "attention: there are no keys");
  check_gradient(op.dk, "attention: dk", op.forward.k, "k", false);
  check_gradient(op.dv, "attention: dv", op.forward.v, "v", false);
  queue<ReferenceBackward>(std::move(op), device, options.implementation);
}

void query_sums_finish(Tensor sums, Tensor dq, AttentionOptions options) {
  const auto device = dq.device();
  AttentionBackward op;
  op.forward.q = dq;
  op.forward.score.scale = static_cast<float>(options.scale);
  check(dq.rank == 4 && is_float(dq.dtype), Code::Shape, "attention: dq is ", name_of(dq.dtype), " ",
        shape_text(dq), ", expected floats of [B, Sq, Hq, D]");
  check_sums(sums, dq);
  op.dq = std::move(dq);
  op.kernels = Kernels::Sm90;
  op.forward.query_parts =
      std::make_shared<const QueryParts>(QueryParts{{}, {}, {}, {sums}, {{0, 0, sums.size(2)}}});
  device->submit(FinishQuerySums{std::move(op)});
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
