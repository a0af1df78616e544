#pragma once
// Which keys a query may look at by position and document: two integers, on any engine.
#include <cstdint>

#include "core/host_device.h"

namespace longseq {

/** A run of global positions that neighbouring rows stand at. */
struct Piece {
  int64_t start, length;
};

/** A VisibilityRule as plain arrays, without its mask. */
struct RuleView {
  bool causal;
  int64_t window_left, window_right;  // -1: unbounded
  const int64_t *documents, *key_documents;
  int64_t document_count, key_document_count;  // of boundaries; 0: none
  const Piece *query_pieces, *key_pieces;
  int64_t query_piece_count, key_piece_count;
};

struct KeyRange {
  int64_t begin, end;
};

/** Position of the row `index` among pieces. */
LONGSEQ_HOST_DEVICE inline int64_t position_of(const Piece* pieces, int64_t count, int64_t index) {
  for (int64_t p = 0; p < count; p++) {
    if (index < pieces[p].length) return pieces[p].start + index;
    index -= pieces[p].length;
  }
  return count == 0 ? index : pieces[count - 1].start + pieces[count - 1].length + index;
}

/** The first row at or behind a position. */
LONGSEQ_HOST_DEVICE inline int64_t row_from(const Piece* pieces, int64_t count, int64_t position) {
  int64_t rows = 0;
  for (int64_t p = 0; p < count; p++) {
    if (position <= pieces[p].start) break;
    if (position < pieces[p].start + pieces[p].length) return rows + position - pieces[p].start;
    rows += pieces[p].length;
  }
  return rows;
}

/** The document [boundaries[d], boundaries[d + 1]) that holds `position`; empty documents hold nothing. */
LONGSEQ_HOST_DEVICE inline int64_t document_of(const int64_t* boundaries, int64_t count, int64_t position) {
  int64_t low = 0, high = count;  // the first boundary behind the position
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (boundaries[middle] <= position) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low > 0 ? low - 1 : 0;
}

/** With boundaries of their own, queries are aligned at each document's end. */
LONGSEQ_HOST_DEVICE inline int64_t query_position(const RuleView& rule, int64_t row) {
  if (rule.key_document_count == 0) return position_of(rule.query_pieces, rule.query_piece_count, row);
  const int64_t end = document_of(rule.documents, rule.document_count, row) + 1;
  return row - rule.documents[end] + rule.key_documents[end];
}

LONGSEQ_HOST_DEVICE inline int64_t key_position(const RuleView& rule, int64_t row) {
  return position_of(rule.key_pieces, rule.key_piece_count, row);
}

/** The keys that the query in row `row` may look at, as rows of the keys. */
LONGSEQ_HOST_DEVICE inline KeyRange visible_keys(const RuleView& rule, int64_t row) {
  const int64_t position = query_position(rule, row);
  int64_t low = 0, high = INT64_MAX;
  if (rule.key_document_count > 0) {
    const int64_t document = document_of(rule.documents, rule.document_count, row);
    low = rule.key_documents[document];
    high = rule.key_documents[document + 1];
  } else if (rule.document_count > 0) {
    if (position < 0) return {0, 0};
    const int64_t document = document_of(rule.documents, rule.document_count, position);
    low = rule.documents[document];
    // A position behind the last boundary is in no document.
    high = document + 1 < rule.document_count ? rule.documents[document + 1] : low;
  }
  const auto least = [](int64_t a, int64_t b) { return a < b ? a : b; };
  const auto most = [](int64_t a, int64_t b) { return a < b ? b : a; };
  if (rule.causal) high = least(high, position + 1);
  if (rule.window_right >= 0) high = least(high, position + rule.window_right + 1);
  if (rule.window_left >= 0) low = most(low, position - rule.window_left);
  const int64_t begin = row_from(rule.key_pieces, rule.key_piece_count, low);
  const int64_t end = row_from(rule.key_pieces, rule.key_piece_count, high);
  return {begin, most(begin, end)};
}

}  // namespace longseq
