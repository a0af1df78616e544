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
// dS goes through shared memory to both warpgroups, which share the product for dq, a tile later: a half of
// its columns each, or of its rows, or every other tile. dq is summed in float32 in global memory, since many
// blocks add to a query; warps that do not compute turn complete sums into dq.
//
// May spill registers: some of those that copying leaves to warps that nobody waits for.
#include "attention/attention_sm90.h"
#include "attention/key_stream_sm90.h"
#include "attention/meanwhile_sm90.h"
#include "attention/visit_kernel.h"
#include "core/cuda.h"
#include "tile/sm90.h"
#include "tile/sum.h"

namespace longseq {
namespace {

using namespace sm90;
using sm80::named_barrier;
using sm80::pack;
using sm80::shared_address;

constexpr int kKeys = 128;  // of a block

/** How dq gets to its sums in global memory, if it does: added by threads as it stands in registers, or
 * through shared memory by copies that add. */
enum class Sums { None, ByThreads, ByCopies };

template <class Element, int kHeadDim_, int kRows_, Sums kSums_>
struct Shape {
  using T = Element;
  static constexpr int kHeadDim = kHeadDim_, kRows = kRows_, kKeys = longseq::kKeys, kStages = 2;
  static constexpr Sums kSums = kSums_;
  static constexpr bool kMakesQueryGradient = kSums != Sums::None;
  static constexpr int kConsumers = 2, kOtherReaders = kSums == Sums::ByThreads ? 1 : 0;
  static constexpr int kThreads = 128 * (kConsumers + 1);
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
                       kTilesAt = kSumsAt + (kSums == Sums::ByCopies ? kStages * kRows * kHeadDim * 4 : 0),
                       kBarriersAt = kTilesAt + 64, kScratchAt = kBarriersAt + 256;
  // Where dq leaves through shared memory at D 128, there is no room left.
  static constexpr int kScratchBytes = kMakesQueryGradient && (kSums == Sums::ByThreads || kHeadDim < 128)
                                           ? kMeanwhileWarps * RowScratch<kHeadDim>::kBytes
                                           : 0;
  static constexpr int kSharedBytes = kScratchAt + kScratchBytes;
  static_assert(kSharedBytes <= 227 << 10);
  // A warpgroup's share of dq: 64 of the rows, or half of the columns, or every other tile's.
  static constexpr bool kSharesRows = kRows == 128, kAlternates = !kSharesRows && kHeadDim % 128 != 0;
  // Its product is begun a tile later, so that the warpgroups need not keep step: beside that tile's
  // exponentials where there are registers for it.
  static constexpr bool kBeginsEarly = kMakesQueryGradient && kAlternates;
  // Whether a warpgroup leaves out tiles that see none of its keys: another place for dq's product, for which
  // those with one beside the exponentials have no registers.
  static constexpr bool kSkips = !kBeginsEarly;
  static constexpr int kQueryColumns = kSharesRows || kAlternates ? kHeadDim : kHeadDim / 2;
};

template <class S>
class Channels : public KeyChannels<S> {
 public:
  using KeyChannels<S>::KeyChannels;
  __device__ Barrier scores_written(int stage) const { return this->at(KeyChannels<S>::kCount, stage); }
  __device__ Barrier scores_full(int stage) const { return this->at(KeyChannels<S>::kCount + 2, stage); }
  __device__ Barrier scores_empty(int stage) const { return this->at(KeyChannels<S>::kCount + 4, stage); }
  __device__ Barrier sums_added() const { return this->at(KeyChannels<S>::kCount + 6); }
  static constexpr int kCount = KeyChannels<S>::kCount + 7;

