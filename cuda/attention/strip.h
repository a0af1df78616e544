#pragma once
// What forward and backward share: rows read into scratch, operands packed into panels, scores adjusted and
// masked.
#include <cstring>

#include "attention/tiles.h"
#include "tile/product.h"

namespace longseq::LONGSEQ_ISA {

inline constexpr float kInfinity = __builtin_inff();
inline constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.693147180559945309f;

LONGSEQ_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
LONGSEQ_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/** Columns of a head's values in registers: D to whole vectors. */
LONGSEQ_INLINE int padded_columns(int head_dim) { return (head_dim + kLanes - 1) / kLanes * kLanes; }

template <class T>
LONGSEQ_INLINE T* row_of(const HeadRows& rows, int64_t row) {
  return reinterpret_cast<T*>(rows.data) + row * rows.stride;
}

/** out[0, count) = x, widened. */
template <class T>
LONGSEQ_INLINE void widen(const T* x, int count, float* out) {
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, load(x + i));
  for (; i < count; i++) out[i] = static_cast<float>(x[i]);
}

/** y[0, count) += factor * x, of float32, in two loops: the compiler would make one rounding of product and
 * sum, and a sum of gradients would depend on which of them were written first and added later. */
LONGSEQ_INLINE void add_row(const HeadRows& rows, int64_t row, const float* x, int count, float factor) {
  float* const y = row_of<float>(rows, row);
  float terms[kLargestHeadDim];
  for (int i = 0; i < count; i++) terms[i] = factor * x[i];
  for (int i = 0; i < count; i++) y[i] += terms[i];
}

/** y[0, count) = factor * x, rounded to the rows' dtype. */
LONGSEQ_INLINE void write_row(const HeadRows& rows, int64_t row, const float* x, int count, float factor) {
  if (rows.adds) return add_row(rows, row, x, count, factor);
  visit_pointer(rows.dtype, [&]<class T>(const T*) {
    T* const y = row_of<T>(rows, row);
    const Vec f = set(factor);
    int i = 0;
    for (; i + kLanes <= count; i += kLanes) store(y + i, mul(load(x + i), f));
    if (i < count) {
      T tail[kLanes];
      store(tail, mul(load(x + i), f));
      memcpy(y + i, tail, static_cast<size_t>(count - i) * sizeof(T));
    }
  });
}

/** Rows [first, last) as a Product's row-major A operand of `depth` elements a row; then zero rows up to
 * `padded`. */
template <class Product>
inline void read_rows(const HeadRows& rows, int64_t first, int64_t last, int64_t padded, int head_dim,
                      typename Product::Element* out) {
  const int depth = head_dim / Product::kPair;
  for (int64_t i = first; i < last; i++, out += depth) {
    if constexpr (Product::kPair == 2) {
      memcpy(out, row_of<BFloat16>(rows, i), static_cast<size_t>(head_dim) * 2);
    } else {
      visit_pointer(rows.dtype, [&]<class T>(const T*) { widen(row_of<T>(rows, i), head_dim, out); });
    }
  }
  memset(out, 0, static_cast<size_t>((padded - (last - first)) * depth) * 4);
}

/**
 * Rows [first, first + count) transposed, as a B operand whose columns are the rows: panels of kTileColumns
 * rows, each [depth][kTileColumns]. Rows from `rows_end` on are 0. `count` is a multiple of kPanel.
 */
template <class Product>
inline void pack_transposed(const HeadRows& rows, int64_t first, int64_t count, int64_t rows_end,
                            int head_dim, typename Product::Element* out) {
  using Element = typename Product::Element;
  const int depth = head_dim / Product::kPair;
  Element panel[kTileColumns * kLargestHeadDim];
  for (int64_t row = first; row < first + count; row += kTileColumns) {
    const int64_t end = most(row, least(row + kTileColumns, rows_end));
    read_rows<Product>(rows, row, end, kTileColumns, head_dim, panel);
    // Elements move as 32 bits, whatever they are.
    const auto* const from = reinterpret_cast<const float*>(panel);
    for (int d = 0; d < depth; d++, out += kTileColumns) {
      auto* const to = reinterpret_cast<float*>(out);
      store(to, load_strided(from + d, depth));
      store(to + kLanes, load_strided(from + d + kLanes * depth, depth));
    }
  }
}

