// Flash attention backward for compute capability 9.0 (wgmma, TMA).
//
// A block keeps 128 keys and values of one head in shared memory and streams the queries that see them, kRows
// at a time, for each query head of the group. Its first warpgroup copies; the two others compute, each with
// 64 of the keys. Everything is transposed, a row a key, so that weights and their gradients are the left
// operands of the next products as they stand in registers:
//
//   S^T = k q^T      P^T = exp2(c S^T - lse)           dv += P^T dout
//   dP^T = v dout^T  dS^T = P^T * (dP^T - delta)       dk += dS^T q       dq += dS k
//
// dS goes through shared memory to both warpgroups, which share the product for dq: a half of its columns
// each, or of its rows, or every other tile. dq is summed in float32 in global memory, since many blocks add
// to a query.
//
// As float16, P is in units of 2^-12: a weight of one in a million keys would have four bits left.
#include <type_traits>

#include "attention/attention_sm90.h"
#include "attention/block_order.h"
#include "attention/gradient_rows_sm90.h"
#include "attention/key_blocks.h"
#include "attention/query_tiles.h"
#include "attention/visit_kernel.h"
#include "core/cuda.h"
#include "tile/sm90.h"
#include "tile/sum.h"

namespace longseq {
namespace {

using namespace sm90;
using sm80::exp2_approximate;
using sm80::pack;
using sm80::shared_address;
using sm80::tanh_accurate;

template <class Element, int kHeadDim_, int kRows_, bool kMakesQueryGradient_>
struct Shape {
  using T = Element;
  static constexpr bool kIsHalf = std::is_same_v<T, sm80::Half>;
  static constexpr float kWeightBits = kIsHalf ? 12 : 0, kWeightUnit = kIsHalf ? 1.f / 4096 : 1;
  static constexpr int kHeadDim = kHeadDim_, kRows = kRows_, kKeys = 128, kStages = 2;
  static constexpr bool kMakesQueryGradient = kMakesQueryGradient_;
  static constexpr int kConsumers = 2, kThreads = 128 * (kConsumers + 1);
  static constexpr int kPages = (kHeadDim + 63) / 64, kDepthSteps = kHeadDim / 16;
  static constexpr int kKeyPage = kKeys * 128, kRowPage = kRows * 128;
  static constexpr int kKeyBytes = kPages * kKeyPage, kRowBytes = kPages * kRowPage;
  static constexpr int kScoreBytes = kConsumers * kRowPage, kStatisticBytes = kRows * 8;
  // k, v, then for each stage: q, dout, dS, statistics, dq, and what tile it is.
  static constexpr int kValuesAt = kKeyBytes, kQueriesAt = kValuesAt + kKeyBytes,
                       kGradientsAt = kQueriesAt + kStages * kRowBytes,
                       kScoresAt = kGradientsAt + kStages * kRowBytes,
                       kStatisticsAt = kScoresAt + kStages * kScoreBytes,
                       kSumsAt = kStatisticsAt + kStages * kStatisticBytes,
                       kTilesAt = kSumsAt + (kMakesQueryGradient ? kStages * kRows * kHeadDim * 4 : 0),
                       kBarriersAt = kTilesAt + 64;
  static constexpr int kSharedBytes = kBarriersAt + 128;
  static_assert(kSharedBytes <= 227 << 10);
  // A warpgroup's share of dq: 64 of the rows, or half of the columns, or every other tile's.
  static constexpr bool kSharesRows = kRows == 128, kAlternates = !kSharesRows && kHeadDim % 128 != 0;
  static constexpr int kQueryColumns = kSharesRows || kAlternates ? kHeadDim : kHeadDim / 2;
};

/** What a stage holds. */
struct StagedTile {
  int first;  // query; -1: there are no more
  int head;   // of the query
  int tile;   // of the mask, or -1
  int row;    // its first, among all heads' padded queries: fewer than 2^31, or dq_sum would fill any memory
  bool sees_all;  // each of its queries all of the block's keys
};

/** A block's barriers, behind its tiles in shared memory. */
template <class S>
class Channels : public Barriers {
 public:
  __device__ explicit Channels(uint32_t base) : Barriers(base + S::kBarriersAt) {}
  __device__ Barrier keys_full() const { return at(0); }
  __device__ Barrier queries_full(int stage) const { return at(1, stage); }
  __device__ Barrier queries_empty(int stage) const { return at(3, stage); }
  __device__ Barrier gradients_full(int stage) const { return at(5, stage); }
  __device__ Barrier gradients_empty(int stage) const { return at(7, stage); }

