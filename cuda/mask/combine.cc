// And, or, not. Intervals stay intervals where each row of the result is one; else the work is done by block
// rows, in parallel, on runs of whole blocks and on the bits of the partial ones.
#include <algorithm>
#include <optional>
#include <utility>

#include "core/error.h"
#include "core/thread_pool.h"
#include "mask/mask.h"

namespace longseq {
namespace {

/** The keys of one row of the result, where they are one interval. */
std::optional<Interval> combine_row(const SetOperation& operation, Interval a, Interval b) {
  int32_t cuts[] = {a.begin, a.end, b.begin, b.end};  // between two neighbours nothing changes
  std::sort(std::begin(cuts), std::end(cuts));
  Interval row;
  for (int s = 0; s < 3; s++) {
    if (cuts[s] == cuts[s + 1] || !operation.holds(a.contains(cuts[s]), b.contains(cuts[s]))) continue;
    if (!row.append(cuts[s], cuts[s + 1])) return std::nullopt;
  }
  return row;
}

std::optional<IntervalRows> combine_rows(const SetOperation& operation, const Mask& a, const Mask& b) {
  IntervalRows rows(a.queries());
  for (int64_t i = 0; i < a.queries(); i++) {
    const std::optional<Interval> row = combine_row(operation, a.interval(i), b.interval(i));
    if (!row) return std::nullopt;
    rows.begin[i] = row->begin;
    rows.end[i] = row->end;
  }
  if (!rows.normalise(a.queries())) return std::nullopt;
  return rows;
}

/** One side of a combination, read by block rows; from intervals they are made as they are read. */
class Operand {
 public:
  explicit Operand(int64_t keys) : writer_(keys) {}

  const BlockRow& read(const Mask& mask, int64_t block, int64_t rows) {
    if (mask.kind() == Mask::Kind::Blocks) return mask.block_row(block);
    const int64_t first = block * kMaskBlock;
    made_ = writer_.from_intervals(rows, mask.intervals().begin + first, mask.intervals().end + first);
    return made_;
  }

 private:
  BlockRowWriter writer_;
  BlockRow made_;
};

struct Workspace {
  explicit Workspace(int64_t keys) : a(keys), b(keys), result(keys) {}
  Operand a, b;
  BlockRowWriter result;
};

}  // namespace

Mask::Pointer Mask::intersect(const Mask& other) const { return combine(kIntersection, *this, other); }
Mask::Pointer Mask::unite(const Mask& other) const { return combine(kUnion, *this, other); }
Mask::Pointer Mask::complement() const {
  return combine(kDifference, *window(queries_, keys_, -1, -1), *this);
}

Mask::Pointer Mask::combine(const SetOperation& operation, const Mask& a, const Mask& b) {
  const int64_t queries = a.queries_, keys = a.keys_;
  check(b.queries_ == queries && b.keys_ == keys, Code::Shape, "AttentionMask.", operation.name,
        ": other has shape [", b.queries_, ", ", b.keys_, "], expected [", queries, ", ", keys, "]");
  if (a.kind() == Kind::Intervals && b.kind() == Kind::Intervals) {
    if (std::optional<IntervalRows> rows = combine_rows(operation, a, b)) {
      return make(queries, keys, std::move(*rows));
    }
  }
  std::vector<Workspace> workspaces;
  for (int t = 0; t < thread_count().threads; t++) workspaces.emplace_back(keys);
  return make(queries, keys, build_block_rows(queries, [&](int64_t block, int64_t rows, size_t slot) {
                auto& [left, right, result] = workspaces[slot];
                return result.combine(operation, rows, left.read(a, block, rows), right.read(b, block, rows));
              }));
}

}  // namespace longseq
