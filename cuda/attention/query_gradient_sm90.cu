// dq of flash attention for compute capability 9.0 (wgmma, TMA), by blocks of queries: the same bits each
// time, since nothing is added in global memory. It computes the scores again, which dk and dv need as well:
// seven products in all, not five.
//
// A block keeps 128 queries of one head and their gradients in shared memory; keys and values pass through,
// in blocks of kKeys. Its first warpgroup copies; the two others compute, each with 64 of the queries:
//
//   S = q k^T    P = exp2(c S - lse)    dP = dout v^T    dS = P * (dP - delta)    dq += dS k
//
// where dS is an operand as it stands in registers, and its product runs beside the next block's scores.
#include "attention/attention_sm90.h"
#include "attention/block_order.h"
#include "attention/gradients_sm90.h"
#include "attention/query_tile_sm90.h"
#include "attention/visit_kernel.h"
#include "core/cuda.h"
#include "tile/sm90.h"

namespace longseq {
namespace {

using namespace sm90;
using sm80::exp2_approximate;
using sm80::pack;
using sm80::shared_address;
using sm80::tanh_accurate;

template <class Element, int kHeadDim_, int kKeys_>
struct Shape {
  using T = Element;
  static constexpr int kHeadDim = kHeadDim_, kKeys = kKeys_, kRows = 128;
  static constexpr int kConsumers = 2, kThreads = 128 * (kConsumers + 1);
  static constexpr int kPages = (kHeadDim + 63) / 64, kDepthSteps = kHeadDim / 16;
  static constexpr int kQueryPage = kRows * 128, kKeyPage = kKeys * 128;
  static constexpr int kQueryBytes = kPages * kQueryPage, kTileBytes = kPages * kKeyPage;
  // A block's keys are needed until the next one's scores are under way, its values for its own alone; at D
  // 256 there is no room for more.
  static constexpr int kKeyStages = kHeadDim > 128 ? 2 : 3, kValueStages = kHeadDim > 128 ? 1 : 2;
  static constexpr int kGradientsAt = kQueryBytes, kKeysAt = 2 * kQueryBytes,
                       kValuesAt = kKeysAt + kKeyStages * kTileBytes,
                       kBarriersAt = kValuesAt + kValueStages * kTileBytes;
  static constexpr int kSharedBytes = kBarriersAt + 128;
  static_assert(kSharedBytes <= 227 << 10);
};

/** A block's barriers, behind its tiles in shared memory. */
template <class S>
class Channels : public Barriers {
 public:
  __device__ explicit Channels(uint32_t base) : Barriers(base + S::kBarriersAt) {}
  __device__ Barrier queries_full() const { return at(0); }
  __device__ Barrier keys_full(int stage) const { return at(1, stage); }
  __device__ Barrier keys_empty(int stage) const { return at(4, stage); }
  __device__ Barrier values_full(int stage) const { return at(7, stage); }
  __device__ Barrier values_empty(int stage) const { return at(9, stage); }

  __device__ void init() const {
    constexpr int kWarps = 4 * S::kConsumers;
    queries_full().init(1);
    for (int stage = 0; stage < S::kKeyStages; stage++) {
      keys_full(stage).init(1);
      keys_empty(stage).init(kWarps);
    }
    for (int stage = 0; stage < S::kValueStages; stage++) {
      values_full(stage).init(1);
      values_empty(stage).init(kWarps);
    }
    publish_barriers();
  }
};

template <class S, bool kHasMask>
using TileOf = QueryTile<S::kRows, S::kKeys, kHasMask>;

/** Copies queries, their gradients, keys and values to shared memory; one thread. */
template <class S, bool kHasMask>
__device__ void produce(const BackwardSm90& launch, uint32_t base) {
  const ForwardSm80& op = launch.op.forward;
  const Channels<S> channels(base);
  const TileOf<S, kHasMask> tile(op, launch.order, static_cast<int>(blockIdx.x));
  const int key_head = tile.head / op.group;
  const auto load_pages = [&](const CUtensorMap& map, const Barrier& full, uint32_t to, int page_bytes,
                              int row, int head) {
#pragma unroll
    for (int page = 0; page < S::kPages; page++) {
      copy_box(to + page * page_bytes, map, full, 64 * page, row, head, tile.batch);
    }
  };
  channels.queries_full().arrive_expecting(2 * S::kQueryBytes);
  load_pages(launch.queries.q[0], channels.queries_full(), base, S::kQueryPage, tile.first_query, tile.head);
  load_pages(launch.queries.dout[0], channels.queries_full(), base + S::kGradientsAt, S::kQueryPage,
             tile.first_query, tile.head);
  Ring<S::kKeyStages> keys;
  Ring<S::kValueStages> values;
  for (auto blocks = tile.blocks(op); blocks.current().first >= 0; blocks.advance()) {
    const int first = blocks.current().first;
    channels.keys_empty(keys.stage).wait(keys.parity ^ 1);
    channels.keys_full(keys.stage).arrive_expecting(S::kTileBytes);
    load_pages(launch.k, channels.keys_full(keys.stage), base + S::kKeysAt + keys.stage * S::kTileBytes,
               S::kKeyPage, first, key_head);
    channels.values_empty(values.stage).wait(values.parity ^ 1);
    channels.values_full(values.stage).arrive_expecting(S::kTileBytes);
    load_pages(launch.v, channels.values_full(values.stage),
               base + S::kValuesAt + values.stage * S::kTileBytes, S::kKeyPage, first, key_head);
    keys.advance();
    values.advance();
  }
}

/** A warpgroup that computes: 64 of the block's queries. */
template <class S, bool kHasMask>
class Consumer {
  using T = typename S::T;
  using Scores = float[S::kKeys / 2];
  using Weights = uint32_t[S::kKeys / 4];
  using Tile = TileOf<S, kHasMask>;