  __device__ void init() const {
    constexpr int kWarps = 4 * S::kConsumers;
    keys_full().init(1);
    for (int stage = 0; stage < S::kStages; stage++) {
      queries_full(stage).init(1);
      queries_empty(stage).init(kWarps);
      gradients_full(stage).init(1);
      gradients_empty(stage).init(kWarps);
    }
    publish_barriers();
  }
};

/** 128 keys of a head. */
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

/** Copies keys, values, queries, their gradients and statistics to shared memory; one warp. */
template <class S, bool kHasMask>
__device__ void produce(const BackwardSm90& launch, uint32_t base) {
  const BackwardSm80& op = launch.op;
  const ForwardSm80& forward = op.forward;
  const KeyTile<S> keys(launch);
  const Channels<S> channels(base);
  const int last_key = min(keys.first_key + S::kKeys, forward.keys) - 1;
  const int2 seeing =
      make_int2(first_query_by_warp(forward, [&](int2 seen) { return seen.y > keys.first_key; }),
                first_query_by_warp(forward, [&](int2 seen) { return seen.x > last_key; }));
  if (threadIdx.x != 0) return;
  const auto load_pages = [&](const CUtensorMap& map, const Barrier& full, uint32_t to, int page_bytes,
                              int row, int head) {
#pragma unroll
    for (int page = 0; page < S::kPages; page++) {
      copy_box(to + page * page_bytes, map, full, 64 * page, row, head, keys.batch);
    }
  };
  channels.keys_full().arrive_expecting(2 * S::kKeyBytes);
  load_pages(launch.k, channels.keys_full(), base, S::kKeyPage, keys.first_key, keys.key_head);
  load_pages(launch.v, channels.keys_full(), base + S::kValuesAt, S::kKeyPage, keys.first_key, keys.key_head);

  auto* const staged = reinterpret_cast<StagedTile*>(aligned_memory() + S::kTilesAt);
  RowTiles<S::kRows, kHasMask> tiles(op, keys.first_key, seeing, keys.key_head * forward.group);
  Ring<S::kStages> stages;
  for (RowTile rows = tiles.next();; rows = tiles.next(), stages.advance()) {
    const int stage = stages.stage;
    channels.queries_empty(stage).wait(stages.parity ^ 1);
    if (rows.first < 0) {
      staged[stage].first = -1;
      channels.queries_full(stage).arrive();
      break;
    }
    const int last = min(rows.first + S::kRows, forward.queries) - 1;
    const bool sees_all =
        visible_keys(forward.visible, last, forward.keys).x <= keys.first_key &&
        visible_keys(forward.visible, rows.first, forward.keys).y >= keys.first_key + S::kKeys;
    const int row =
        static_cast<int>((int64_t{keys.batch} * forward.heads + rows.head) * op.padded_queries) + rows.first;
    staged[stage] = {rows.first, rows.head, rows.tile, row, sees_all && rows.tile < 0};
    const Barrier queries_full = channels.queries_full(stage),
                  gradients_full = channels.gradients_full(stage);
    queries_full.arrive_expecting(S::kRowBytes + S::kStatisticBytes);
    load_pages(launch.q, queries_full, base + S::kQueriesAt + stage * S::kRowBytes, S::kRowPage, rows.first,
               rows.head);
    copy_bytes(base + S::kStatisticsAt + stage * S::kStatisticBytes, op.statistics + row, S::kStatisticBytes,
               queries_full);
    channels.gradients_empty(stage).wait(stages.parity ^ 1);
    gradients_full.arrive_expecting(S::kRowBytes);
    load_pages(launch.dout, gradients_full, base + S::kGradientsAt + stage * S::kRowBytes, S::kRowPage,
               rows.first, rows.head);
  }
}

/** A warpgroup that computes: 64 of the block's keys. */
template <class S, bool kHasMask>
class Consumer {
  using T = typename S::T;
  using Scores = float[S::kRows / 2];
  using Weights = uint32_t[S::kRows / 4];
  using Gradient = float[S::kHeadDim / 2];
  /** Which of the warp's 16 keys queries see, a bit a key: in lane i query i and those 32 apart. */
  using Seen = uint32_t[S::kRows / 32];

