#pragma once
// What the kernels for compute capability 9.0 that keep keys and stream queries have in common. S, a kernel's
// shape, says how large tiles are and where they lie in shared memory.
#include <type_traits>

#include "attention/attention_sm90.h"
#include "attention/block_order.h"
#include "attention/gradients_sm90.h"
#include "attention/query_tiles.h"
#include "tile/sm90.h"

namespace longseq {

/** What a stage holds. */
struct StagedTile {
  int first;      // query; -1: there are no more
  int head;       // of the query
  int tile;       // of the mask, or -1
  int row;        // its first, among all heads' padded queries of its source, and the source: see RowOfSource
  bool sees_all;  // each of its queries all of the block's keys
  bool hides[2];  // none of its queries sees any of the first, or the second 64 keys
};

/** The row of a tile's first query and its tensor in one register: rows are multiples of 64, and fewer than
 * 2^31, or q would fill any memory. */
struct RowOfSource {
  static constexpr int kTileRows = 64;
  static_assert(kMostSources <= kTileRows);
  __device__ static int of(int row, int source) { return row + source; }
  __device__ static int source(int of) { return of % kTileRows; }
  __device__ static int row(int of) { return of / kTileRows * kTileRows; }
};

template <class S>
__device__ const StagedTile& staged(int stage) {
  return reinterpret_cast<const StagedTile*>(sm90::aligned_memory() + S::kTilesAt)[stage];
}

/** A block's barriers, behind its tiles in shared memory. */
template <class S>
class KeyChannels : public sm90::Barriers {
 public:
  __device__ explicit KeyChannels(uint32_t base) : Barriers(base + S::kBarriersAt) {}
  __device__ sm90::Barrier keys_full() const { return at(0); }
  __device__ sm90::Barrier queries_full(int stage) const { return at(1, stage); }
  __device__ sm90::Barrier queries_empty(int stage) const { return at(3, stage); }
  __device__ sm90::Barrier gradients_full(int stage) const { return at(5, stage); }
  __device__ sm90::Barrier gradients_empty(int stage) const { return at(7, stage); }
  /** There is only one tile left to copy, or none. */
  __device__ sm90::Barrier tiles_end() const { return at(9); }
  static constexpr int kCount = 10;

  __device__ void init() const {
    constexpr int kWarps = 4 * S::kConsumers;
    keys_full().init(1);
    tiles_end().init(1);
    for (int stage = 0; stage < S::kStages; stage++) {
      queries_full(stage).init(1);
      queries_empty(stage).init(kWarps + S::kOtherReaders);
      gradients_full(stage).init(1);
      gradients_empty(stage).init(kWarps);
    }
    sm90::publish_barriers();
  }