 public:
  __device__ Consumer(const BackwardSm90& launch, int group)
      : op_(launch.op),
        tile_(launch.op.forward, launch.order, static_cast<int>(blockIdx.x)),
        base_(shared_address(aligned_memory())),
        channels_(base_),
        row_(64 * group + static_cast<int>(threadIdx.x) / 32 % 4 * 16 +
             static_cast<int>(threadIdx.x) % 32 / 4),
        group_(group) {
    const ForwardSm80& forward = op_.forward;
    const float2* const of_row = op_.statistics +
                                 (int64_t{tile_.batch} * forward.heads + tile_.head) * op_.padded_queries +
                                 tile_.first_query + row_;
    statistics_[0] = of_row[0];
    statistics_[1] = of_row[8];
    has_rules_ = forward.score.has_softcap || forward.score.slopes != nullptr;
    plain_begin_ = has_rules_ ? INT32_MAX : max(tile_.interval(forward, 64 * group + 63).x, tile_.begin);
    plain_end_ = min(tile_.interval(forward, 64 * group).y, tile_.end) - S::kKeys;
  }

  __device__ void run() {
#pragma unroll
    for (int i = 0; i < S::kHeadDim / 2; i++) dq_[i] = 0;
    Scores s, dp;
    Weights ds;
    channels_.queries_full().wait(0);
    // Each product is in one place of the program: of arrays that are used in more, the compiler makes
    // memory.
    bool is_first = true;
    int before = 0;
    for (auto blocks = tile_.blocks(op_.forward);; blocks.advance()) {
      if (!is_first) add(ds, before);
      if (blocks.current().first < 0) break;
      score(s, dp);
      if (!is_first) {
        wait_products<2>();
        pin(dq_);
        release(channels_.keys_empty(before));
      }
      differentiate(s, dp, ds, blocks.current());
      is_first = false;
      before = keys_.stage;
      keys_.advance();
      values_.advance();
    }
    wait_products<0>();
    pin(dq_);
    write_gradient<T>(dq_, op_.dq, tile_.batch, tile_.head, tile_.first_query + row_, op_.forward.queries,
                      op_.forward.head_dim, op_.scale * op_.dq_sign, op_.dq_float32, op_.adds_to_dq);
  }

 private:
  /** A warp is done with what the barrier stands for. */
  __device__ static void release(const Barrier& barrier) {
    if (threadIdx.x % 32 == 0) barrier.arrive();
  }

  /** Begins c = own columns^T: this warpgroup's queries or gradients, times a block of keys or values. */
  __device__ void multiply_own(Scores& c, uint32_t own, uint32_t columns) const {
    begin_product<T, S::kDepthSteps, S::kQueryPage, S::kKeyPage>(c, own + group_ * 64 * 128, columns);
  }

  /** Begins s = q k^T and dp = dout v^T. */
  __device__ void score(Scores& s, Scores& dp) const {
    channels_.keys_full(keys_.stage).wait(keys_.parity);
    multiply_own(s, base_, base_ + S::kKeysAt + keys_.stage * S::kTileBytes);
    channels_.values_full(values_.stage).wait(values_.parity);
    multiply_own(dp, base_ + S::kGradientsAt, base_ + S::kValuesAt + values_.stage * S::kTileBytes);
  }

  /** dq += dS k. */
  __device__ void add(const Weights& ds, int stage) {
    add_product<T, S::kKeyPage>(dq_, ds, base_ + S::kKeysAt + stage * S::kTileBytes);
    commit_products();
  }

  /** ds = P * (dP - delta), rounded, of products that are under way. */
  __device__ void differentiate(Scores& s, Scores& dp, Weights& ds, const KeyBlock& block) const {
    wait_products<1>();
    pin(s);
    if (block.tile < 0 && block.first >= plain_begin_ && block.first <= plain_end_) {
      weigh(s);
    } else {
      wait_products<0>();
      pin(dp);
      if (has_rules_) {
        adjust(s, dp, block);
      } else {
        weigh(s);
      }
      hide(s, block);
    }
    wait_products<0>();
    pin(dp);
    release(channels_.values_empty(values_.stage));
#pragma unroll
    for (int i = 0; i < S::kKeys / 4; i++) {
      const float delta = statistics_[i % 2].y;
      ds[i] = pack<T>(s[2 * i] * (dp[2 * i] - delta), s[2 * i + 1] * (dp[2 * i + 1] - delta));
    }
  }

