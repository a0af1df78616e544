// Flash attention forward for compute capability 9.0 (wgmma, TMA).
//
// A block takes tiles of queries of one head, one after the other. Its first warpgroup copies: keys and
// values pass through shared memory in stages of kKeys. The others, mostly two, compute, each with 64 of the
// queries:
//
//   S = q k^T     P = exp2(c S - base)     l += rowsum P     out += P v
//
// where the weights of one stage are computed beside the product with the values of the stage before.
//
// base is not a running maximum: it is the maximum of the first keys that a row sees. Float32 has room for
// weights that are larger by 2^100 (P as float16: by 2^15), so no maximum is taken on the way, and nothing is
// rescaled until a row's sum outgrows the room.
//
// May spill registers: some twenty words at D 256, whose sums take half of them, and with three warpgroups;
// elsewhere some of the thread's that copies.
#include <algorithm>

#include "attention/attention_sm90.h"
#include "attention/block_order.h"
#include "attention/forward_result_sm90.h"
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

constexpr float kMinusInfinity = -INFINITY;

/** How far a row's base is over its first maximum, and how far over the base later scores may be, as powers
 * of 2. */
template <class T>
struct Room;
template <>
struct Room<sm80::Bf16> {
  static constexpr float margin = 0, most = 100;
};
template <>
struct Room<sm80::Half> {  // P must stay below 65,504
  static constexpr float margin = 6, most = 8;
};

/** Of two warpgroups that compute, or three with fewer registers each. */
template <class Element, int kHeadDim_, int kKeys_, int kConsumers_ = 2>
struct Shape {
  using T = Element;
  static constexpr int kHeadDim = kHeadDim_, kKeys = kKeys_, kStages = 2;
  static constexpr int kConsumers = kConsumers_, kRows = 64 * kConsumers, kThreads = 128 * (kConsumers + 1);
  static constexpr int kPages = (kHeadDim + 63) / 64, kDepthSteps = kHeadDim / 16;
  static constexpr int kQueryPage = kRows * 128, kKeyPage = kKeys * 128;
  static constexpr int kQueryBytes = kPages * kQueryPage, kTileBytes = kPages * kKeyPage;
  static constexpr int kKeysAt = kQueryBytes, kValuesAt = kKeysAt + kStages * kTileBytes;
  static constexpr int kStreamEnd = kValuesAt + kStages * kTileBytes;
  // Results go out through memory of their own, else in the queries' place.
  static constexpr bool kSharesQueries = kStreamEnd + kQueryBytes > 226 << 10;
  // Queries are let go with their last scores, so that the next tile's arrive meanwhile, if two warpgroups
  // compute: three have no register left to look ahead with.
  static constexpr bool kReleasesEarly = !kSharesQueries && kConsumers == 2;
  static constexpr int kOutAt = kSharesQueries ? 0 : kStreamEnd;
  static constexpr int kBarriersAt = kSharesQueries ? kStreamEnd : kStreamEnd + kQueryBytes;
  static constexpr int kTilesAt = kBarriersAt + 96;  // of the queries; of those that are next, beside it
  static constexpr int kSharedBytes = kBarriersAt + 256;
  static_assert(kSharedBytes <= 227 << 10);
  static constexpr int kProducerRegisters = kConsumers == 3 ? 32 : 24,
                       kConsumerRegisters = kConsumers == 3 ? 160 : 240;
};

/** A block's barriers, behind its tiles in shared memory. */
template <class S>
class Channels : public Barriers {
 public:
  __device__ explicit Channels(uint32_t base) : Barriers(base + S::kBarriersAt) {}
  __device__ Barrier queries_full() const { return at(0); }
  __device__ Barrier queries_empty() const { return at(1); }
  __device__ Barrier keys_full(int stage) const { return at(2, stage); }
  __device__ Barrier keys_empty(int stage) const { return at(4, stage); }
  __device__ Barrier values_full(int stage) const { return at(6, stage); }
  __device__ Barrier values_empty(int stage) const { return at(8, stage); }

