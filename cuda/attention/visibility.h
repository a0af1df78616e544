#pragma once
// A visibility rule resolved for the rows of one call: each query's keys as one interval. Causal order,
// windows, documents and shards all keep the intervals moving forward from row to row, so a tile's hull is
// that of its first and last row. What is no interval is left to the mask.
#include "attention/attention.h"
#include "attention/visible_keys.h"
#include "core/memory.h"

namespace longseq {

/** Valid as long as the rule is. */
RuleView view_of(const VisibilityRule& rule);

class Visibility {
 public:
  Visibility(const VisibilityRule& rule, int64_t queries, int64_t keys,
             const std::shared_ptr<MemoryUse>& use);

  const int32_t* begin() const { return begin_; }
  const int32_t* end() const { return end_; }
  /** Null where the intervals say all. */
  const Mask* mask() const { return mask_; }
  /** The keys outside of this are seen by none of the queries [first, last]. */
  Interval key_hull(int64_t first, int64_t last) const;
  /** The queries outside of this see none of the keys [first, last]. */
  Interval query_hull(int64_t first, int64_t last) const;

 private:
  int64_t queries_;
  HostBlock storage_;
  int32_t *begin_, *end_;
  const Mask* mask_ = nullptr;
};

/** What ALiBi needs: the position of each row of the queries, of the keys, as an int32. */
HostBlock positions_of_queries(const VisibilityRule& rule, int64_t rows,
                               const std::shared_ptr<MemoryUse>& use);
HostBlock positions_of_keys(const VisibilityRule& rule, int64_t rows, const std::shared_ptr<MemoryUse>& use);

}  // namespace longseq
