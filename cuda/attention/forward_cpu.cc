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
class Forward {
 public:
  explicit Forward(const ForwardTask& task)
      : task_(task),
        columns_(padded_columns(task.head_dim)),
        depth_(task.head_dim / Product::kPair),
        adjusted_(adjusts(task.score)),
        factor_(adjusted_ ? 1 : task.score.scale * kLog2E),
        scratch_(task.scratch, task.head_dim, columns_) {}

  void run() {
    const int64_t rows = task_.last_query - task_.first_query, padded = (rows + kRows - 1) / kRows * kRows;
    read_rows<Product>(task_.q, task_.first_query, task_.last_query, padded, task_.head_dim, scratch_.q);
    memset(scratch_.out, 0, static_cast<size_t>(padded * columns_) * sizeof(float));
    memset(scratch_.sum, 0, static_cast<size_t>(padded * kLanes) * sizeof(float));
    for (int64_t i = 0; i < padded; i++) scratch_.base[i] = -kInfinity;

    const int64_t block_keys = task_.head_dim <= 128 ? kBlockKeys : kBlockKeys / 2;
    const int64_t end = round_up(task_.last_key, kPanel);
    for (int64_t block = task_.first_key; block < end; block += block_keys) {
      block = next_keys(task_.visible, task_.first_query, task_.last_query - 1, block, end).begin;
      for (int64_t strip = 0; strip < rows; strip += kRows)
        attend(strip, block, least(block + block_keys, end));
    }
    for (int64_t i = 0; i < rows; i++) finish(i);
  }

 private:
  /** The strip's queries over those of the keys [begin, end) that some of them sees. */
  void attend(int64_t strip, int64_t begin, int64_t end) {
    const int64_t first = task_.first_query + strip, last = least(first + kRows, task_.last_query) - 1;
    begin = most(begin, task_.visible.begin[first] / kPanel * kPanel);
    end = least(end, round_up(task_.visible.end[last], kPanel));
    while (begin < end) {
      const Interval keys = next_keys(task_.visible, first, last, begin, end);
      if (keys.empty()) return;
      const int count = keys.end - keys.begin;
      score(first, last, keys.begin, count);
      if (soften(strip, last - first + 1, count, false) > kOutgrown) {
        score(first, last, keys.begin, count);  // p may have taken the scores' place
        soften(strip, last - first + 1, count, true);
      }
      for (int64_t r = 0; r <= last - first; r++) {
        float* const sum = scratch_.sum + (strip + r) * kLanes;
        store(sum, add(load(sum), row_sums_[r]));
      }
      multiply_strip<Product, Lay::RowMajor, true>(
          scratch_.p, kBlockKeys / Product::kPair, reinterpret_cast<const Element*>(task_.packed_values),
          round_up(task_.keys, kPanel) / Product::kPair * kTileColumns, keys.begin / Product::kPair,
          count / Product::kPair, columns_, scratch_.out + strip * columns_, columns_);
      begin = keys.end;
    }
  }

  void score(int64_t first, int64_t last, int64_t key, int count) {
    multiply_strip<Product, Lay::RowMajor, false>(
        scratch_.q + (first - task_.first_query) * depth_, depth_,
        reinterpret_cast<const Element*>(task_.packed_keys) + key * depth_, kTileColumns * depth_, 0, depth_,
        count, scratch_.s, kBlockKeys);
    if (adjusted_) {
      for (int64_t row = first; row <= last; row++) {
        adjust_row(task_.score, row, key, task_.keys, count, scratch_.s + (row - first) * kBlockKeys,
                   nullptr);
      }
    }
    mask_rows(task_.visible, first, last, key, count, scratch_.s, kBlockKeys);
  }

  /** Scores to probabilities. Returns the largest sum of a lane. */
  float soften(int64_t strip, int64_t rows, int count, bool raise) {
    Vec most_seen = zero();
    for (int64_t r = 0; r < rows; r++) {
      const float* const s = scratch_.s + r * kBlockKeys;
      float& base = scratch_.base[strip + r];
      if (raise || base == -kInfinity) {
        raise_base(s, count, factor_, base, scratch_.sum + (strip + r) * kLanes,
                   scratch_.out + (strip + r) * columns_, columns_);
      }
      // Nothing seen yet: every p is exp2(-inf - 0) = 0.
      row_sums_[r] = exponentials<Product>(s, count, factor_, base == -kInfinity ? 0 : base,
                                           scratch_.p + r * (kBlockKeys / Product::kPair));
      most_seen = max(most_seen, row_sums_[r]);
    }
    return max_of(most_seen);
  }

  void finish(int64_t row) {
    const float sum = sum_of(load(scratch_.sum + row * kLanes));
    float log2_sum = scratch_.base[row];
    if (sum > 0) log2_sum += __builtin_log2f(sum);
    write_row(task_.out, task_.first_query + row, scratch_.out + row * columns_, task_.head_dim,
              sum == 0 ? 0 : 1 / sum);
    task_.log_sum_exp[task_.first_query + row] = sum != sum ? sum : log2_sum * kLn2;
  }

  using Element = typename Product::Element;
  const ForwardTask& task_;
  const int columns_, depth_;
  const bool adjusted_;
  const float factor_;
  const Scratch<Product> scratch_;
  Vec row_sums_[kRows];  // of the block in hand
};

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
  if (task.bfloat16) return Forward<BFloat16Product>(task).run();
#endif
  Forward<Float32Product>(task).run();
}

}  // namespace LONGSEQ_ISA
}  // namespace longseq