  __device__ void init() const {
    constexpr int kWarps = 4 * S::kConsumers;
    queries_full().init(1);
    queries_empty().init(kWarps);
    for (int stage = 0; stage < S::kStages; stage++) {
      keys_full(stage).init(1);
      keys_empty(stage).init(kWarps);
      values_full(stage).init(1);
      values_empty(stage).init(kWarps);
    }
    publish_barriers();
  }
};

/** A tile as whoever copies leaves it for those that compute: what it is takes divisions, and loads. */
template <class S, bool kHasMask>
struct StagedTile : QueryTile<S::kRows, S::kKeys, kHasMask> {
  int2 seen_by_all[S::kConsumers];  // keys that all of a warpgroup's queries see

  __device__ StagedTile(const ForwardSm80& op, const BlockOrder& order, int index)
      : QueryTile<S::kRows, S::kKeys, kHasMask>(op, order, index) {
#pragma unroll
    for (int group = 0; group < S::kConsumers; group++) {
      seen_by_all[group] = make_int2(max(this->interval(op, 64 * group + 63).x, this->begin),
                                     min(this->interval(op, 64 * group).y, this->end));
    }
  }
};

template <class S, bool kHasMask>
__device__ StagedTile<S, kHasMask>* staged_tiles() {
  static_assert(2 * sizeof(StagedTile<S, kHasMask>) <= S::kSharedBytes - S::kTilesAt);
  return reinterpret_cast<StagedTile<S, kHasMask>*>(aligned_memory() + S::kTilesAt);
}

/** Copies queries, keys and values to shared memory; one thread. */
template <class S, bool kHasMask>
__device__ void produce(const ForwardSm90& launch, uint32_t base) {
  using Tile = StagedTile<S, kHasMask>;
  const ForwardSm80& op = launch.op;
  const Channels<S> channels(base);
  const int total = launch.order.tiles * launch.order.heads * op.splits;
  const int query_page = Tile::query_of(op, S::kRows) * op.packed * 128;  // as far as a box fills it
  Ring<1> queries;
  Ring<S::kStages> stages;
  const KeyMaps& keys = launch.keys;
  const PartTable& table = keys.table;
  static_assert(kPartRows % S::kKeys == 0);
  const auto load_pages = [&](const CUtensorMap& map, const Barrier& full, uint32_t to, int row, int head,
                              int batch) {
    full.arrive_expecting(S::kTileBytes);
#pragma unroll
    for (int page = 0; page < S::kPages; page++) {
      copy_box(to + page * S::kKeyPage, map, full, 64 * page, row, head, batch);
    }
  };
  int index = static_cast<int>(blockIdx.x);
  while (index < total) {
    const Tile tile(op, launch.order, index);
    const int key_head = tile.head / op.group;
    const int following =
        launch.counter == nullptr ? total : static_cast<int>(gridDim.x) + atomicAdd(launch.counter, 1);
    int part = table.count - 1;  // of the block: one comes before the other
    const auto load_keys = [&](int first) {
      while (table.begins[part] > first) part--;
      channels.keys_empty(stages.stage).wait(stages.parity ^ 1);
      load_pages(keys.k[table.sources[part]], channels.keys_full(stages.stage),
                 base + S::kKeysAt + stages.stage * S::kTileBytes, first + table.shifts[part], key_head,
                 tile.batch);
    };
    const auto load_values = [&](int first) {
      channels.values_empty(stages.stage).wait(stages.parity ^ 1);
      load_pages(keys.v[table.sources[part]], channels.values_full(stages.stage),
                 base + S::kValuesAt + stages.stage * S::kTileBytes, first + table.shifts[part], key_head,
                 tile.batch);
    };
    auto blocks = tile.blocks(op);
    const bool any = blocks.current().first >= 0;
    if (any) load_keys(blocks.current().first);
    channels.queries_empty().wait(queries.parity ^ 1);
    staged_tiles<S, kHasMask>()[queries.parity] = tile;
    channels.queries_full().arrive_expecting(S::kPages * query_page);
#pragma unroll
    for (int page = 0; page < S::kPages; page++) {
      const bool is_packed = op.packed > 1;  // then heads are the rows
      copy_box(base + page * S::kQueryPage, launch.q, channels.queries_full(), 64 * page,
               is_packed ? tile.head : tile.first_query, is_packed ? tile.first_query : tile.head,
               tile.batch);
    }
    queries.advance();
    if (any) {
      load_values(blocks.current().first);
      stages.advance();
      for (blocks.advance(); blocks.current().first >= 0; blocks.advance()) {
        load_keys(blocks.current().first);
        load_values(blocks.current().first);
        stages.advance();
      }
    }
    index = following;
  }
  channels.queries_empty().wait(queries.parity ^ 1);
  staged_tiles<S, kHasMask>()[queries.parity].first_query = -1;
  channels.queries_full().arrive();
}

