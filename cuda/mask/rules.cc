// Masks from rules and from values.
#include <algorithm>
#include <limits>
#include <utility>

#include "core/error.h"
#include "core/thread_pool.h"
#include "mask/mask.h"

namespace longseq {
namespace {

constexpr int64_t kMaxSize = std::numeric_limits<int32_t>::max();

void check_size(const char* rule, const char* name, int64_t size) {
  check(size >= 0 && size <= kMaxSize, Code::Shape, "AttentionMask.", rule, ": ", name, " is ", size,
        ", expected 0 to ", kMaxSize);
}

void check_sizes(const char* rule, int64_t queries, int64_t keys) {
  check_size(rule, "queries", queries);
  check_size(rule, "keys", keys);
}

/** begin_of(i) and end_of(i) may lie outside of the keys, and cross where a row is empty. */
template <class Begin, class End>
IntervalRows rows_of(int64_t queries, int64_t keys, Begin begin_of, End end_of) {
  IntervalRows rows(queries);
  for (int64_t i = 0; i < queries; i++) {
    rows.begin[i] = static_cast<int32_t>(std::clamp<int64_t>(begin_of(i), 0, keys));
    rows.end[i] = static_cast<int32_t>(std::clamp<int64_t>(end_of(i), 0, keys));
  }
  rows.normalise(queries);
  return rows;
}

}  // namespace

Mask::Pointer Mask::causal(int64_t queries, int64_t keys) {
  check_sizes("causal", queries, keys);
  const auto begin = [](int64_t) { return int64_t{0}; };
  const auto end = [&](int64_t i) { return i + keys - queries + 1; };
  return make(queries, keys, rows_of(queries, keys, begin, end));
}

Mask::Pointer Mask::window(int64_t queries, int64_t keys, int64_t left, int64_t right) {
  check_sizes("window", queries, keys);
  check(left >= -1, Code::Option, "AttentionMask.window: left is ", left,
        ", expected -1 (unbounded) or more");
  check(right >= -1, Code::Option, "AttentionMask.window: right is ", right,
        ", expected -1 (unbounded) or more");
  // Sizes are below 2^31: a side of 2^32 reaches as far as any above it, and cannot overflow.
  const int64_t reach = int64_t{1} << 32;
  if (left < 0 || left > reach) left = reach;
  if (right < 0 || right > reach) right = reach;
  const auto begin = [&](int64_t i) { return i + keys - queries - left; };
  const auto end = [&](int64_t i) { return i + keys - queries + right + 1; };
  return make(queries, keys, rows_of(queries, keys, begin, end));
}

Mask::Pointer Mask::documents(std::span<const int64_t> boundaries) {
  check(!boundaries.empty(), Code::Shape,
        "AttentionMask.documents: cuSeqlens is empty, expected 0 and the end of each document");
  check(boundaries[0] == 0, Code::Option, "AttentionMask.documents: cuSeqlens begins with ", boundaries[0],
        ", expected 0");
  for (size_t d = 1; d < boundaries.size(); d++) {
    check(boundaries[d - 1] <= boundaries[d], Code::Option, "AttentionMask.documents: cuSeqlens[", d, "] is ",
          boundaries[d], ", expected ", boundaries[d - 1], " (the value before it) or more");
  }
  const int64_t tokens = boundaries.back();
  check_size("documents", "the last of cuSeqlens", tokens);
  IntervalRows rows(tokens);
  for (size_t d = 1; d < boundaries.size(); d++) {
    const int64_t begin = boundaries[d - 1], end = boundaries[d];
    std::fill(rows.begin + begin, rows.begin + end, static_cast<int32_t>(begin));
    std::fill(rows.end + begin, rows.end + end, static_cast<int32_t>(end));
  }
  return make(tokens, tokens, std::move(rows));
}

Mask::Pointer Mask::prefix(int64_t tokens, int64_t prefix) {
  check_size("prefix", "tokens", tokens);
  check(prefix >= 0 && prefix <= tokens, Code::Option, "AttentionMask.prefix: prefixLength is ", prefix,
        ", expected 0 to ", tokens, " (the tokens)");
  const auto begin = [](int64_t) { return int64_t{0}; };
  const auto end = [&](int64_t i) { return std::max(prefix, i + 1); };
  return make(tokens, tokens, rows_of(tokens, tokens, begin, end));
}

Mask::Pointer Mask::dense(int64_t queries, int64_t keys, std::span<const uint8_t> values) {
  check_sizes("dense", queries, keys);
  check(static_cast<int64_t>(values.size()) == queries * keys, Code::Shape,
        "AttentionMask.dense: values has ", values.size(), " values, expected ", queries * keys,
        " (queries x keys)");
  if (keys == 0) return causal(queries, keys);  // no values bound the number of rows
  std::vector<BlockRowWriter> writers(static_cast<size_t>(thread_count().threads), BlockRowWriter(keys));
  return make(queries, keys, build_block_rows(queries, [&](int64_t block, int64_t rows, size_t slot) {
                return writers[slot].from_bytes(rows, values.data() + block * kMaskBlock * keys);
              }));
}

MaskBuilder::MaskBuilder(int64_t queries, int64_t keys) : queries_(queries), keys_(keys), writer_(keys) {
  check_sizes("from", queries, keys);
}

int64_t MaskBuilder::next_rows() const {
  if (keys_ == 0) return 0;  // nothing is to be said about any row
  return std::max<int64_t>(0, rows_of_block(static_cast<int64_t>(rows_.size()), queries_));
}

void MaskBuilder::add(std::span<const uint8_t> values) {
  const int64_t rows = next_rows();
  check(rows > 0 && static_cast<int64_t>(values.size()) == rows * keys_, Code::Shape,
        "AttentionMask.from: ", values.size(), " values were added, expected ", rows * keys_, " (", rows,
        " rows of ", keys_, " keys)");
  rows_.push_back(writer_.from_bytes(rows, values.data()));
}

Mask::Pointer MaskBuilder::finish() {
  check(next_rows() == 0, Code::Shape, "AttentionMask.from: ", next_rows(), " rows are missing");
  if (keys_ == 0) return Mask::causal(queries_, keys_);
  return Mask::make(queries_, keys_, std::move(rows_));
}

}  // namespace longseq
