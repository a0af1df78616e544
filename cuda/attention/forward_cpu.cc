// Flash attention forward on the CPU (Dao, "FlashAttention-2", algorithm 1). A task is up to 192 queries of
// one head; it walks the keys in blocks of up to 512. Within a block each strip of kRows queries goes all the
// way, product, softmax, product, so that scores never leave the first-level cache, while the block's keys
// and values stay in the second. (Measured, D 64, share of peak: 256 keys 84 % float32, 82 % bfloat16; 512
// keys, p in place of s, 88 %, 87 %.)
//
// A row's p are exp2(s c - base). The base is the largest score of the first block that the row sees, and is
// raised only when a later block's sum outgrows float32's comfort: sums and output are float32, so a base
// that is merely too low costs nothing, and most blocks need no maximum. It is kept scaled and in base 2,
// rounded once, so that exp2(old base - new base) cancels exactly, whatever the size of the scores. The sum
// is kept a lane, reduced at the end.
#include "attention/strip.h"

namespace longseq {

int64_t forward_scratch_bytes(int64_t head_dim);

namespace LONGSEQ_ISA {
namespace {

constexpr int kBlockKeys = kLanes == 16 ? 512 : 256;

/** Where a task's scratch memory goes. Everything is a multiple of 64 bytes. */
template <class Product>
struct Scratch {
  Scratch(char* memory, int head_dim, int columns) {
    const auto take = [&]<class T>(T*& out, int64_t count) {
      out = reinterpret_cast<T*>(memory);
      memory += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    };
    take(q, kForwardQueries * head_dim / Product::kPair);
    take(out, kForwardQueries * columns);
    take(sum, kForwardQueries * kLanes);
    take(base, kForwardQueries);
    take(s, kRows * kBlockKeys);
    if constexpr (Product::kPair == 1) {
      p = s;
    } else {
      take(p, kRows * kBlockKeys / Product::kPair);
    }
  }
  typename Product::Element *q, *p;
  float *out, *sum, *base, *s;
};

/** Sums above this say that a row has outgrown its base. Far from float32's 2^127, far above what is usual.
 */
constexpr float kOutgrown = 0x1p40f;

/** p = exp2(s factor - base) of a row; returns the sum, a lane each. */
template <class Product>
LONGSEQ_INLINE Vec exponentials(const float* s, int count, float factor, float base,
                                typename Product::Element* p) {
  const Vec f = set(factor), m = set(-base);
  Vec even = zero(), odd = zero();
  for (int j = 0; j < count; j += 2 * kLanes) {
    const Vec x = fma(load(s + j), f, m), y = fma(load(s + j + kLanes), f, m);
#if defined(__AVX512BF16__)
    if constexpr (Product::kPair == 2) {
      const Vec a = exp2_coarse(x), b = exp2_coarse(y);
      even = add(even, a);
      odd = add(odd, b);
      _mm512_storeu_si512(p + j / 2, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a)));
      continue;
    }
#endif
    const Vec a = exp2(x), b = exp2(y);
    even = add(even, a);
    odd = add(odd, b);
    store(reinterpret_cast<float*>(p) + j, a);
    store(reinterpret_cast<float*>(p) + j + kLanes, b);
  }
  return add(even, odd);
}

LONGSEQ_INLINE float largest(const float* s, int count) {
  Vec m0 = load(s), m1 = load(s + kLanes), m2 = load(s + 2 * kLanes), m3 = load(s + 3 * kLanes);
  for (int j = 4 * kLanes; j < count; j += 4 * kLanes) {
    m0 = max(m0, load(s + j));
    m1 = max(m1, load(s + j + kLanes));
    m2 = max(m2, load(s + j + 2 * kLanes));
    m3 = max(m3, load(s + j + 3 * kLanes));
  }
  return max_of(max(max(m0, m1), max(m2, m3)));
}

/** Raises a row's base to the largest of its scores, and brings its sum and output to that. */
LONGSEQ_INLINE void raise_base(const float* s, int count, float factor, float& base, float* sum, float* out,
                               int columns) {
  const float seen = largest(s, count) * factor;
  if (!(seen > base)) return;
  float scale[kLanes];
  store(scale, exp2(set(base - seen)));
  const Vec alpha = set(scale[0]);
  store(sum, mul(alpha, load(sum)));
  for (int d = 0; d < columns; d += kLanes) store(out + d, mul(alpha, load(out + d)));
  base = seen;
}

template <class Product>
void forward(const ForwardTask& task) {
  using Element = typename Product::Element;
  const int head_dim = task.head_dim, columns = padded_columns(head_dim), depth = head_dim / Product::kPair;
  const int64_t rows = task.last_query - task.first_query, panels = round_up(task.keys, kPanel);
  const int64_t padded = (rows + kRows - 1) / kRows * kRows;
  const Scratch<Product> scratch(task.scratch, head_dim, columns);
  const auto* const keys = reinterpret_cast<const Element*>(task.packed_keys);
  const auto* const values = reinterpret_cast<const Element*>(task.packed_values);
  const bool adjusted = adjusts(task.score);
  const float factor = adjusted ? 1 : task.score.scale * kLog2E;

  read_rows<Product>(task.q, task.first_query, task.last_query, padded, head_dim, scratch.q);
  memset(scratch.out, 0, static_cast<size_t>(padded * columns) * sizeof(float));
  memset(scratch.sum, 0, static_cast<size_t>(padded * kLanes) * sizeof(float));
  for (int64_t i = 0; i < padded; i++) scratch.base[i] = -kInfinity;

  Vec sums[kRows];
  const int64_t block_keys = head_dim <= 128 ? kBlockKeys : kBlockKeys / 2;
  for (int64_t block = task.first_key / kPanel * kPanel; block < task.last_key; block += block_keys) {
    for (int64_t strip = 0; strip < rows; strip += kRows) {
      const int64_t first = task.first_query + strip, last = least(first + kRows, task.last_query) - 1;
      // The panels of this block that some row of the strip sees.
      const int64_t from = most(block, task.visible.begin[first] / kPanel * kPanel);
      const int64_t to = least(least(block + block_keys, round_up(task.last_key, kPanel)),
                               round_up(task.visible.end[last], kPanel));
      if (from >= to) continue;
      const int count = static_cast<int>(to - from);
      const bool all = all_visible(task.visible, first, last, from / kPanel, to / kPanel);
      const auto score = [&] {
        multiply_strip<Product, Lay::RowMajor, false>(scratch.q + strip * depth, depth, keys + from * depth,
                                                      kTileColumns * depth, 0, depth, count, scratch.s,
                                                      kBlockKeys);
        for (int64_t r = 0; r <= last - first; r++) {
          float* const s = scratch.s + r * kBlockKeys;
          if (adjusted) adjust_row(task.score, first + r, from, task.keys, count, s, nullptr);
          if (!all) mask_row(task.visible, first + r, from / kPanel, count, -kInfinity, s);
        }
      };
      const auto soften = [&](bool raise) {
        Vec most_seen = zero();
        for (int64_t r = 0; r <= last - first; r++) {
          const float* const s = scratch.s + r * kBlockKeys;
          float &base = scratch.base[strip + r], *const sum = scratch.sum + (strip + r) * kLanes;
          if (raise || base == -kInfinity) {
            raise_base(s, count, factor, base, sum, scratch.out + (strip + r) * columns, columns);
          }
          // Nothing seen yet: every p is exp2(-inf - 0) = 0.
          sums[r] = exponentials<Product>(s, count, factor, base == -kInfinity ? 0 : base,
                                          scratch.p + r * (kBlockKeys / Product::kPair));
          most_seen = max(most_seen, sums[r]);
        }
        return max_of(most_seen);
      };
      score();
      if (soften(false) > kOutgrown) {
        score();  // p may have taken the scores' place
        soften(true);
      }
      for (int64_t r = 0; r <= last - first; r++) {
        float* const sum = scratch.sum + (strip + r) * kLanes;
        store(sum, add(load(sum), sums[r]));
      }
      multiply_strip<Product, Lay::RowMajor, true>(
          scratch.p, kBlockKeys / Product::kPair, values, panels / Product::kPair * kTileColumns,
          from / Product::kPair, count / Product::kPair, columns, scratch.out + strip * columns, columns);
    }
  }

  for (int64_t i = 0; i < rows; i++) {
    const float sum = sum_of(load(scratch.sum + i * kLanes));
    float log2_sum = scratch.base[i];
    if (sum > 0) log2_sum += __builtin_log2f(sum);
    write_row(task.out, task.first_query + i, scratch.out + i * columns, head_dim, sum == 0 ? 0 : 1 / sum);
    task.log_sum_exp[task.first_query + i] = sum != sum ? sum : log2_sum * kLn2;
  }
}

template <class Product>
void pack(const PackKeysTask& task) {
  using Element = typename Product::Element;
  const int64_t depth = task.head_dim / Product::kPair, count = round_up(task.last - task.first, kPanel);
  pack_transposed<Product>(task.keys, task.first, count, task.rows, task.head_dim,
                           reinterpret_cast<Element*>(task.packed_keys) + task.first * depth);
  pack_rows<Product>(task.values, task.first, count, task.rows, task.head_dim,
                     round_up(task.rows, kPanel) / Product::kPair * kTileColumns, task.first / Product::kPair,
                     reinterpret_cast<Element*>(task.packed_values));
}

}  // namespace

void run(const PackKeysTask& task) {
#if defined(__AVX512BF16__)
  if (task.bfloat16) return pack<BFloat16Product>(task);
#endif
  pack<Float32Product>(task);
}

void run(const ForwardTask& task) {
#if defined(__AVX512BF16__)
  if (task.bfloat16) return forward<BFloat16Product>(task);
#endif
  forward<Float32Product>(task);
}

}  // namespace LONGSEQ_ISA
}  // namespace longseq
