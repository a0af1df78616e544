// Checks of attention's arguments, the same for every engine.
#include "attention/attention_checks.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace longseq {
namespace {

void check_heads(const Tensor& tensor, const char* name, const Tensor& q) {
  check(tensor.rank == q.rank, Code::Shape, "attention: ", name, " has the shape ", shape_text(tensor),
        ", expected ", q.rank, " axes as q has");
  check(tensor.device() == q.device(), Code::Device, "attention: ", name, " is on another device than q");
  check(tensor.dtype == q.dtype, Code::DType, "attention: ", name, " is ", name_of(tensor.dtype),
        ", expected ", name_of(q.dtype), " (that of q)");
  check(tensor.size(-1) <= 1 || tensor.stride(-1) == 1, Code::Shape, "attention: ", name,
        "'s head dimension has stride ", tensor.stride(-1), ", expected 1");
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

}  // namespace

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

AttentionForward checked_inputs(Tensor q, Tensor k, Tensor v, const AttentionOptions& options,
                                std::shared_ptr<const KeyParts> key_parts,
                                std::shared_ptr<const QueryParts> query_parts) {
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

}  // namespace longseq