  __device__ void init() const {
    static_assert(S::kBarriersAt + 8 * kCount <= S::kScratchAt);
    for (int stage = 0; stage < S::kStages; stage++) {
      scores_written(stage).init(4 * S::kConsumers);
      scores_full(stage).init(S::kSums == Sums::ByThreads ? 1 : 4 * S::kConsumers);
      scores_empty(stage).init(4 * S::kConsumers);
    }
    sums_added().init(4 * S::kConsumers);
    KeyChannels<S>::init();
  }
};

/** Of the stage of a turn: of how many turns before it is of the same parity. */
template <class S>
__device__ uint32_t parity_of(int turn) {
  return static_cast<uint32_t>(turn) / S::kStages % 2;
}

/** Publishes what the warpgroups that compute write of dS, one warp for all: by a fence, at which threads
 * wait for what they have added to global memory themselves. */
template <class S>
__device__ void publish_scores(uint32_t base) {
  const Channels<S> channels(base);
  for (int turn = 0;; turn++) {
    const int stage = turn & 1;
    channels.queries_full(stage).wait(parity_of<S>(turn));
    if (staged<S>(stage).first < 0) break;
    channels.scores_written(stage).wait(parity_of<S>(turn));
    publish_writes();
    __syncwarp();
    KeyChannels<S>::release(channels.scores_full(stage));
    KeyChannels<S>::release(channels.queries_empty(stage));
  }
}

/** Prepares and finishes rows of other heads until the block's last tile is on its way; the last warp then
 * tells when the block's sums are added. */
template <class S>
__device__ void work_meanwhile(const BackwardSm90& launch, uint32_t base, int index) {
  const BackwardSm80& op = launch.op;
  const Channels<S> channels(base);
  const Meanwhile<S> meanwhile(launch, index);
  if constexpr (S::kScratchBytes > 0) {
    if (op.prepares) meanwhile.prepare();
  }
  const auto ends = [&] { return channels.tiles_end().is_over(0); };
  while (!ends()) {
    meanwhile.finish(ends);
    __nanosleep(500);
  }
  if (threadIdx.x != 127) return;
  channels.sums_added().wait(0);
  const KeyTile<S> keys(launch);
  const int head = keys.batch * (op.forward.heads / op.forward.group) + keys.key_head;
  sm80::add_release(&op.progress[head].added, 1);
}

/** A warpgroup that computes: 64 of the block's keys. */
template <class S, bool kHasMask>
class Consumer {
  using T = typename S::T;
  using OfKeys = KeyScores<S, kHasMask>;
  using Scores = typename OfKeys::Scores;
  using Weights = uint32_t[S::kRows / 4];
  using Gradient = float[S::kHeadDim / 2];
  using QueryGradient = float[S::kQueryColumns / 2];

 public:
  __device__ Consumer(const BackwardSm90& launch, int group)
      : launch_(launch),
        op_(launch.op),
        base_(shared_address(aligned_memory())),
        channels_(base_),
        group_(group),
        warp_(static_cast<int>(threadIdx.x) / 32 % 4),
        lane_(static_cast<int>(threadIdx.x) % 32),
        of_keys_(op_, KeyTile<S>(launch).first_key + 64 * group_ + 16 * warp_) {}