  /** s = P. */
  __device__ void weigh(Scores& s) const {
#pragma unroll
    for (int i = 0; i < S::kKeys / 2; i++) {
      s[i] = exp2_approximate(fmaf(s[i], op_.forward.score.exponent, -statistics_[i / 2 % 2].x));
    }
  }

  /** The same with softcap and ALiBi; the softcap's derivative goes to dP. */
  __device__ void adjust(Scores& s, Scores& dp, const KeyBlock& block) const {
    const ForwardSm80& forward = op_.forward;
    const GpuScore& score = forward.score;
    const float slope = score.slopes == nullptr ? 0 : score.slopes[tile_.head] * score.slope_unit;
    int positions[2] = {};
#pragma unroll
    for (int half = 0; half < 2 && slope != 0; half++) {
      positions[half] = query_position(score, forward.visible, tile_.query(forward, row_ + 8 * half));
    }
#pragma unroll
    for (int j = 0; j < S::kKeys / 8; j++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        float &x = s[4 * j + e], &gradient = dp[4 * j + e];
        const float delta = statistics_[e / 2].y;
        if (score.has_softcap) {
          x = tanh_accurate(x * score.before_cap);
          gradient = fmaf(gradient - delta, 1 - x * x, delta);
        }
        if (slope != 0) {
          const int key = min(block.first + 8 * j + column() + e % 2, forward.keys - 1);
          x -= slope * static_cast<float>(abs(positions[e / 2] - key_position(score, key)));
        }
        x = exp2_approximate(fmaf(x, score.exponent, -statistics_[e / 2].x));
      }
    }
  }

  /** 0 where a query does not see a key. */
  __device__ void hide(Scores& s, const KeyBlock& block) const {
    const SeenKeys<S::kKeys, kHasMask> sees[2] = {{op_.forward, tile_, block, row_, column()},
                                                  {op_.forward, tile_, block, row_ + 8, column()}};
#pragma unroll
    for (int j = 0; j < S::kKeys / 8; j++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        if (!sees[e / 2](8 * j + e % 2)) s[4 * j + e] = 0;
      }
    }
  }

  /** The column of this lane's first element in a tile of 8. */
  __device__ static int column() { return static_cast<int>(threadIdx.x) % 4 * 2; }

  const BackwardSm80& op_;
  const Tile tile_;
  const uint32_t base_;
  const Channels<S> channels_;
  const int row_, group_;  // row_: of elements 4 j and 4 j + 1; that of the next two is 8 further
  float2 statistics_[2];
  bool has_rules_;  // softcap or ALiBi
  int plain_begin_, plain_end_;
  Ring<S::kKeyStages> keys_;
  Ring<S::kValueStages> values_;
  float dq_[S::kHeadDim / 2];
};

template <class S, bool kHasMask>
__global__ void __launch_bounds__(S::kThreads, 1)
    query_gradient_kernel(const __grid_constant__ BackwardSm90 launch) {
  const uint32_t base = shared_address(aligned_memory());
  if (threadIdx.x == 0) Channels<S>(base).init();
  __syncthreads();
  const int group = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0);
  if (group == 0) {
    give_registers<24>();
    if (threadIdx.x == 0) produce<S, kHasMask>(launch, base);
  } else {
    take_registers<240>();
    Consumer<S, kHasMask>(launch, group - 1).run();
  }
}

template <class S, bool kHasMask>
void launch_shape(const Cuda& cuda, const BackwardSm80& op) {
  const BackwardSm90 launch = backward_launch<S>(
      op, order_query_tiles(cuda, op.forward, S::kRows, sizeof(typename S::T), 1), whole_queries(op));
  longseq::launch<query_gradient_kernel<S, kHasMask>>(cuda, launch.order.grid(), S::kThreads, S::kSharedBytes,
                                                      launch);
}

}  // namespace

void launch_query_gradient_sm90(const Cuda& cuda, DType dtype, const BackwardSm80& op) {
  visit_kernel(dtype, op.forward.mask, [&]<class T, bool kHasMask>() {
    if (op.forward.head_dim <= 64) {
      launch_shape<Shape<T, 64, 128>, kHasMask>(cuda, op);
    } else if (op.forward.head_dim <= 96) {
      launch_shape<Shape<T, 96, 128>, kHasMask>(cuda, op);
    } else if (op.forward.head_dim <= 128) {
      launch_shape<Shape<T, 128, 64>, kHasMask>(cuda, op);
    } else {
      launch_shape<Shape<T, 256, 64>, kHasMask>(cuda, op);
    }
  });
}

}  // namespace longseq
