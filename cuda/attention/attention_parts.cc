// Attention over rows that lie in several tensors, as the border calls it.
#include <utility>

#include "attention/attention_api.h"
#include "attention/attention_checks.h"

namespace longseq {
namespace {

int64_t rows_of(const std::vector<Part>& parts) {
  int64_t rows = 0;
  for (const Part& part : parts) rows += part.count;
  return rows;
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

/** To the only kernels that take parts, as check_takes_parts has it. */
template <class Operation>
void submit(const std::shared_ptr<Device>& device, Operation op) {
  op.kernels = Kernels::Sm90;
  device->submit(std::move(op));
}

}  // namespace

int64_t AttentionForward::queries() const { return query_parts ? rows_of(query_parts->parts) : q.size(1); }
int64_t AttentionForward::keys() const { return key_parts ? rows_of(key_parts->parts) : k.size(1); }

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
  AttentionForward op =
      with_results(checked_inputs(std::move(q), k[0], v[0], options, keys), out, log_sum_exp);
  submit(device, std::move(op));
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
  submit(device, std::move(op));
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

}  // namespace longseq
