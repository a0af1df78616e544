#include "attention/visibility.h"

#include <algorithm>

#include "core/thread_pool.h"

namespace longseq {
RuleView view_of(const VisibilityRule& rule) {
  const auto count = [](const auto& items) { return static_cast<int64_t>(items.size()); };
  return {.causal = rule.causal,
          .window_left = rule.window_left,
          .window_right = rule.window_right,
          .documents = rule.documents.data(),
          .key_documents = rule.key_documents.data(),
          .document_count = count(rule.documents),
          .key_document_count = count(rule.key_documents),
          .query_pieces = rule.query_positions.data(),
          .key_pieces = rule.key_positions.data(),
          .query_piece_count = count(rule.query_positions),
          .key_piece_count = count(rule.key_positions)};
}

Visibility::Visibility(const VisibilityRule& rule, int64_t queries, int64_t keys,
                       const std::shared_ptr<MemoryUse>& use)
    : queries_(queries), storage_(static_cast<size_t>(2 * queries) * sizeof(int32_t), use) {
  begin_ = static_cast<int32_t*>(storage_.data());
  end_ = begin_ + queries;
  const Mask* const mask = rule.mask.get();
  const bool narrows = mask != nullptr && mask->kind() == Mask::Kind::Intervals;
  if (mask != nullptr && !narrows) mask_ = mask;
  const RuleView view = view_of(rule);
  constexpr int64_t kGrain = 1 << 14;
  const auto resolve = [&](int64_t task) {
    for (int64_t row = task * kGrain; row < std::min(queries, (task + 1) * kGrain); row++) {
      auto [begin, end] = visible_keys(view, row);
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
  const RuleView view = view_of(rule);
  for (int64_t row = 0; row < rows; row++) out[row] = static_cast<int32_t>(query_position(view, row));
  return block;
}

HostBlock positions_of_keys(const VisibilityRule& rule, int64_t rows, const std::shared_ptr<MemoryUse>& use) {
  HostBlock block(static_cast<size_t>(rows) * sizeof(int32_t), use);
  auto* const out = static_cast<int32_t*>(block.data());
  const RuleView view = view_of(rule);
  for (int64_t row = 0; row < rows; row++) out[row] = static_cast<int32_t>(key_position(view, row));
  return block;
}

}  // namespace longseq