  __device__ void run() {
    Gradient dk, dv;
#pragma unroll
    for (int i = 0; i < S::kHeadDim / 2; i++) dk[i] = dv[i] = 0;
    const uint32_t own = base_ + group_ * 64 * 128;
    channels_.keys_full().wait(0);
    int row_before = -1;  // of the tile before, whose dq is not made yet
    int turn = 0;
    for (;; turn++) {
      const int stage = turn & 1, before = stage ^ 1;
      channels_.queries_full(stage).wait(parity_of<S>(turn));
      const StagedTile& rows = staged<S>(stage);  // read anew each time: registers are few
      if (rows.first < 0) break;
      if (S::kSkips && rows.hides[group_]) {
        skip(turn, row_before);
        row_before = rows.row;
        release(channels_.queries_empty(stage));
        continue;
      }
      // Before the products, beside which documents and masks arrive.
      typename OfKeys::Seen seen;
      if (!rows.sees_all) of_keys_.find_seen(seen, rows);
      Scores s, dp;
      Weights p, ds;
      QueryGradient dq;
      multiply_own<S>(s, own, base_ + S::kQueriesAt + stage * S::kRowBytes);
      channels_.gradients_full(stage).wait(parity_of<S>(turn));
      multiply_own<S>(dp, own + S::kValuesAt, base_ + S::kGradientsAt + stage * S::kRowBytes);
      if constexpr (S::kBeginsEarly) begin_query_gradient(dq, turn);
      wait_products<S::kBeginsEarly ? 2 : 1>();
      pin(s);
      if (!of_keys_.has_rules()) {
        of_keys_.weigh(s, stage);
      } else {
        wait_products<0>();
        pin(dp);
        of_keys_.adjust(s, rows, stage, [&](int i, float derivative, float delta) {
          dp[i] = fmaf(dp[i] - delta, derivative, delta);
        });
      }
      if (!rows.sees_all) of_keys_.hide(s, seen);
      wait_products<S::kBeginsEarly ? 1 : 0>();
      pin(dp);
      differentiate(s, dp, p, ds, stage);
      if constexpr (S::kMakesQueryGradient) pass(ds, turn);
      if constexpr (S::kBeginsEarly) {
        wait_products<0>();
        pin(dq);
        if (turn > 0) release(channels_.scores_empty(before));
      }
      add_rows<S>(dv, p, base_ + S::kGradientsAt + stage * S::kRowBytes);
      commit_products();
      if constexpr (S::kMakesQueryGradient && !S::kBeginsEarly) {
        begin_query_gradient(dq, turn);
        wait_products<1>();
        pin(dv);
        release(channels_.gradients_empty(stage));
      }
      add_rows<S>(dk, ds, base_ + S::kQueriesAt + stage * S::kRowBytes);
      commit_products();
      if constexpr (S::kMakesQueryGradient && !S::kBeginsEarly) {
        wait_products<1>();
        pin(dq);
        if (turn > 0) release(channels_.scores_empty(before));
        add_query_gradient(dq, row_before, before);
      } else {
        if constexpr (S::kBeginsEarly) add_query_gradient(dq, row_before, before);
        wait_products<1>();
        pin(dv);
        release(channels_.gradients_empty(stage));
      }
      wait_products<0>();
      pin(dk);
      row_before = rows.row;
      release(channels_.queries_empty(stage));
    }
    if (op_.dv_float32) {
      write(dv, op_.dv, OfKeys::kWeightUnit, op_.adds_to_dv);
    } else {
      named_barrier(1 + group_, 128);  // the warpgroup's last product with its values is done
      send(dv, launch_.dv, OfKeys::kWeightUnit);
    }
    if constexpr (S::kMakesQueryGradient) {
      finish_query_gradient(turn, row_before);
      if (S::kSums == Sums::ByThreads) __syncwarp();
      if (lane_ == 0) {
        if (S::kSums == Sums::ByCopies) finish_reductions();
        channels_.sums_added().arrive();
      }
    }
    if (op_.dk_float32) {
      write(dk, op_.dk, op_.scale, op_.adds_to_dk);
    } else {
      if (lane_ == 0) wait_reductions<0>();
      __syncwarp();
      send(dk, launch_.dk, op_.scale);
    }
    if (lane_ == 0) wait_reductions<0>();
  }

 private:
  /** A warp is done with what the barrier stands for. */
  __device__ void release(const Barrier& barrier) const {
    if (lane_ == 0) barrier.arrive();
  }

  /** A tile whose queries see none of this warpgroup's keys. */
  __device__ void skip(int turn, int row_before) const {
    const int stage = turn & 1;
    if constexpr (S::kMakesQueryGradient) {
      finish_query_gradient(turn, row_before);
      if (turn > 0) release(channels_.scores_empty(stage ^ 1));
      pass(Weights{}, turn);
    }
    channels_.gradients_full(stage).wait(parity_of<S>(turn));
    release(channels_.gradients_empty(stage));
  }

  /** The first of the columns of dq that are this warpgroup's. */
  __device__ int first_column() const { return S::kSharesRows || S::kAlternates ? 0 : 64 * group_; }

  /** Whether this warpgroup has a share of a tile's dq. */
  __device__ bool makes(int stage) const { return !S::kAlternates || group_ == stage; }

  /** dq = dS k of the tile before, this warpgroup's share; of none, something that is not used. */
  __device__ void begin_query_gradient(QueryGradient& dq, int turn) const {
    const int before = ~turn & 1;
    if (turn > 0) channels_.scores_full(before).wait(parity_of<S>(turn - 1));
    if (makes(before)) multiply_scores(dq, before);
    commit_products();
  }