 public:
  __device__ Consumer(const BackwardSm90& launch, int group)
      : launch_(launch),
        op_(launch.op),
        base_(shared_address(aligned_memory())),
        channels_(base_),
        first_key_(KeyTile<S>(launch).first_key),
        group_(group),
        warp_(static_cast<int>(threadIdx.x) / 32 % 4),
        lane_(static_cast<int>(threadIdx.x) % 32) {}

  __device__ void run() {
    Gradient dk, dv;
#pragma unroll
    for (int i = 0; i < S::kHeadDim / 2; i++) dk[i] = dv[i] = 0;
    const bool adjusts = op_.forward.score.has_softcap || op_.forward.score.slopes != nullptr;
    channels_.keys_full().wait(0);
    for (Ring<S::kStages> stages;; stages.advance()) {
      const int stage = stages.stage;
      channels_.queries_full(stage).wait(stages.parity);
      const StagedTile rows = staged(stage);
      if (rows.first < 0) break;
      // Before the products, beside which documents and masks arrive.
      Seen seen;
      if (!rows.sees_all) find_seen(seen, rows);
      Scores s, dp;
      multiply_own(s, base_, base_ + S::kQueriesAt + stage * S::kRowBytes);
      channels_.gradients_full(stage).wait(stages.parity);
      multiply_own(dp, base_ + S::kValuesAt, base_ + S::kGradientsAt + stage * S::kRowBytes);
      wait_products<1>();
      pin(s);
      if (!adjusts) {
        weigh(s, stage);
      } else {
        wait_products<0>();
        pin(dp);
        adjust(s, dp, rows, stage);
      }
      if (!rows.sees_all) hide(s, seen);
      wait_products<0>();
      pin(dp);
      Weights p, ds;
      differentiate(s, dp, p, ds, stage);
      if constexpr (!S::kMakesQueryGradient) {
        add(dv, p, base_ + S::kGradientsAt + stage * S::kRowBytes);
        add(dk, ds, base_ + S::kQueriesAt + stage * S::kRowBytes);
        wait_products<1>();
        pin(dv);
        release(channels_.gradients_empty(stage));
        wait_products<0>();
        pin(dk);
        release(channels_.queries_empty(stage));
        continue;
      }
      pass(ds, stage);
      add(dv, p, base_ + S::kGradientsAt + stage * S::kRowBytes);
      publish_writes();
      sm80::named_barrier(1, 128 * S::kConsumers);
      float dq[S::kQueryColumns / 2];
      const bool makes_dq = !S::kAlternates || group_ == stage;
      if (makes_dq) multiply_scores(dq, stage);
      commit_products();
      wait_products<1>();
      pin(dv);
      release(channels_.gradients_empty(stage));
      add(dk, ds, base_ + S::kQueriesAt + stage * S::kRowBytes);
      wait_products<1>();
      if (makes_dq) {
        pin(dq);
        add_query_gradients(dq, rows.row, stage);
      }
      wait_products<0>();
      pin(dk);
      release(channels_.queries_empty(stage));
    }
    if (lane_ == 0) finish_reductions();
    write(dv, op_.dv, S::kWeightUnit, op_.dv_float32, op_.adds_to_dv);
    write(dk, op_.dk, op_.scale, op_.dk_float32, op_.adds_to_dk);
  }