  /** A warp is done with what the barrier stands for. */
  __device__ static void release(const sm90::Barrier& barrier) {
    if (threadIdx.x % 32 == 0) barrier.arrive();
  }
};

/** The keys of a head that a block keeps. */
template <class S>
struct KeyTile {
  int first_key, batch, key_head;
  __device__ explicit KeyTile(const BackwardSm90& launch) {
    const ForwardSm80& forward = launch.op.forward;
    const auto [tile, head] = launch.order.place(blockIdx.x);
    const int key_heads = forward.heads / forward.group;
    first_key = tile * S::kKeys;
    batch = head / key_heads;
    key_head = head % key_heads;
  }
};

/** Warps of a block that have neither tiles to copy nor products to make. */
inline constexpr int kMeanwhileWarps = 2;

/** How many of them prepare the rows of the second section behind this one: those of the half of its blocks
 * that comes first, for the others' tiles may be short. */
__device__ inline int warps_preparing(const BlockOrder& order, const BlockOrder::Section& section) {
  return (section.count * order.tiles + 1) / 2 * kMeanwhileWarps;
}

/** Until the rows of the block's section are prepared, for a thread that copies them; by blocks that were
 * started before this one. */
__device__ inline void wait_prepared(const BackwardSm90& launch) {
  const BlockOrder& order = launch.order;
  const BlockOrder::Section section = order.section_of(blockIdx.x);
  if (section.first < order.prepared_before()) return;
  const int warps = warps_preparing(order, order.before(order.before(section)));
  while (sm80::load_acquire(&launch.op.progress[section.first].prepared) < warps) continue;
  sm90::publish_global_writes();
}

/** Copies keys, values, queries, their gradients and statistics to shared memory; one warp. */
template <class S, bool kHasMask>
__device__ void produce(const BackwardSm90& launch, uint32_t base) {
  using sm90::Barrier;
  const BackwardSm80& op = launch.op;
  const ForwardSm80& forward = op.forward;
  const KeyTile<S> keys(launch);
  const KeyChannels<S> channels(base);
  const auto load_pages = [&](const CUtensorMap& map, const Barrier& full, uint32_t to, int page_bytes,
                              int row, int head) {
#pragma unroll
    for (int page = 0; page < S::kPages; page++) {
      sm90::copy_box(to + page * page_bytes, map, full, 64 * page, row, head, keys.batch);
    }
  };
  if (threadIdx.x == 0) {
    const Barrier full = channels.keys_full();
    full.arrive_expecting(2 * S::kKeyBytes);
    const int head = keys.key_head / op.key_shares;
    load_pages(launch.k, full, base, S::kKeyPage, keys.first_key, head);
    load_pages(launch.v, full, base + S::kValuesAt, S::kKeyPage, keys.first_key, head);
  }
  __syncwarp();
  const int2 seeing =
      seeing_queries(forward, keys.first_key, min(keys.first_key + S::kKeys, forward.keys) - 1);
  if (threadIdx.x != 0) return;

  auto* const staged = reinterpret_cast<StagedTile*>(sm90::aligned_memory() + S::kTilesAt);
  RowTiles<S::kRows, kHasMask, false> tiles(op, keys.first_key, seeing, keys.key_head * forward.group);
  sm90::Ring<S::kStages> stages;
  bool waits = op.prepares;
  RowTile rows = tiles.next();
  const auto tell_end = [&] {
    if (rows.first < 0) channels.tiles_end().arrive();
  };
  for (tell_end(); rows.first >= 0; stages.advance()) {
    const int stage = stages.stage, first = rows.first, head = rows.head,
              last = min(first + S::kRows, forward.queries) - 1;
    // Intervals only move forward.
    const int2 at_first = visible_keys(forward.visible, first, forward.keys),
               at_last = visible_keys(forward.visible, last, forward.keys);
    const bool sees_all = at_last.x <= keys.first_key && at_first.y >= keys.first_key + S::kKeys;
    const auto hides = [&](int key) { return at_last.y <= key || at_first.x >= key + 64; };
    static_assert(S::kRows % RowOfSource::kTileRows == 0 && kPartRows % S::kRows == 0);
    const QueryMaps& queries = launch.queries;
    const int part = queries.table.part_of(first), source = queries.table.sources[part],
              of_source = first + queries.table.shifts[part];
    const int row =
        static_cast<int>((int64_t{keys.batch} * forward.heads + head) * queries.padded[source]) + of_source;
    const StagedTile tile = {first,
                             head,
                             rows.tile,
                             RowOfSource::of(row, source),
                             sees_all && rows.tile < 0,
                             {hides(keys.first_key), hides(keys.first_key + 64)}};
    rows = tiles.next();
    tell_end();
    channels.queries_empty(stage).wait(stages.parity ^ 1);
    staged[stage] = tile;
    const Barrier queries_full = channels.queries_full(stage),
                  gradients_full = channels.gradients_full(stage);
    load_pages(queries.q[source], queries_full, base + S::kQueriesAt + stage * S::kRowBytes, S::kRowPage,
               of_source, head);
    if (waits) wait_prepared(launch);
    waits = false;
    queries_full.arrive_expecting(S::kRowBytes + S::kStatisticBytes);
    sm90::copy_bytes(base + S::kStatisticsAt + stage * S::kStatisticBytes, queries.statistics[source] + row,
                     S::kStatisticBytes, queries_full);
    channels.gradients_empty(stage).wait(stages.parity ^ 1);
    gradients_full.arrive_expecting(S::kRowBytes);
    load_pages(queries.dout[source], gradients_full, base + S::kGradientsAt + stage * S::kRowBytes,
               S::kRowPage, of_source, head);
  }
  channels.queries_empty(stages.stage).wait(stages.parity ^ 1);
  staged[stages.stage].first = -1;
  channels.queries_full(stages.stage).arrive();
}

/**
 * The scores of 16 keys, a warp's, with a tile of queries: transposed, a row a key, as a product of 64 rows
 * leaves them. As float16, weights are in units of 2^-12: one in a million keys would have four bits left.
 */
template <class S, bool kHasMask>
class KeyScores {
  static constexpr bool kIsHalf = std::is_same_v<typename S::T, sm80::Half>;

 public:
  using Scores = float[S::kRows / 2];
  /** Which of the warp's keys queries see, a bit a key: in lane i query i and those 32 apart. */
  using Seen = uint32_t[S::kRows / 32];
  static constexpr float kWeightBits = kIsHalf ? 12 : 0, kWeightUnit = kIsHalf ? 1.f / 4096 : 1;