/** Rows that no query comes to are zeros: what else lies there may be no number. */
template <class S>
__device__ void clear_queries(char* queries) {
  for (int i = static_cast<int>(threadIdx.x); i < S::kQueryBytes / 16; i += S::kThreads) {
    reinterpret_cast<uint4*>(queries)[i] = make_uint4(0, 0, 0, 0);
  }
  publish_writes();
}

/** A warpgroup that computes: 64 of a tile's queries. */
template <class S, bool kHasMask>
class Consumer : ForwardRows<S> {
  using T = typename S::T;
  using Scores = float[S::kKeys / 2];
  using Weights = uint32_t[S::kKeys / 4];
  using Tile = StagedTile<S, kHasMask>;
  using Rows = ForwardRows<S>;
  using Rows::base_, Rows::group_, Rows::has_base_, Rows::lane_, Rows::op_, Rows::out_, Rows::row_of,
      Rows::sum_;

 public:
  __device__ Consumer(const ForwardSm80& op, uint32_t base)
      : Rows(op), base_address_(base), channels_(base) {}

  __device__ void run() {
    for (Ring<1> queries;; queries.advance()) {
      channels_.queries_full().wait(queries.parity);
      const Tile& tile =
          staged_tiles<S, kHasMask>()[queries.parity];  // read anew each time: registers are few
      if (tile.first_query < 0) break;
      attend(tile);
      if (!S::kReleasesEarly && !S::kSharesQueries) release(channels_.queries_empty());
      this->write(tile);
      if (S::kSharesQueries) release(channels_.queries_empty());
    }
  }

 private:
  /** A warp is done with what the barrier stands for. */
  __device__ void release(const Barrier& barrier) const {
    if (lane_ == 0) barrier.arrive();
  }

  __device__ void score(Scores& s, int stage) const {
    begin_product<T, S::kDepthSteps, S::kQueryPage, S::kKeyPage>(
        s, base_address_ + group_ * 64 * 128, base_address_ + S::kKeysAt + stage * S::kTileBytes);
  }

  __device__ void accumulate(const Weights& p, int stage) {
    add_product<T, S::kKeyPage>(out_, p, base_address_ + S::kValuesAt + stage * S::kTileBytes);
    commit_products();
  }

  __device__ void attend(const Tile& tile) {
#pragma unroll
    for (float& x : out_) x = 0;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      sum_[half] = 0;
      base_[half] = 0;
      has_base_[half] = false;
    }
    const bool adjusts = op_.score.has_softcap || op_.score.slopes != nullptr;
    plain_begin_ = adjusts ? INT32_MAX : tile.seen_by_all[group_].x;
    plain_end_ = tile.seen_by_all[group_].y - S::kKeys;