 private:
  __device__ const StagedTile& staged(int stage) const {
    return reinterpret_cast<const StagedTile*>(aligned_memory() + S::kTilesAt)[stage];
  }
  /** Log-sum-exp and delta of queries 8 j + 2 (lane % 4) and the next, at 4 j. */
  __device__ const float4* statistics(int stage) const {
    return reinterpret_cast<const float4*>(aligned_memory() + S::kStatisticsAt + stage * S::kStatisticBytes) +
           lane_ % 4;
  }
  /** A warp is done with what the barrier stands for. */
  __device__ void release(const Barrier& barrier) const {
    if (lane_ == 0) barrier.arrive();
  }
  /** The key of this lane's elements 4 j and 4 j + 1; that of 4 j + 2 and 4 j + 3 is 8 further. */
  __device__ int first_key() const { return first_key_ + 64 * group_ + 16 * warp_ + lane_ / 4; }

  /** c = own rows^T: this warpgroup's keys or values, times the streamed ones. */
  __device__ void multiply_own(Scores& c, uint32_t own, uint32_t rows) const {
    const uint64_t left = depth_operand(own + group_ * 64 * 128), right = depth_operand(rows);
    begin_products();
#pragma unroll
    for (int d = 0; d < S::kDepthSteps; d++) {
      const int of_left = d / 4 * S::kKeyPage + d % 4 * 32, of_right = d / 4 * S::kRowPage + d % 4 * 32;
      if (d == 0) {
        Product<T, S::kRows>::begin(c, further(left, of_left), further(right, of_right));
      } else {
        Product<T, S::kRows>::add(c, further(left, of_left), further(right, of_right));
      }
    }
    commit_products();
  }

  /** gradient += weights rows, the streamed ones. */
  __device__ static void add(Gradient& gradient, const Weights& weights, uint32_t rows) {
    const uint64_t right = row_operand(rows, S::kRowPage);
    begin_products();
#pragma unroll
    for (int step = 0; step < S::kRows / 16; step++) {
      Product<T, S::kHeadDim>::add(gradient, weights + 4 * step, further(right, 2048 * step));
    }
    commit_products();
  }

  /** The first of the columns of dq that are this warpgroup's. */
  __device__ int first_column() const { return S::kSharesRows || S::kAlternates ? 0 : 64 * group_; }

  /** dq = dS k, this warpgroup's share. */
  __device__ void multiply_scores(float (&dq)[S::kQueryColumns / 2], int stage) const {
    const int row = S::kSharesRows ? 64 * group_ : 0, page = first_column() / 64;
    const uint64_t left = depth_operand(base_ + S::kScoresAt + stage * S::kScoreBytes + row * 128);
    const uint64_t right = row_operand(base_ + page * S::kKeyPage, S::kKeyPage);
    begin_products();
#pragma unroll
    for (int step = 0; step < S::kKeys / 16; step++) {
      const uint64_t a = further(left, step / 4 * S::kRowPage + step % 4 * 32),
                     b = further(right, 2048 * step);
      if (step == 0) {
        Product<T, S::kQueryColumns>::template begin<true>(dq, a, b);
      } else {
        Product<T, S::kQueryColumns>::template add<true>(dq, a, b);
      }
    }
  }

  /** s = P^T. */
  __device__ void weigh(Scores& s, int stage) const {
    const float exponent = op_.forward.score.exponent;
#pragma unroll
    for (int j = 0; j < S::kRows / 8; j++) {
      const float4 two = statistics(stage)[4 * j];
      const float base[2] = {S::kWeightBits - two.x, S::kWeightBits - two.z};
#pragma unroll
      for (int e = 0; e < 4; e++) s[4 * j + e] = exp2_approximate(fmaf(s[4 * j + e], exponent, base[e % 2]));
    }
  }

