#include "attention/visibility.h"

#include <algorithm>

#include "core/thread_pool.h"

namespace longseq {
namespace {

/** The document [boundaries[d], boundaries[d + 1]) that holds `position`; empty documents hold nothing. */
size_t document_of(const std::vector<int64_t>& boundaries, int64_t position) {
  const auto after = std::upper_bound(boundaries.begin(), boundaries.end(), position);
  return static_cast<size_t>(std::max<ptrdiff_t>(after - boundaries.begin() - 1, 0));
}

struct Range {
  int64_t begin, end;
};

/** The keys that the query in row `row` may look at by position and document, as rows of the keys. */
Range visible_keys(const VisibilityRule& rule, int64_t row) {
  const int64_t position = query_position(rule, row);
  int64_t low = 0, high = INT64_MAX;
  if (!rule.key_documents.empty()) {
    const size_t document = document_of(rule.documents, row);
    low = rule.key_documents[document];
    high = rule.key_documents[document + 1];
  } else if (!rule.documents.empty()) {
    if (position < 0) return {0, 0};
    const size_t document = document_of(rule.documents, position);
    low = rule.documents[document];
    high = rule.documents[document + 1];
  }
  if (rule.causal) high = std::min(high, position + 1);
  if (rule.window_right >= 0) high = std::min(high, position + rule.window_right + 1);
  if (rule.window_left >= 0) low = std::max(low, position - rule.window_left);
  const int64_t begin = row_from(rule.key_positions, low), end = row_from(rule.key_positions, high);
  return {begin, std::max(begin, end)};
}

}  // namespace

int64_t position_of(const std::vector<Piece>& pieces, int64_t index) {
  for (const Piece& piece : pieces) {
    if (index < piece.length) return piece.start + index;
    index -= piece.length;
  }
  return pieces.empty() ? index : pieces.back().start + pieces.back().length + index;
}

int64_t row_from(const std::vector<Piece>& pieces, int64_t position) {
  int64_t rows = 0;
  for (const Piece& piece : pieces) {
    if (position <= piece.start) break;
    if (position < piece.start + piece.length) return rows + position - piece.start;
    rows += piece.length;
  }
  return rows;
}

int64_t query_position(const VisibilityRule& rule, int64_t row) {
  if (rule.key_documents.empty()) return position_of(rule.query_positions, row);
  const size_t end = document_of(rule.documents, row) + 1;
  return row - rule.documents[end] + rule.key_documents[end];
}

Visibility::Visibility(const VisibilityRule& rule, int64_t queries, int64_t keys,
                       const std::shared_ptr<MemoryUse>& use)
    : queries_(queries), storage_(static_cast<size_t>(2 * queries) * sizeof(int32_t), use) {
  begin_ = static_cast<int32_t*>(storage_.data());
  end_ = begin_ + queries;
  const Mask* const mask = rule.mask.get();
  const bool narrows = mask != nullptr && mask->kind() == Mask::Kind::Intervals;
  if (mask != nullptr && !narrows) mask_ = mask;
  constexpr int64_t kGrain = 1 << 14;
  const auto resolve = [&](int64_t task) {
    for (int64_t row = task * kGrain; row < std::min(queries, (task + 1) * kGrain); row++) {
      auto [begin, end] = visible_keys(rule, row);
      if (narrows) {
        const Interval allowed = mask->interval(row);
        begin = std::max<int64_t>(begin, allowed.begin);
        end = std::max(begin, std::min<int64_t>(end, allowed.end));
      }
      begin_[row] = static_cast<int32_t>(std::min(begin, keys));
      end_[row] = static_cast<int32_t>(std::min(end, keys));
    }
  };
  const int64_t tasks = (queries + kGrain - 1) / kGrain;
  if (tasks == 1) {
    resolve(0);
  } else {
    parallel_for(tasks, resolve);
  }
}

Interval Visibility::key_hull(int64_t first, int64_t last) const {
  Interval hull{begin_[first], end_[last]};
  if (mask_ != nullptr && !hull.empty()) {
    const Interval seen = mask_->key_range({static_cast<int32_t>(first), static_cast<int32_t>(last + 1)});
    hull = {std::max(hull.begin, seen.begin), std::min(hull.end, seen.end)};
  }
  return hull;
}

Interval Visibility::query_hull(int64_t first, int64_t last) const {
  const int32_t* const from = std::upper_bound(end_, end_ + queries_, static_cast<int32_t>(first));
  const int32_t* const to = std::upper_bound(begin_, begin_ + queries_, static_cast<int32_t>(last));
  Interval hull{static_cast<int32_t>(from - end_), static_cast<int32_t>(to - begin_)};
  if (mask_ != nullptr && !hull.empty()) {
    const Interval seen = mask_->query_range({static_cast<int32_t>(first), static_cast<int32_t>(last + 1)});
    hull = {std::max(hull.begin, seen.begin), std::min(hull.end, seen.end)};
  }
  return hull;
}

HostBlock positions_of_queries(const VisibilityRule& rule, int64_t rows,
                               const std::shared_ptr<MemoryUse>& use) {
  HostBlock block(static_cast<size_t>(rows) * sizeof(int32_t), use);
  auto* const out = static_cast<int32_t*>(block.data());
  for (int64_t row = 0; row < rows; row++) out[row] = static_cast<int32_t>(query_position(rule, row));
  return block;
}

HostBlock positions_of_keys(const VisibilityRule& rule, int64_t rows, const std::shared_ptr<MemoryUse>& use) {
  HostBlock block(static_cast<size_t>(rows) * sizeof(int32_t), use);
  auto* const out = static_cast<int32_t*>(block.data());
  for (int64_t row = 0; row < rows; row++) {
    out[row] = static_cast<int32_t>(position_of(rule.key_positions, row));
  }
  return block;
}

}  // namespace longseq