#if defined(__AVX512BF16__)
/** The word order that interleaves the low halves of two registers: 0, 32, 1, 33, ... */
LONGSEQ_INLINE __m512i interleaving() {
  return _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5,
                          36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
}
#endif

/**
 * Rows [first, first + count) as a B operand whose depth is the rows: panels of kTileColumns columns (the
 * last one may have kLanes), `panel_stride` elements apart, written from depth `depth_begin` on. `count` is
 * even.
 */
template <class Product>
inline void pack_rows(const HeadRows& rows, int64_t first, int64_t count, int64_t rows_end, int head_dim,
                      int64_t panel_stride, int64_t depth_begin, typename Product::Element* out) {
  const int columns = padded_columns(head_dim);
  if constexpr (Product::kPair == 2) {
#if defined(__AVX512BF16__)
    // Two rows of 16-bit values interleaved: the low half of each element is the even row.
    const __m512i low = interleaving();
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(kLanes));
    const auto read = [&](int64_t row, int d) {
      const int left = head_dim - d;
      if (row >= rows_end) return _mm512_setzero_si512();
      const auto* const x = row_of<BFloat16>(rows, row) + d;
      return left >= kTileColumns ? _mm512_loadu_si512(x)
                                  : _mm512_maskz_loadu_epi16(static_cast<__mmask32>((1u << left) - 1), x);
    };
    for (int64_t i = 0; i < count; i += 2) {
      auto* to = out;
      for (int d = 0; d < columns; d += kTileColumns, to += panel_stride) {
        const __m512i even = read(first + i, d), odd = read(first + i + 1, d);
        if (columns - d >= kTileColumns) {
          auto* const at = to + (depth_begin + i / 2) * kTileColumns;
          _mm512_storeu_si512(at, _mm512_permutex2var_epi16(even, low, odd));
          _mm512_storeu_si512(at + kLanes, _mm512_permutex2var_epi16(even, high, odd));
        } else {
          _mm512_storeu_si512(to + (depth_begin + i / 2) * kLanes, _mm512_permutex2var_epi16(even, low, odd));
        }
      }
    }
#endif
  } else {
    float values[kLargestHeadDim];
    for (int d = head_dim; d < columns; d++) values[d] = 0;
    for (int64_t i = 0; i < count; i++) {
      if (first + i < rows_end) {
        visit_pointer(rows.dtype,
                      [&]<class T>(const T*) { widen(row_of<T>(rows, first + i), head_dim, values); });
      } else {
        for (int d = 0; d < head_dim; d++) values[d] = 0;
      }
      for (int d = 0; d < columns; d += kTileColumns) {
        const int wide = columns - d >= kTileColumns ? kTileColumns : kLanes;
        memcpy(out + d / kTileColumns * panel_stride + (depth_begin + i) * wide, values + d,
               static_cast<size_t>(wide) * sizeof(float));
      }
    }
  }
}

/** Which of the keys 64 panel .. 64 panel + 63 a row sees. */
LONGSEQ_INLINE uint64_t visible_bits(const VisibleKeys& visible, int64_t row, int64_t panel) {
  const uint64_t bits = Interval{visible.begin[row], visible.end[row]}.word(panel * kPanel);
  return visible.mask == nullptr || bits == 0 ? bits : bits & visible.mask->word(row, panel);
}

/** Rows [first, last] as the mask takes them. */
LONGSEQ_INLINE Interval rows_of_mask(int64_t first, int64_t last) {
  return {static_cast<int32_t>(first), static_cast<int32_t>(last + 1)};
}

/**
 * The next keys at or behind `key`, whole panels below `end`, that some of the rows [first, last] see as far
 * as the mask goes. Empty where there are none.
 */
LONGSEQ_INLINE Interval next_keys(const VisibleKeys& visible, int64_t first, int64_t last, int64_t key,
                                  int64_t end) {
  Interval keys{static_cast<int32_t>(key), static_cast<int32_t>(end)};
  if (visible.mask != nullptr && !keys.empty()) {
    const Interval seen = visible.mask->seen_from(rows_of_mask(first, last), key);
    if (seen.empty()) return {keys.end, keys.end};
    keys.begin = static_cast<int32_t>(most(key, seen.begin));
    keys.end = static_cast<int32_t>(least(end, round_up(seen.end, kPanel)));
  }
  return keys;
}

