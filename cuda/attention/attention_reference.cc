// The definition of attention.h, a row at a time, in float64. Nothing of it is shared with the kernels: what
// a query may look at is asked pair by pair, and all of a row's scores are there at once.
#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/attention.h"
#include "attention/visibility.h"
#include "core/thread_pool.h"

namespace longseq {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double value_at(const Tensor& x, int64_t offset) {
  double value = 0;
  visit_float(x.dtype, [&]<class T>(T) { value = static_cast<float>(x.data<T>()[offset]); });
  return value;
}
double value_at(const Tensor& x, int64_t b, int64_t s, int64_t h, int64_t d) {
  return value_at(x, b * x.stride(0) + s * x.stride(1) + h * x.stride(2) + d);
}
void set_value(const Tensor& y, int64_t b, int64_t s, int64_t h, int64_t d, double value, bool adds = false) {
  const int64_t offset = b * y.stride(0) + s * y.stride(1) + h * y.stride(2) + d;
  visit_float(y.dtype, [&]<class T>(T) {
    T& place = y.data<T>()[offset];
    const auto rounded = static_cast<float>(value);
    place = from_float<T>(adds ? static_cast<float>(place) + rounded : rounded);
  });
}
float& statistic(const Tensor& x, int64_t b, int64_t h, int64_t s) {
  return x.data<float>()[b * x.stride(0) + h * x.stride(1) + s];
}

int64_t document_holding(const std::vector<int64_t>& boundaries, int64_t position) {
  return std::upper_bound(boundaries.begin(), boundaries.end(), position) - boundaries.begin();
}

int64_t position_of(const std::vector<Piece>& pieces, int64_t index) {
  for (const Piece& piece : pieces) {
    if (index < piece.length) return piece.start + index;
    index -= piece.length;
  }
  return index;
}

int64_t position_of_query(const VisibilityRule& rule, int64_t i) {
  if (rule.key_documents.empty()) return position_of(rule.query_positions, i);
  // Aligned at the document's end: its last query stands at its last key.
  const auto document = static_cast<size_t>(document_holding(rule.documents, i));
  return i - rule.documents[document] + rule.key_documents[document];
}

bool visible(const VisibilityRule& rule, int64_t i, int64_t j) {
  const int64_t query = position_of_query(rule, i), key = position_of(rule.key_positions, j);
  if (!rule.key_documents.empty()) {
    if (document_holding(rule.documents, i) != document_holding(rule.key_documents, j)) return false;
  } else if (!rule.documents.empty() &&
             document_holding(rule.documents, query) != document_holding(rule.documents, key)) {
    return false;
  }
  if (rule.causal && key > query) return false;
  if (rule.window_left >= 0 && key < query - rule.window_left) return false;
  if (rule.window_right >= 0 && key > query + rule.window_right) return false;
  return !rule.mask || rule.mask->test(i, j);
}

/** The rows of one head: scores, and what the gradient needs of them. */
struct Row {
  const AttentionForward& op;
  int64_t b, h, i;

  int64_t key_head() const { return h / (op.q.size(2) / op.k.size(2)); }
  double dot(const Tensor& x, const Tensor& y, int64_t j) const {
    double sum = 0;
    for (int64_t d = 0; d < op.q.size(3); d++)
      sum += value_at(x, b, i, h, d) * value_at(y, b, j, key_head(), d);
    return sum;
  }
  /** The score before the bias of position. */
  double capped(int64_t j) const {
    const double s = op.score.scale * dot(op.q, op.k, j), cap = op.score.softcap;
    return cap > 0 ? cap * std::tanh(s / cap) : s;
  }
  double biased(double capped, int64_t j) const {
    if (!op.score.alibi_slopes) return capped;
    const VisibilityRule& rule = *op.visibility;
    const int64_t distance = position_of_query(rule, i) - position_of(rule.key_positions, j);
    return capped - static_cast<double>(op.score.alibi_slopes.data<float>()[h]) *
                        static_cast<double>(std::abs(distance));
  }
};

}  // namespace

