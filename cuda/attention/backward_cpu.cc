// Flash attention backward on the CPU (Dao, "FlashAttention-2", algorithm 2): five products for each tile of
// queries and block of keys. A task is a block of keys of one key head; it keeps dk and dv, and adds to dq in
// its turn.
//
//   P = exp2(s - logSumExp)   dP = dout v^T   dS = P * (dP - delta)   dv += P^T dout   dk += dS^T q   dq +=
//   dS k
//
// Turns make dq the same at any thread count: blocks add to a tile of queries in ascending order, and since
// tasks are taken in ascending order too, the block that is waited for is always being worked on.
#include <sched.h>

#include <atomic>

#include "attention/strip.h"

namespace longseq::LONGSEQ_ISA {
namespace {

constexpr int kKeys = kBackwardKeys, kQueries = kBackwardQueries;
static_assert(kKeys % kMostTileRows == 0 && kKeys % kPanel == 0 && kQueries % kMostTileRows == 0);

template <class Product>
struct Scratch {
  using Element = typename Product::Element;
  Scratch(char* memory, int head_dim, int columns) {
    const auto take = [&]<class T>(T*& out, int64_t count) {
      out = reinterpret_cast<T*>(memory);
      memory += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    };
    const int depth = head_dim / Product::kPair, wide = static_cast<int>(round_up(columns, kTileColumns));
    take(keys_transposed, kKeys * depth);
    take(values_transposed, kKeys * depth);
    take(key_rows, kKeys / Product::kPair * wide);
    take(dk, kKeys * columns);
    take(dv, kKeys * columns);
    take(q, kQueries * depth);
    take(dout, kQueries * depth);
    take(q_rows, kQueries / Product::kPair * wide);
    take(dout_rows, kQueries / Product::kPair * wide);
    take(p, kQueries / Product::kPair * kKeys);
    take(ds, kQueries / Product::kPair * kKeys);
    take(ds_by_query, kQueries * kKeys / Product::kPair);
    take(s, kRows * kKeys);
    take(dp, kRows * kKeys);
    take(slope_of_cap, kRows * kKeys);
  }
  Element *keys_transposed, *values_transposed, *key_rows;  // B operands of this block
  float *dk, *dv;
  Element *q, *dout, *q_rows, *dout_rows;  // A and B operands of a tile of queries
  Element *p, *ds;                         // [query or pair of queries][key]
  Element* ds_by_query;                    // [query][key or pair of keys]
  float *s, *dp, *slope_of_cap;            // a strip's
};

/** One row of scores and dP to p and dS, in place. */
template <bool kCoarse>
LONGSEQ_INLINE void differentiate(float* s, float* dp, int count, float factor, float log_sum_exp,
                                  float delta) {
  // A query that sees nothing, or a row behind the last query: exp2(-inf) = 0.
  const Vec f = set(factor), m = set(log_sum_exp == -kInfinity ? -kInfinity : -log_sum_exp * kLog2E),
            d = set(delta);
  for (int j = 0; j < count; j += kLanes) {
    const Vec x = fma(load(s + j), f, m);
    const Vec p = kCoarse ? exp2_coarse(x) : exp2(x);
    store(s + j, p);
    store(dp + j, mul(p, sub(load(dp + j), d)));
  }
}

#if defined(__AVX512BF16__)
/** 32 values of two rows, rounded: each row's pairs of neighbours, and the rows' pairs a column. */
LONGSEQ_INLINE void pair_up(const float* x, const float* y, uint32_t* x_pairs, uint32_t* y_pairs,
                            uint32_t* columns) {
  const __m512i low = interleaving();
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  const auto a = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(load(x + kLanes), load(x)));
  const auto b = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(load(y + kLanes), load(y)));
  if (x_pairs) {
    _mm512_storeu_si512(x_pairs, a);
    _mm512_storeu_si512(y_pairs, b);
  }
  _mm512_storeu_si512(columns, _mm512_permutex2var_epi16(a, low, b));
  _mm512_storeu_si512(columns + kLanes, _mm512_permutex2var_epi16(a, high, b));
}
#endif

/** The strip's p and dS [kRows][count] to operands, at column `from` of the block; zeros in its other
 * columns. */
template <class Product>
LONGSEQ_INLINE void write_strip(const Scratch<Product>& scratch, int strip, int from, int count) {
  [[maybe_unused]] constexpr int kStride = kKeys / Product::kPair;
  for (int r = 0; r < kRows; r += Product::kPair) {
    const float *const s = scratch.s + r * kKeys, *const dp = scratch.dp + r * kKeys;
    const int64_t row = (strip + r) / Product::kPair * kKeys;
    auto *const p = scratch.p + row, *const ds = scratch.ds + row;
    for (auto* const out : {p, ds}) {
      memset(out, 0, static_cast<size_t>(from) * 4);
      memset(out + from + count, 0, static_cast<size_t>(kKeys - from - count) * 4);
    }
    if constexpr (Product::kPair == 2) {
#if defined(__AVX512BF16__)
      uint32_t* const by_query = scratch.ds_by_query + (strip + r) * kStride + from / 2;
      for (int j = 0; j < count; j += 2 * kLanes) {
        pair_up(s + j, s + kKeys + j, nullptr, nullptr, p + from + j);
        pair_up(dp + j, dp + kKeys + j, by_query + j / 2, by_query + kStride + j / 2, ds + from + j);
      }
#endif
    } else {
      memcpy(p + from, s, static_cast<size_t>(count) * 4);
      memcpy(ds + from, dp, static_cast<size_t>(count) * 4);
    }
  }
}