  /** The same with softcap and ALiBi; the softcap's derivative goes to dP. */
  __device__ void adjust(Scores& s, Scores& dp, const StagedTile& rows, int stage) const {
    const ForwardSm80& forward = op_.forward;
    const GpuScore& score = forward.score;
    const float slope = score.slopes == nullptr ? 0 : score.slopes[rows.head] * score.slope_unit;
#pragma unroll
    for (int j = 0; j < S::kRows / 8; j++) {
      const float4 two = statistics(stage)[4 * j];
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const int query = min(rows.first + 8 * j + lane_ % 4 * 2 + e, forward.queries - 1);
        const int position = slope == 0 ? 0 : query_position(score, forward.visible, query);
        const float base = S::kWeightBits - (e == 0 ? two.x : two.z), delta = e == 0 ? two.y : two.w;
#pragma unroll
        for (int half = 0; half < 2; half++) {
          float &x = s[4 * j + 2 * half + e], &gradient = dp[4 * j + 2 * half + e];
          if (score.has_softcap) {
            x = tanh_accurate(x * score.before_cap);
            gradient = fmaf(gradient - delta, 1 - x * x, delta);
          }
          if (slope != 0) {
            const int key = min(first_key() + 8 * half, forward.keys - 1);
            x -= slope * static_cast<float>(abs(position - key_position(score, key)));
          }
          x = exp2_approximate(fmaf(x, score.exponent, base));
        }
      }
    }
  }