  /** The same, made and added. */
  __device__ void finish_query_gradient(int turn, int row_before) const {
    QueryGradient dq;
    begin_query_gradient(dq, turn);
    wait_products<0>();
    pin(dq);
    add_query_gradient(dq, row_before, ~turn & 1);
  }

  __device__ void multiply_scores(QueryGradient& dq, int stage) const {
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

  /** p = P^T and ds = P^T * (dP^T - delta), rounded. */
  __device__ void differentiate(const Scores& s, const Scores& dp, Weights& p, Weights& ds, int stage) const {
#pragma unroll
    for (int j = 0; j < S::kRows / 8; j++) {
      const float4 two = of_keys_.statistics(stage)[4 * j];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int i = 4 * j + 2 * half;
        p[2 * j + half] = pack<T>(s[i], s[i + 1]);
        ds[2 * j + half] = pack<T>(s[i] * OfKeys::kWeightUnit * (dp[i] - two.y),
                                   s[i + 1] * OfKeys::kWeightUnit * (dp[i + 1] - two.w));
      }
    }
  }

  /** dS to shared memory, a row a query, for both warpgroups' share of dq. */
  __device__ void pass(const Weights& ds, int turn) const {
    const int stage = turn & 1;
    const uint32_t page = base_ + S::kScoresAt + stage * S::kScoreBytes + group_ * S::kRowPage;
    const int query = lane_ % 8 + lane_ / 16 * 8, chunk = 2 * warp_ + lane_ / 8 % 2;
    const uint32_t to = page + query * 128 + (chunk ^ query % 8) * 16;
    channels_.scores_empty(stage).wait(parity_of<S>(turn) ^ 1);
#pragma unroll
    for (int step = 0; step < S::kRows / 16; step++)
      store_matrices_transposed(to + 2048 * step, ds + 4 * step);
    if (S::kSums == Sums::ByCopies) publish_writes();
    __syncwarp();
    release(S::kSums == Sums::ByCopies ? channels_.scores_full(stage) : channels_.scores_written(stage));
  }

  /** Adds this warp's 16 rows of what begin_query_gradient began, in the order of tile/sum.h. */
  __device__ void add_query_gradient(const QueryGradient& dq, int tile_row, int stage) const {
    if (tile_row < 0 || !makes(stage)) return;
    const int row = (S::kSharesRows ? 64 * group_ : 0) + 16 * warp_;
    const auto sums = [&] {
      return launch_.queries.sums[RowOfSource::source(tile_row)] +
             sum_offset(int64_t{RowOfSource::row(tile_row)} + row, first_column(), S::kHeadDim);
    };
    if constexpr (S::kSums == Sums::ByThreads) {
      float* const to = sums() + sum_lane_offset(lane_);
#pragma unroll
      for (int j = 0; j < S::kQueryColumns / 8; j++) {
        const float four[4] = {dq[4 * j], dq[4 * j + 1], dq[4 * j + 2], dq[4 * j + 3]};
        add_four(to + 128 * j, four);
      }
      return;
    }
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
    reduce_bytes(sums(), shared_address(mine), kBytes);
  }

  /** To rows of float32. */
  __device__ void write(const Gradient& gradient, const GpuRows& to, float factor, bool adds) const {
    const KeyTile<S> keys(launch_);
    write_gradient<T>(gradient, to, keys.batch, keys.key_head, of_keys_.key(), op_.forward.keys,
                      op_.forward.head_dim, factor, true, adds);
  }

  /** To rows of 16 bits, by way of the place of this warp's values, which nobody needs any more. */
  __device__ void send(const Gradient& gradient, const CUtensorMap& to, float factor) const {
    const int first_row = 64 * group_ + 16 * warp_, row = lane_ % 16;
    const uint32_t from = base_ + S::kValuesAt + first_row * 128;
#pragma unroll
    for (int j = 0; j < S::kHeadDim / 16; j++) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        words[i] = pack<T>(gradient[8 * j + 2 * i] * factor, gradient[8 * j + 2 * i + 1] * factor);
      }
      const int chunk = 2 * j % 8 + lane_ / 16;
      store_matrices(from + j / 4 * S::kKeyPage + row * 128 + (chunk ^ row % 8) * 16, words);
    }
    publish_writes();
    __syncwarp();
    if (lane_ != 0) return;
    const KeyTile<S> keys(launch_);
#pragma unroll
    for (int page = 0; page < S::kPages; page++) {
      store_box(to, from + page * S::kKeyPage, 64 * page, keys.first_key + first_row, keys.key_head,
                keys.batch);
    }
  }