void run(const Cpu&, const ReferenceForward& reference) {
  const AttentionForward& op = reference.op;
  const int64_t batch = op.q.size(0), queries = op.q.size(1), heads = op.q.size(2), head_dim = op.q.size(3);
  parallel_for(batch * heads * queries, [&](int64_t task) {
    const Row row{op, task / queries / heads, task / queries % heads, task % queries};
    std::vector<double> score(static_cast<size_t>(op.k.size(1)), -kInfinity);
    double most = -kInfinity, sum = 0;
    for (size_t j = 0; j < score.size(); j++) {
      const auto key = static_cast<int64_t>(j);
      if (!visible(*op.visibility, row.i, key)) continue;
      score[j] = row.biased(row.capped(key), key);
      most = std::isnan(score[j]) ? score[j] : std::max(most, score[j]);
    }
    for (double& s : score) sum += s = s == -kInfinity ? 0 : std::exp(s - most);
    for (int64_t d = 0; d < head_dim; d++) {
      double out = 0;
      for (size_t j = 0; j < score.size(); j++) {
        if (score[j] != 0)
          out += score[j] * value_at(op.v, row.b, static_cast<int64_t>(j), row.key_head(), d);
      }
      set_value(op.out, row.b, row.i, row.h, d, sum == 0 ? 0 : out / sum);
    }
    statistic(op.log_sum_exp, row.b, row.h, row.i) =
        static_cast<float>(sum == 0 ? -kInfinity : most + std::log(sum));
  });
}

void run(const Cpu&, const ReferenceBackward& reference) {
  const AttentionBackward& op = reference.op;
  const AttentionForward& forward = op.forward;
  const int64_t batch = forward.q.size(0), queries = forward.q.size(1), heads = forward.q.size(2);
  const int64_t keys = forward.k.size(1), key_heads = forward.k.size(2), head_dim = forward.q.size(3);
  const auto at = [&](int64_t row, int64_t d) { return static_cast<size_t>(row * head_dim + d); };
  parallel_for(batch * key_heads, [&](int64_t task) {
    const int64_t b = task / key_heads, key_head = task % key_heads, group = heads / key_heads;
    std::vector<double> dk(at(keys, 0)), dv(at(keys, 0)), dq(at(1, 0));
    for (int64_t h = key_head * group; h < (key_head + 1) * group; h++) {
      for (int64_t i = 0; i < queries; i++) {
        const Row row{forward, b, h, i};
        const double log_sum_exp = statistic(forward.log_sum_exp, b, h, i);
        double delta = op.dlog_sum_exp ? -statistic(op.dlog_sum_exp, b, h, i) : 0;
        for (int64_t d = 0; d < head_dim; d++)
          delta += value_at(op.dout, b, i, h, d) * value_at(forward.out, b, i, h, d);
        std::fill(dq.begin(), dq.end(), 0);
        for (int64_t j = 0; j < keys; j++) {
          if (!visible(*forward.visibility, i, j)) continue;
          const double capped = row.capped(j), cap = forward.score.softcap;
          const double p = std::exp(row.biased(capped, j) - log_sum_exp);
          double ds = p * (row.dot(op.dout, forward.v, j) - delta) * forward.score.scale;
          if (cap > 0) ds *= 1 - capped * capped / (cap * cap);
          for (int64_t d = 0; d < head_dim; d++) {
            dv[at(j, d)] += p * value_at(op.dout, b, i, h, d);
            dk[at(j, d)] += ds * value_at(forward.q, b, i, h, d);
            dq[at(0, d)] += ds * value_at(forward.k, b, j, key_head, d);
          }
        }
        for (int64_t d = 0; d < head_dim; d++) set_value(op.dq, b, i, h, d, dq[at(0, d)], op.adds_to_dq);
      }
    }
    for (int64_t j = 0; j < keys; j++) {
      for (int64_t d = 0; d < head_dim; d++) {
        set_value(op.dk, b, j, key_head, d, dk[at(j, d)], op.adds_to_dk);
        set_value(op.dv, b, j, key_head, d, dv[at(j, d)], op.adds_to_dv);
      }
    }
  });
}

}  // namespace longseq