    auto blocks = tile.blocks(op_);
    if (blocks.current().first < 0) {
      if (S::kReleasesEarly) release(channels_.queries_empty());
      return;
    }
    Scores s;
    Weights p;
    channels_.keys_full(stages_.stage).wait(stages_.parity);
    score(s, stages_.stage);
    wait_products<0>();
    pin(s);
    release_scored(blocks);
    weigh(s, tile, blocks.current());
    round(s, p);
    for (blocks.advance(); blocks.current().first >= 0; blocks.advance()) {
      const Ring<S::kStages> before = stages_;
      stages_.advance();
      channels_.keys_full(stages_.stage).wait(stages_.parity);
      score(s, stages_.stage);
      channels_.values_full(before.stage).wait(before.parity);
      accumulate(p, before.stage);
      wait_products<1>();
      pin(s);
      release_scored(blocks);
      weigh(s, tile, blocks.current());
      wait_products<0>();
      pin(out_);
      release(channels_.values_empty(before.stage));
      round(s, p);
    }
    channels_.values_full(stages_.stage).wait(stages_.parity);
    accumulate(p, stages_.stage);
    wait_products<0>();
    pin(out_);
    release(channels_.values_empty(stages_.stage));
    stages_.advance();
  }

  /** Scores are there: their keys are not needed any more, nor, of the last ones, are the queries. */
  template <class Blocks>
  __device__ void release_scored(const Blocks& blocks) const {
    release(channels_.keys_empty(stages_.stage));
    if (S::kReleasesEarly && blocks.next().first < 0) release(channels_.queries_empty());
  }

  /** s = exp2(c s - base), and l += rowsum s. */
  __device__ void weigh(Scores& s, const Tile& tile, const KeyBlock& block) {
    const bool is_plain = block.tile < 0 && block.first >= plain_begin_ && block.first <= plain_end_;
    if (!is_plain) adjust(s, tile, block);
    bool has_room = has_base_[0] && has_base_[1];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float most = s[2 * half];
#pragma unroll
      for (int i = half; i < S::kKeys / 4; i += 2) most = fmaxf(most, fmaxf(s[2 * i], s[2 * i + 1]));
      has_room &= fmaf(most, op_.score.exponent, -base_[half]) <= Room<T>::most;
    }
    if (!__all_sync(~0u, has_room)) raise_base(s);
    float sum[2][2] = {};
#pragma unroll
    for (int i = 0; i < S::kKeys / 2; i++) {
      s[i] = exp2_approximate(fmaf(s[i], op_.score.exponent, -base_[i / 2 % 2]));
      sum[i / 2 % 2][i % 2] += s[i];
    }
    sum_[0] += sum[0][0] + sum[0][1];
    sum_[1] += sum[1][0] + sum[1][1];
  }

  __device__ static void round(const Scores& s, Weights& p) {
#pragma unroll
    for (int i = 0; i < S::kKeys / 4; i++) p[i] = pack<T>(s[2 * i], s[2 * i + 1]);
  }

  /** A base for rows that have none yet, and a larger one for rows that outgrow theirs; what was summed
   * follows. */
  __device__ void raise_base(const Scores& s) {
    bool any = false;
    float raised[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float most = kMinusInfinity;
#pragma unroll
      for (int i = half; i < S::kKeys / 4; i += 2) most = fmaxf(most, fmaxf(s[2 * i], s[2 * i + 1]));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
      raised[half] = base_[half];
      if (most != kMinusInfinity) {
        const float wanted = fmaf(most, op_.score.exponent, Room<T>::margin);
        if (!has_base_[half] || wanted > base_[half] + Room<T>::margin) raised[half] = wanted;
        if (!has_base_[half]) base_[half] = wanted;
        has_base_[half] = true;
      }
      any |= raised[half] != base_[half];
    }
    if (!__any_sync(~0u, any)) return;
    wait_products<0>();
    pin(out_);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float factor = exp2_approximate(base_[half] - raised[half]);
      sum_[half] *= factor;
      base_[half] = raised[half];
#pragma unroll
      for (int i = half; i < S::kHeadDim / 4; i += 2) {
        out_[2 * i] *= factor;
        out_[2 * i + 1] *= factor;
      }
    }
    pin(out_);
  }

  /** Softcap, ALiBi, and -inf where a query does not see a key. */
  __device__ void adjust(Scores& s, const Tile& tile, const KeyBlock& block) const {
    const int column = 2 * (lane_ % 4);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int query = tile.query(op_, row_of(half));
      if (op_.score.has_softcap) {
#pragma unroll
        for (int i = half; i < S::kKeys / 4; i += 2) {
          s[2 * i] = tanh_accurate(s[2 * i] * op_.score.before_cap);
          s[2 * i + 1] = tanh_accurate(s[2 * i + 1] * op_.score.before_cap);
        }
      }
      if (op_.score.slopes != nullptr) {
        const float slope = op_.score.slopes[tile.head_of(op_, row_of(half))] * op_.score.slope_unit;
        const int position = query_position(op_.score, op_.visible, query);
#pragma unroll
        for (int j = 0; j < S::kKeys / 8; j++) {
#pragma unroll
          for (int e = 0; e < 2; e++) {
            const int at = key_position(op_.score, min(block.first + 8 * j + column + e, op_.keys - 1));
            s[4 * j + 2 * half + e] -= slope * static_cast<float>(abs(position - at));
          }
        }
      }
      const SeenKeys<S::kKeys, kHasMask> sees(op_, tile, block, row_of(half), column);
#pragma unroll
      for (int j = 0; j < S::kKeys / 8; j++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          if (!sees(8 * j + e)) s[4 * j + 2 * half + e] = kMinusInfinity;
        }
      }
    }
  }

  const uint32_t base_address_;
  const Channels<S> channels_;
  Ring<S::kStages> stages_;
  int plain_begin_, plain_end_;
};