  const BackwardSm90& launch_;
  const BackwardSm80& op_;
  const uint32_t base_;
  const Channels<S> channels_;
  const int group_, warp_, lane_;
  const OfKeys of_keys_;
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
    const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0);
    if (warp == 0) {
      produce<S, kHasMask>(launch, base);
    } else if (S::kSums == Sums::ByThreads && warp == 1) {
      publish_scores<S>(base);
    } else if constexpr (S::kMakesQueryGradient) {
      if (warp >= 2 && launch.op.progress != nullptr) work_meanwhile<S>(launch, base, warp - 2);
    }
  } else {
    take_registers<240>();
    Consumer<S, kHasMask>(launch, group - 1).run();
  }
}

template <class S, bool kHasMask>
void launch_shape(const Cuda& cuda, const BackwardSm80& op, const GpuQueryParts& queries) {
  static_assert(!S::kMakesQueryGradient || query_sum_columns(S::kHeadDim) == S::kHeadDim);
  BackwardSm90 launch = backward_launch<S>(op, order_key_tiles(cuda, op, S::kKeys, 1), queries);
  if (!op.dk_float32) launch.dk = key_map<typename S::T>(op.forward, op.dk, 16);
  if (!op.dv_float32) launch.dv = key_map<typename S::T>(op.forward, op.dv, 16);
  longseq::launch<backward_kernel<S, kHasMask>>(cuda, launch.order.grid(), S::kThreads, S::kSharedBytes,
                                                launch);
}

/** Whether dq goes through shared memory at D 128: what was faster where blocks keep step, which causal order
 * does not let them. */
bool keeps_step(const BackwardSm80& op) {
  return op.forward.mask.first_run == nullptr && op.forward.head_dim > 96 && sees_all(op.forward.visible);
}

template <class T, bool kHasMask>
void launch_typed(const Cuda& cuda, const BackwardSm80& op, const GpuQueryParts& queries) {
  const auto of_sums = [&]<Sums kAt64, Sums kAt96, Sums kAt128>() {
    if (op.forward.head_dim <= 64) {
      launch_shape<Shape<T, 64, 128, kAt64>, kHasMask>(cuda, op, queries);
    } else if (op.forward.head_dim <= 96) {
      launch_shape<Shape<T, 96, 64, kAt96>, kHasMask>(cuda, op, queries);
    } else {
      launch_shape<Shape<T, 128, 64, kAt128>, kHasMask>(cuda, op, queries);
    }
  };
  if (op.dq_sum == nullptr) return of_sums.template operator()<Sums::None, Sums::None, Sums::None>();
  if constexpr (!kHasMask) {
    if (keeps_step(op)) return launch_shape<Shape<T, 128, 64, Sums::ByCopies>, false>(cuda, op, queries);
  }
  of_sums.template operator()<Sums::ByThreads, Sums::ByCopies, Sums::ByThreads>();
}

}  // namespace

int heads_prepared_before_sm90(const Cuda& cuda, const BackwardSm80& op) {
  const ForwardSm80& forward = op.forward;
  const BlockOrder order = order_key_tiles(cuda, op, kKeys, 1);
  const int all = order.heads, first = order.prepared_before();
  // Enough blocks for what is to be prepared, each with enough to do beside it.
  constexpr int kLeastTiles = 16;
  const bool has_time = order.tiles >= kLeastTiles && forward.queries <= 4 * int64_t{forward.keys};
  return has_time && !keeps_step(op) ? first : all;
}

void launch_backward_sm90(const Cuda& cuda, DType dtype, const BackwardSm80& op,
                          const GpuQueryParts& queries) {
  visit_kernel(dtype, op.forward.mask,
               [&]<class T, bool kHasMask>() { launch_typed<T, kHasMask>(cuda, op, queries); });
}

}  // namespace longseq