  __device__ KeyScores(const BackwardSm80& op, int first_key)
      : forward_(op.forward), first_key_(first_key), lane_(static_cast<int>(threadIdx.x) % 32) {}

  /** Softcap or ALiBi. */
  __device__ bool has_rules() const { return forward_.score.has_softcap || forward_.score.slopes != nullptr; }
  /** The key of this lane's elements 4 j and 4 j + 1; that of 4 j + 2 and 4 j + 3 is 8 further. */
  __device__ int key() const { return first_key_ + lane_ / 4; }

  /** Log-sum-exp and delta of queries 8 j + 2 (lane % 4) and the next, at 4 j. */
  __device__ const float4* statistics(int stage) const {
    return reinterpret_cast<const float4*>(sm90::aligned_memory() + S::kStatisticsAt +
                                           stage * S::kStatisticBytes) +
           lane_ % 4;
  }

  /** s = P^T. */
  __device__ void weigh(Scores& s, int stage) const {
    const float exponent = forward_.score.exponent;
#pragma unroll
    for (int j = 0; j < S::kRows / 8; j++) {
      const float4 two = statistics(stage)[4 * j];
      const float base[2] = {kWeightBits - two.x, kWeightBits - two.z};
#pragma unroll
      for (int e = 0; e < 4; e++) {
        s[4 * j + e] = sm80::exp2_approximate(fmaf(s[4 * j + e], exponent, base[e % 2]));
      }
    }
  }

  /** The same with softcap and ALiBi; derive(i, derivative, delta) takes the softcap's. */
  template <class Derive>
  __device__ void adjust(Scores& s, const StagedTile& rows, int stage, const Derive& derive) const {
    const GpuScore& score = forward_.score;
    const float slope = score.slopes == nullptr ? 0 : score.slopes[rows.head] * score.slope_unit;
#pragma unroll
    for (int j = 0; j < S::kRows / 8; j++) {
      const float4 two = statistics(stage)[4 * j];
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const int query = min(rows.first + 8 * j + lane_ % 4 * 2 + e, forward_.queries - 1);
        const int position = slope == 0 ? 0 : query_position(score, forward_.visible, query);
        const float base = kWeightBits - (e == 0 ? two.x : two.z), delta = e == 0 ? two.y : two.w;
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int i = 4 * j + 2 * half + e;
          float& x = s[i];
          if (score.has_softcap) {
            x = sm80::tanh_accurate(x * score.before_cap);
            derive(i, 1 - x * x, delta);
          }
          if (slope != 0) {
            const int at = min(key() + 8 * half, forward_.keys - 1);
            x -= slope * static_cast<float>(abs(position - key_position(score, at)));
          }
          x = sm80::exp2_approximate(fmaf(x, score.exponent, base));
        }
      }
    }
  }

  __device__ void find_seen(Seen& seen, const StagedTile& rows) const {
#pragma unroll
    for (int i = 0; i < S::kRows / 32; i++) {
      const int query = min(rows.first + 32 * i + lane_, forward_.queries - 1);
      const int2 keys = visible_keys(forward_.visible, query, forward_.keys);
      const int begin = min(max(keys.x - first_key_, 0), 16), end = min(max(keys.y - first_key_, begin), 16);
      seen[i] = (1u << end) - (1u << begin);
      if (kHasMask) seen[i] &= mask_bits(forward_.mask, rows.tile, query, first_key_);
    }
  }

  /** 0 where a query does not see a key. */
  __device__ void hide(Scores& s, const Seen& seen) const {
#pragma unroll
    for (int j = 0; j < S::kRows / 8; j++) {
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const uint32_t keys = __shfl_sync(~0u, seen[j / 4], 8 * (j % 4) + lane_ % 4 * 2 + e) >> lane_ / 4;
        if ((keys & 1) == 0) s[4 * j + e] = 0;
        if ((keys & 0x100) == 0) s[4 * j + 2 + e] = 0;
      }
    }
  }

 private:
  const ForwardSm80& forward_;
  const int first_key_, lane_;
};

/** Begins c = own rows^T: 64 keys or values, the first at `own`, times the streamed ones. */
template <class S>
__device__ void multiply_own(float (&c)[S::kRows / 2], uint32_t own, uint32_t rows) {
  sm90::begin_product<typename S::T, S::kDepthSteps, S::kKeyPage, S::kRowPage>(c, own, rows);
}

/** gradient += weights rows, the streamed ones; not committed. */
template <class S>
__device__ void add_rows(float (&gradient)[S::kHeadDim / 2], const uint32_t (&weights)[S::kRows / 4],
                         uint32_t rows) {
  sm90::add_product<typename S::T, S::kRowPage>(gradient, weights, rows);
}

}  // namespace longseq