template <class S, bool kHasMask>
__global__ void __launch_bounds__(S::kThreads, 1) forward_kernel(const __grid_constant__ ForwardSm90 launch) {
  char* const shared = aligned_memory();
  const uint32_t base = shared_address(shared);
  if (threadIdx.x == 0) Channels<S>(base).init();
  if (S::kRows % launch.op.packed != 0) clear_queries<S>(shared);
  __syncthreads();
  if (threadIdx.x < 128) {
    give_registers<S::kProducerRegisters>();
    if (threadIdx.x == 0) produce<S, kHasMask>(launch, base);
  } else {
    take_registers<S::kConsumerRegisters>();
    Consumer<S, kHasMask>(launch.op, base).run();
  }
}

template <class S, bool kHasMask>
void launch_shape(const Cuda& cuda, const ForwardSm80& op, const GpuKeyParts& keys) {
  using T = typename S::T;
  const int each = S::kRows / op.packed;
  // Where heads are packed they are the rows: those of a query lie side by side.
  const auto queries = [&] {
    if (op.packed == 1) return query_map<T>(op, op.q, each);
    const GpuRows heads{op.q.data, op.q.batch, op.q.head, op.q.row};
    return tensor_map(kDTypeOf<T>, heads, {op.head_dim, op.heads, op.queries, op.batch}, op.packed, each);
  };
  const BlockOrder order = order_query_tiles(cuda, op, each * op.packed, sizeof(typename S::T), 1);
  const int64_t tiles = int64_t{order.tiles} * order.heads * op.splits;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(tiles, cuda.gpu->multiprocessors));
  Memory counter;
  if (tiles > blocks) {
    counter = allocate(cuda, sizeof(int));
    cuda_check(cudaMemsetAsync(counter.data, 0, sizeof(int), cuda.stream.get()), "clearing");
  }
  const ForwardSm90 launch{queries(), key_maps(kDTypeOf<T>, op, keys, S::kKeys), op, order,
                           static_cast<int*>(counter.data)};
  longseq::launch<forward_kernel<S, kHasMask>>(cuda, dim3(blocks), S::kThreads, S::kSharedBytes, launch);
}

template <class T, bool kHasMask>
void launch_typed(const Cuda& cuda, const ForwardSm80& op, const GpuKeyParts& keys) {
  if (op.head_dim <= 64) {
    // Exponentials bound it, of which three warpgroups have more under way; tiles of 192 cut causal rows
    // coarser.
    if (!kHasMask && sees_all(op.visible)) return launch_shape<Shape<T, 64, 128, 3>, false>(cuda, op, keys);
    launch_shape<Shape<T, 64, 128>, kHasMask>(cuda, op, keys);
  } else if (op.head_dim <= 80) {
    launch_shape<Shape<T, 80, 128>, kHasMask>(cuda, op, keys);
  } else if (op.head_dim <= 96) {
    launch_shape<Shape<T, 96, 128>, kHasMask>(cuda, op, keys);
  } else if (op.head_dim <= 128) {
    launch_shape<Shape<T, 128, 128>, kHasMask>(cuda, op, keys);
  } else {
    launch_shape<Shape<T, 256, 64>, kHasMask>(cuda, op, keys);
  }
}

}  // namespace

void launch_forward_sm90(const Cuda& cuda, DType dtype, const ForwardSm80& op, const GpuKeyParts& keys) {
  visit_kernel(dtype, op.mask, [&]<class T, bool kHasMask>() { launch_typed<T, kHasMask>(cuda, op, keys); });
}

}  // namespace longseq