/** Whether each of the rows [first, last] sees all keys of a panel. */
LONGSEQ_INLINE bool all_visible(const VisibleKeys& visible, int64_t first, int64_t last, int64_t panel) {
  const int64_t begin = panel * kPanel, end = begin + kPanel;
  if (visible.begin[last] > begin || visible.end[first] < end) return false;
  return visible.mask == nullptr ||
         visible.mask->coverage(rows_of_mask(first, last),
                                {static_cast<int32_t>(begin), static_cast<int32_t>(end)}) ==
             Mask::Coverage::All;
}

/** tanh through exp2 of a negative, and by its series near 0, where the difference would cancel. */
LONGSEQ_INLINE Vec tanh(Vec x) {
  const Vec size = abs(x), e = exp2(mul(size, set(-2 * kLog2E)));
  const Vec far = div(sub(set(1), e), add(set(1), e));
  const Vec x2 = mul(x, x);
  Vec near = fma(x2, set(-1382.0f / 155925), set(62.0f / 2835));
  near = fma(near, x2, set(-17.0f / 315));
  near = fma(near, x2, set(2.0f / 15));
  near = fma(near, x2, set(-1.0f / 3));
  near = mul(size, fma(near, x2, set(1)));
  float out[kLanes], in[kLanes], f[kLanes], n[kLanes];
  store(in, x), store(f, far), store(n, near);
  for (int i = 0; i < kLanes; i++) {
    const float magnitude = in[i] < 0.25f && in[i] > -0.25f ? n[i] : f[i];
    out[i] = in[i] < 0 ? -magnitude : magnitude;
  }
  return load(out);
}

/** Whether a score is more than a factor times a product: then it is put into base 2 here, and the factor
 * is 1. */
LONGSEQ_INLINE bool adjusts(const HeadScore& score) {
  return score.softcap > 0 || score.slope != 0 || !(score.scale > 0);
}

/**
 * A row of raw products to scores in base 2 (times log2 e): capped, biased. `slope_of_cap`, where wanted,
 * becomes d score / d product but for the scale: 1 - tanh^2.
 */
LONGSEQ_INLINE void adjust_row(const HeadScore& score, int64_t query, int64_t first_key, int64_t keys,
                               int columns, float* s, float* slope_of_cap) {
  const float cap = score.softcap;
  for (int j = 0; j < columns; j += kLanes) {
    Vec x = mul(load(s + j), set(score.scale));
    if (cap > 0) {
      const Vec t = tanh(div(x, set(cap)));
      x = mul(t, set(cap));
      if (slope_of_cap) store(slope_of_cap + j, fma(mul(t, set(-1)), t, set(1)));
    } else if (slope_of_cap) {
      store(slope_of_cap + j, set(1));
    }
    if (score.slope != 0) {
      int32_t distance[kLanes];
      for (int i = 0; i < kLanes; i++) {
        const int64_t key = least(first_key + j + i, keys - 1);
        distance[i] = score.key_positions[key] - score.query_positions[query];
      }
      x = fma(abs(from_int(distance)), set(-score.slope), x);
    }
    store(s + j, mul(x, set(kLog2E)));
  }
}

/** Puts -inf where the rows [first, last] may not look: `count` keys from `from` on, scores `stride` apart.
 */
LONGSEQ_INLINE void mask_rows(const VisibleKeys& visible, int64_t first, int64_t last, int64_t from,
                              int count, float* s, int64_t stride) {
  for (int64_t panel = from / kPanel; panel < (from + count) / kPanel; panel++) {
    if (all_visible(visible, first, last, panel)) continue;
    for (int64_t row = first; row <= last; row++) {
      const uint64_t bits = visible_bits(visible, row, panel);
      if (bits == ~uint64_t{0}) continue;
      float* const at = s + (row - first) * stride + panel * kPanel - from;
      for (int j = 0; j < kPanel; j += kLanes) {
        store(at + j, select(mask_of(bits >> j), load(at + j), set(-kInfinity)));
      }
    }
  }
}

}  // namespace longseq::LONGSEQ_ISA