/** Until the block before this one has added its part to the tile. */
LONGSEQ_INLINE void wait_for(const std::atomic<int32_t>& progress, int32_t turn) {
  for (int spins = 0; progress.load(std::memory_order_acquire) != turn; spins++) {
    if (spins > 64) sched_yield();
  }
}

template <class Product>
void backward(const BackwardTask& task) {
  constexpr int kKeyStride = kKeys / Product::kPair, kQueryStride = kQueries / Product::kPair;
  constexpr int kStrips = kQueries / kRows, kPanels = kKeys / kPanel;
  const int head_dim = task.head_dim, columns = padded_columns(head_dim), depth = head_dim / Product::kPair;
  const int dq_stride = static_cast<int>(round_up(head_dim, kWidestTile));
  const int64_t block = task.first_key / kKeys;
  const Scratch<Product> scratch(task.scratch, head_dim, columns);

  pack_transposed<Product>(task.k, task.first_key, kKeys, task.keys, head_dim, scratch.keys_transposed);
  pack_transposed<Product>(task.v, task.first_key, kKeys, task.keys, head_dim, scratch.values_transposed);
  pack_rows<Product>(task.k, task.first_key, kKeys, task.keys, head_dim, kKeyStride * kTileColumns, 0,
                     scratch.key_rows);
  memset(scratch.dk, 0, static_cast<size_t>(kKeys * columns) * sizeof(float));
  memset(scratch.dv, 0, static_cast<size_t>(kKeys * columns) * sizeof(float));

  for (int h = 0; h < task.head_count; h++) {
    const BackwardHead& head = task.heads[h];
    const bool adjusted = adjusts(head.score);
    const float factor = adjusted ? 1 : head.score.scale * kLog2E;
    for (int64_t tile = task.first_tile; tile < task.last_tile; tile++) {
      if (block < task.tile_blocks[tile].begin || block >= task.tile_blocks[tile].end) continue;
      const int64_t first = tile * kQueries, end = least(first + kQueries, task.queries);
      const int rows = static_cast<int>(end - first), padded = (rows + kRows - 1) / kRows * kRows;
      const auto turn = static_cast<int32_t>(block - task.tile_blocks[tile].begin);
      if (next_keys(task.visible, first, end - 1, task.first_key, task.first_key + kKeys).empty()) {
        wait_for(head.progress[tile], turn);
        head.progress[tile].store(turn + 1, std::memory_order_release);
        continue;
      }
      read_rows<Product>(head.q, first, end, padded, head_dim, scratch.q);
      read_rows<Product>(head.dout, first, end, padded, head_dim, scratch.dout);
      pack_rows<Product>(head.q, first, padded, end, head_dim, kQueryStride * kTileColumns, 0,
                         scratch.q_rows);
      pack_rows<Product>(head.dout, first, padded, end, head_dim, kQueryStride * kTileColumns, 0,
                         scratch.dout_rows);

      // For each strip the columns of the block that it sees, for each panel of keys the rows that see it.
      int strip_from[kStrips], strip_count[kStrips], panel_from[kPanels], panel_to[kPanels] = {};
      for (int strip = 0; strip < padded; strip += kRows) {
        const int64_t row = first + strip, last = least(row + kRows, end) - 1;
        int64_t from = most(task.first_key, task.visible.begin[row] / kPanel * kPanel);
        const int64_t to = least(task.first_key + kKeys, round_up(task.visible.end[last], kPanel));
        from = next_keys(task.visible, row, last, from, to).begin;
        const int offset = static_cast<int>(from - task.first_key),
                  count = from < to ? static_cast<int>(to - from) : 0;
        strip_from[strip / kRows] = count ? offset : 0;
        strip_count[strip / kRows] = count;
        if (count) {
          multiply_strip<Product, Lay::RowMajor, false>(
              scratch.q + strip * depth, depth, scratch.keys_transposed + offset * depth,
              kTileColumns * depth, 0, depth, count, scratch.s, kKeys);
          multiply_strip<Product, Lay::RowMajor, false>(
              scratch.dout + strip * depth, depth, scratch.values_transposed + offset * depth,
              kTileColumns * depth, 0, depth, count, scratch.dp, kKeys);
          if (adjusted) {
            for (int64_t query = row; query <= last; query++) {
              const int64_t r = (query - row) * kKeys;
              adjust_row(head.score, query, from, task.keys, count, scratch.s + r, scratch.slope_of_cap + r);
            }
          }
          mask_rows(task.visible, row, last, from, count, scratch.s, kKeys);
          for (int r = 0; r < kRows; r++) {
            float *const s = scratch.s + r * kKeys, *const dp = scratch.dp + r * kKeys;
            const int64_t query = row + r;
            if (query > last) {
              memset(s, 0, static_cast<size_t>(count) * sizeof(float));
              memset(dp, 0, static_cast<size_t>(count) * sizeof(float));
              continue;
            }
            differentiate<Product::kPair == 2>(s, dp, count, factor, head.log_sum_exp[query],
                                               head.delta[query]);
            if (adjusted) {
              const float* const slope = scratch.slope_of_cap + r * kKeys;
              for (int j = 0; j < count; j += kLanes) store(dp + j, mul(load(dp + j), load(slope + j)));
            }
          }
          for (int panel = offset / kPanel; panel < (offset + count) / kPanel; panel++) {
            if (panel_to[panel] == 0) panel_from[panel] = strip;
            panel_to[panel] = strip + kRows;
          }
        }
        write_strip<Product>(scratch, strip, strip_from[strip / kRows], count);
      }

      wait_for(head.progress[tile], turn);
      for (int strip = 0; strip < padded; strip += kRows) {
        const int from = strip_from[strip / kRows], count = strip_count[strip / kRows];
        if (count == 0) continue;
        const auto* const ds = Product::kPair == 2 ? scratch.ds_by_query : scratch.ds;
        multiply_strip<Product, Lay::RowMajor, true>(ds + strip * kKeyStride + from / Product::kPair,
                                                     kKeyStride, scratch.key_rows, kKeyStride * kTileColumns,
                                                     from / Product::kPair, count / Product::kPair, columns,
                                                     head.dq + (first + strip) * dq_stride, dq_stride);
      }
      head.progress[tile].store(turn + 1, std::memory_order_release);

      for (int key = 0; key < kKeys; key += kRows) {
        // A strip of kRows keys may touch two panels.
        const int left = key / static_cast<int>(kPanel), right = (key + kRows - 1) / static_cast<int>(kPanel);
        int from = kQueries, to = 0;
        for (int panel = left; panel <= right; panel++) {
          if (panel_to[panel] == 0) continue;
          from = panel_from[panel] < from ? panel_from[panel] : from;
          to = panel_to[panel] > to ? panel_to[panel] : to;
        }
        if (to == 0) continue;
        const int begin = from / Product::kPair, length = (to - from) / Product::kPair;
        multiply_strip<Product, Lay::DepthMajor, true>(scratch.p + begin * kKeys + key, kKeys,
                                                       scratch.dout_rows, kQueryStride * kTileColumns, begin,
                                                       length, columns, scratch.dv + key * columns, columns);
        multiply_strip<Product, Lay::DepthMajor, true>(scratch.ds + begin * kKeys + key, kKeys,
                                                       scratch.q_rows, kQueryStride * kTileColumns, begin,
                                                       length, columns, scratch.dk + key * columns, columns);
      }
    }
  }
  const float scale = task.head_count > 0 ? task.heads[0].score.scale : 0;  // no query head: no gradient
  for (int64_t key = task.first_key; key < task.last_key; key++) {
    const int64_t row = (key - task.first_key) * columns;
    write_row(task.dk, key, scratch.dk + row, head_dim, scale);
    write_row(task.dv, key, scratch.dv + row, head_dim, 1);
  }
}

}  // namespace