  __device__ void find_seen(Seen& seen, const StagedTile& rows) const {
    const ForwardSm80& forward = op_.forward;
    const int first_key = first_key_ + 64 * group_ + 16 * warp_;
#pragma unroll
    for (int i = 0; i < S::kRows / 32; i++) {
      const int query = min(rows.first + 32 * i + lane_, forward.queries - 1);
      const int2 keys = visible_keys(forward.visible, query, forward.keys);
      const int begin = min(max(keys.x - first_key, 0), 16), end = min(max(keys.y - first_key, begin), 16);
      seen[i] = (1u << end) - (1u << begin);
      if (kHasMask) seen[i] &= mask_bits(forward.mask, rows.tile, query, first_key);
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

  /** p = P^T and ds = P^T * (dP^T - delta), rounded. */
  __device__ void differentiate(const Scores& s, const Scores& dp, Weights& p, Weights& ds, int stage) const {
#pragma unroll
    for (int j = 0; j < S::kRows / 8; j++) {
      const float4 two = statistics(stage)[4 * j];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int i = 4 * j + 2 * half;
        p[2 * j + half] = pack<T>(s[i], s[i + 1]);
        ds[2 * j + half] =
            pack<T>(s[i] * S::kWeightUnit * (dp[i] - two.y), s[i + 1] * S::kWeightUnit * (dp[i + 1] - two.w));
      }
    }
  }

  /** dS to shared memory, a row a query. */
  __device__ void pass(const Weights& ds, int stage) const {
    const uint32_t page = base_ + S::kScoresAt + stage * S::kScoreBytes + group_ * S::kRowPage;
    const int query = lane_ % 8 + lane_ / 16 * 8, chunk = 2 * warp_ + lane_ / 8 % 2;
    const uint32_t to = page + query * 128 + (chunk ^ query % 8) * 16;
#pragma unroll
    for (int step = 0; step < S::kRows / 16; step++)
      store_matrices_transposed(to + 2048 * step, ds + 4 * step);
  }

  /** dq += this warp's share of what multiply_scores gave, 16 rows, in the order of tile/sum.h. */
  __device__ void add_query_gradients(const float (&dq)[S::kQueryColumns / 2], int first_row,
                                      int stage) const {
    const int row = (S::kSharesRows ? 64 * group_ : 0) + 16 * warp_;
    constexpr int kBytes = 16 * S::kQueryColumns * 4;
    const int place = S::kAlternates ? 4 * group_ + warp_ : 8 * stage + 4 * group_ + warp_;
    char* const mine = aligned_memory() + S::kSumsAt + place * kBytes;
    if (lane_ == 0) wait_reductions<S::kAlternates ? 0 : S::kStages - 1>();
    __syncwarp();
#pragma unroll
    for (int j = 0; j < S::kQueryColumns / 8; j++) {
      reinterpret_cast<float4*>(mine)[32 * j + lane_] =
          make_float4(dq[4 * j], dq[4 * j + 1], dq[4 * j + 2], dq[4 * j + 3]);
    }
    publish_writes();
    __syncwarp();
    if (lane_ != 0) return;
    reduce_bytes(op_.dq_sum + sum_offset(int64_t{first_row} + row, first_column(), S::kHeadDim),
                 shared_address(mine), kBytes);
  }

  __device__ void write(const Gradient& gradient, const GpuRows& to, float factor, bool is_float32,
                        bool adds) const {
    const KeyTile<S> keys(launch_);
    write_gradient<T>(gradient, to, keys.batch, keys.key_head, first_key(), op_.forward.keys,
                      op_.forward.head_dim, factor, is_float32, adds);
  }

  const BackwardSm90& launch_;
  const BackwardSm80& op_;
  const uint32_t base_;
  const Channels<S> channels_;
  const int first_key_, group_, warp_, lane_;
};

template <class S, bool kHasMask>
__global__ void __launch_bounds__(S::kThreads, 1)
    backward_kernel(const __grid_constant__ BackwardSm90 launch) {
  const uint32_t base = shared_address(aligned_memory());
  if (threadIdx.x == 0) Channels<S>(base).init();
  __syncthreads();
  const int group = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0);
  if (group == 0) {
    give_registers<24>();
    if (threadIdx.x < 32) produce<S, kHasMask>(launch, base);
  } else {
    take_registers<240>();
    Consumer<S, kHasMask>(launch, group - 1).run();
  }
}

template <class S, bool kHasMask>
void launch_shape(const Cuda& cuda, const BackwardSm80& op) {
  const ForwardSm80& forward = op.forward;
  const auto rows = [&](const GpuRows& of, int64_t count, int64_t heads, int box) {
    return tensor_map(S::kIsHalf ? DType::Float16 : DType::BFloat16, of,
                      {forward.head_dim, count, heads, forward.batch}, box);
  };
  const BlockOrder order = order_key_tiles(cuda, op, S::kKeys, 1);
  const int key_heads = forward.heads / forward.group;
  const BackwardSm90 launch{rows(forward.q, forward.queries, forward.heads, S::kRows),
                            rows(forward.k, forward.keys, key_heads, S::kKeys),
                            rows(forward.v, forward.keys, key_heads, S::kKeys),
                            rows(op.dout, forward.queries, forward.heads, S::kRows),
                            op,
                            order};
  longseq::launch<backward_kernel<S, kHasMask>>(cuda, order.grid(), S::kThreads, S::kSharedBytes, launch);
}

template <class T, bool kHasMask, bool kMakesQueryGradient>
void launch_typed(const Cuda& cuda, const BackwardSm80& op) {
  if (op.forward.head_dim <= 64) {
    launch_shape<Shape<T, 64, 128, kMakesQueryGradient>, kHasMask>(cuda, op);
  } else if (op.forward.head_dim <= 96) {
    launch_shape<Shape<T, 96, 64, kMakesQueryGradient>, kHasMask>(cuda, op);
  } else {
    launch_shape<Shape<T, 128, 64, kMakesQueryGradient>, kHasMask>(cuda, op);
  }
}

}  // namespace

int backward_columns_sm90(int head_dim) { return head_dim <= 64 ? 64 : head_dim <= 96 ? 96 : 128; }

void launch_backward_sm90(const Cuda& cuda, DType dtype, const BackwardSm80& op) {
  visit_kernel(dtype, op.forward.mask, [&]<class T, bool kHasMask>() {
    if (op.dq_sum != nullptr) {
      launch_typed<T, kHasMask, true>(cuda, op);
    } else {
      launch_typed<T, kHasMask, false>(cuda, op);
    }
  });
}

}  // namespace longseq