void run(const BackwardTask& task) {
#if defined(__AVX512BF16__)
  if (task.bfloat16) return backward<BFloat16Product>(task);
#endif
  backward<Float32Product>(task);
}

void run(const DeltaTask& task) {
  float out[kLargestHeadDim + kLanes] = {}, dout[kLargestHeadDim + kLanes] = {};
  for (int64_t i = task.first; i < task.last; i++) {
    visit_pointer(task.out.dtype,
                  [&]<class T>(const T*) { widen(row_of<T>(task.out, i), task.head_dim, out); });
    visit_pointer(task.dout.dtype,
                  [&]<class T>(const T*) { widen(row_of<T>(task.dout, i), task.head_dim, dout); });
    Vec sum = zero();
    for (int d = 0; d < task.head_dim; d += kLanes) sum = fma(load(out + d), load(dout + d), sum);
    task.delta[i] = sum_of(sum) - (task.dlog_sum_exp ? task.dlog_sum_exp[i] : 0);
  }
}

void run(const WriteTask& task) {
  const int64_t stride = round_up(task.head_dim, kWidestTile);
  for (int64_t i = task.first; i < task.last; i++) {
    write_row(task.out, i, task.sums + i * stride, task.head_dim, task.scale);
  }
}

}  // namespace longseq::LONGSEQ_ISA
