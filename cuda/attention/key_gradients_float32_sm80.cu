// dk and dv of float32 (backward_float32.h): a block takes keys and streams the queries that see them, for
// each query head of its group. At D 256 the gradients of 16 keys and values are more than a warp's
// registers: two launches write one of them each.
#include "attention/backward_float32.h"
#include "attention/block_order.h"
#include "attention/key_blocks.h"

namespace longseq {
namespace {

using namespace sm80;

constexpr float kInfinity = INFINITY;

template <int kHeadDim, int kWarps, int kColumns, int kStages, int kBlocks, bool kWritesKeys_,
          bool kWritesValues_>
struct KeyGradientShape : BackwardShape<kHeadDim, kWarps, kColumns, kStages, kBlocks> {
  using Base = BackwardShape<kHeadDim, kWarps, kColumns, kStages, kBlocks>;
  static constexpr bool kWritesKeys = kWritesKeys_, kWritesValues = kWritesValues_;
  static constexpr int kStatisticsAt = Base::kRowsAt + (kWritesKeys ? 2 : 1) * Base::kRowsBytes;
  static constexpr int kLimitsAt = kStatisticsAt + kStages * kColumns * static_cast<int>(sizeof(float2));
  static constexpr int kSharedBytes = kLimitsAt + kWarps * static_cast<int>(sizeof(ColumnLimits));
};

template <class S>
class KeyGradientTile {
  static constexpr int kTiles = S::kColumns / 8, kDepthSteps = S::kHeadDim / 8;
  using Blocks = KeyBlocks<S::kColumns, Masking::Optional>;
  using Scores = float[kTiles][4];  // transposed: a row is a key

 public:
  __device__ KeyGradientTile(const BackwardSm80& op, const BlockOrder& order, char* shared)
      : op_(op), forward_(op.forward), shared_(shared), warp_(threadIdx.x / 32), lane_(threadIdx.x % 32) {
    const auto [tile, head] = order.place(blockIdx.x);
    const int key_heads = forward_.heads / forward_.group;
    first_ = tile * S::kRows;
    batch_ = head / key_heads;
    key_head_ = head % key_heads;
  }

  __device__ void run() {
    const uint32_t rows = shared_address(shared_ + S::kRowsAt);
    copy_rows<S::kHeadDim, S::kRows, S::kThreads>(rows, ::longseq::head_of(forward_.k, batch_, key_head_),
                                                  forward_.k.row, first_, forward_.keys, forward_.head_dim);
    if constexpr (S::kWritesKeys) {
      copy_rows<S::kHeadDim, S::kRows, S::kThreads>(rows + S::kRowsBytes,
                                                    ::longseq::head_of(forward_.v, batch_, key_head_),
                                                    forward_.v.row, first_, forward_.keys, forward_.head_dim);
    }
    commit_copies();
    find_limits();
    clear(dk_);
    clear(dv_);
    for (int head = key_head_ * forward_.group; head < (key_head_ + 1) * forward_.group; head++) stream(head);
    wait_copies<0>();
    if constexpr (S::kWritesKeys) write(op_.dk, dk_, scale_of(forward_.score), op_.adds_to_dk);
    if constexpr (S::kWritesValues) write(op_.dv, dv_, 1, op_.adds_to_dv);
  }

 private:
  /** The key of this lane's elements 2 half and 2 half + 1. */
  __device__ int key_of(int half) const { return first_ + warp_ * 16 + lane_ / 4 + 8 * half; }
  __device__ float4* statistics(int stage) const {
    return reinterpret_cast<float4*>(shared_ + S::kStatisticsAt) + stage * S::kColumns / 2;
  }
  __device__ ColumnLimits* limits() const { return reinterpret_cast<ColumnLimits*>(shared_ + S::kLimitsAt); }

  __device__ void find_limits() {
    if (threadIdx.x < 4 * S::kWarps) {
      const int warp = threadIdx.x / 4, limit = threadIdx.x % 4;
      const int first_key = min(first_ + 16 * warp, forward_.keys - 1);
      const int last_key = min(first_key + 15, forward_.keys - 1);
      // A query sees some of the keys: its end is behind the first, its begin not behind the last; all: the
      // other way round.
      const int key = limit == 0 || limit == 3 ? first_key : last_key;
      const int query =
          first_query(forward_, [&](int2 seen) { return (limit % 2 == 0 ? seen.y : seen.x) > key; });
      const bool has_plain = !forward_.score.has_softcap && forward_.score.slopes == nullptr;
      if (limit == 0) limits()[warp].seen_begin = query;
      if (limit == 1) limits()[warp].seen_end = query;
      if (limit == 2) limits()[warp].plain_begin = has_plain ? query : INT32_MAX;
      if (limit == 3) limits()[warp].plain_end = query - S::kColumns;
    }
    __syncthreads();
  }

  __device__ void load_queries(int stage, int first, int head) {
    const uint32_t to = shared_address(shared_ + stage * S::kStageBytes);
    copy_rows<S::kHeadDim, S::kColumns, S::kThreads>(to, ::longseq::head_of(forward_.q, batch_, head),
                                                     forward_.q.row, first, forward_.queries,
                                                     forward_.head_dim);
    copy_rows<S::kHeadDim, S::kColumns, S::kThreads>(to + S::kTileBytes,
                                                     ::longseq::head_of(op_.dout, batch_, head), op_.dout.row,
                                                     first, forward_.queries, forward_.head_dim);
    commit_copies();
    if (threadIdx.x < S::kColumns) {
      const int query = first + static_cast<int>(threadIdx.x);
      loaded_ =
          query < forward_.queries ? statistics_of(op_, batch_, head, query) : make_float2(kInfinity, 0);
    }
  }
  /** What load_queries began is there, for the whole block. */
  __device__ void finish_loading(int stage) const {
    if (threadIdx.x < S::kColumns) reinterpret_cast<float2*>(statistics(stage))[threadIdx.x] = loaded_;
    wait_copies<0>();
    block_barrier();
  }

  __device__ void stream(int head) {
    Blocks blocks(op_.mask_transposed, first_ / 128, limits()[0].seen_begin,
                  limits()[S::kWarps - 1].seen_end);
    block_barrier();  // the head before is done with
    if (S::kStages == 2 && blocks.current().first >= 0) load_queries(0, blocks.current().first, head);
    for (int stage = 0; blocks.current().first >= 0; blocks.advance()) {
      const KeyBlock block = blocks.current();
      if constexpr (S::kStages == 2) {
        finish_loading(stage);
        if (blocks.next().first >= 0) load_queries(1 - stage, blocks.next().first, head);
      } else {
        block_barrier();
        load_queries(0, block.first, head);
        finish_loading(0);
      }
      const ColumnLimits& own = limits()[warp_];
      if (block.first < own.seen_end && block.first + S::kColumns > own.seen_begin) {
        add_gradients(block, stage, head);
      }
      stage = S::kStages - 1 - stage;
    }
  }

  __device__ void add_gradients(const KeyBlock& block, int stage, int head) {
    const char* const queries = shared_ + stage * S::kStageBytes;
    const char* const douts = queries + S::kTileBytes;
    const uint32_t rows = shared_address(shared_ + S::kRowsAt) + warp_ * 16 * S::kPitch;
    Scores s, ds;
    multiply_rows<S::kHeadDim>(s, fragments_of<S::kHeadDim>(rows), shared_address(queries),
                               forward_.head_dim);
    if constexpr (S::kWritesKeys) {
      multiply_rows<S::kHeadDim>(ds, fragments_of<S::kHeadDim>(rows + S::kRowsBytes), shared_address(douts),
                                 forward_.head_dim);
    } else {
      clear(ds);
    }
    const ColumnLimits& own = limits()[warp_];
    if (block.tile < 0 && block.first >= own.plain_begin && block.first <= own.plain_end) {
#pragma unroll
      for (int j = 0; j < kTiles; j++) {
        const float4 both = statistics(stage)[4 * j + lane_ % 4];
#pragma unroll
        for (int e = 0; e < 4; e++) {
          differentiate(s[j][e], ds[j][e], forward_.score.exponent, e % 2 == 0 ? both.x : both.z,
                        e % 2 == 0 ? both.y : both.w);
        }
      }
    } else {
      differentiate_some(s, ds, block, stage, head);
    }
    if constexpr (S::kWritesValues) multiply_columns<S::kHeadDim>(dv_, s, douts, forward_.head_dim);
    if constexpr (S::kWritesKeys) multiply_columns<S::kHeadDim>(dk_, ds, queries, forward_.head_dim);
  }

  /** With softcap, ALiBi, and a look at who sees what. */
  __device__ void differentiate_some(Scores& s, Scores& ds, const KeyBlock& block, int stage,
                                     int head) const {
    const GpuScore& score = forward_.score;
    const float bias = score.slopes != nullptr ? score.slopes[head] * score.slope_unit : 0;
    uint32_t bits[2];
    int position[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      bits[half] = mask_bits(op_.mask_transposed, block.tile, key_of(half), block.first) >> 2 * (lane_ % 4);
      position[half] = key_position(score, min(key_of(half), forward_.keys - 1));
    }
#pragma unroll
    for (int j = 0; j < kTiles; j++) {
      keep_order();  // else all columns' operands are at hand at once, and the registers spill
      const float4 both = statistics(stage)[4 * j + lane_ % 4];
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const int query = block.first + 8 * j + 2 * (lane_ % 4) + e,
                  inside = min(query, forward_.queries - 1);
        const int2 seen = visible_keys(forward_.visible, inside, forward_.keys);
        const int at = query_position(score, forward_.visible, inside);
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int key = key_of(half);
          const bool is_visible =
              query == inside && key >= seen.x && key < seen.y && (bits[half] >> (8 * j + e) & 1) != 0;
          differentiate(s[j][2 * half + e], ds[j][2 * half + e], score, is_visible,
                        bias * static_cast<float>(abs(at - position[half])), e == 0 ? both.x : both.z,
                        e == 0 ? both.y : both.w);
        }
      }
    }
  }

  __device__ void write(const GpuRows& rows, const float (&gradient)[kDepthSteps][4], float factor,
                        bool adds) const {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int64_t key = key_of(half);
      if (key >= forward_.keys) continue;
      store_row(::longseq::head_of(rows, batch_, key_head_) + key * rows.row, gradient, half, factor,
                forward_.head_dim, adds);
    }
  }

  const BackwardSm80& op_;
  const ForwardSm80& forward_;
  char* const shared_;
  const int warp_, lane_;
  int first_, batch_, key_head_;  // keys
  float2 loaded_;                 // a query's statistics, on their way to shared memory
  float dk_[kDepthSteps][4], dv_[kDepthSteps][4];
};

template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    key_gradient_float32_kernel(const __grid_constant__ BackwardSm80 op, BlockOrder order) {
  extern __shared__ __align__(16) char shared[];
  KeyGradientTile<S>(op, order, shared).run();
}

template <class S>
void launch_key_gradient(const Cuda& cuda, const BackwardSm80& op) {
  const BlockOrder order = order_key_tiles(cuda, op, S::kRows, S::kBlocks);
  launch<key_gradient_float32_kernel<S>>(cuda, order.grid(), S::kThreads, S::kSharedBytes, op, order);
}

using KeyGradient64 = KeyGradientShape<64, 4, 32, 2, 2, true, true>;
using KeyGradient128 = KeyGradientShape<128, 4, 16, 2, 2, true, true>;
using KeyGradient128Small = KeyGradientShape<128, 4, 16, 1, 2, true, true>;
using KeyOnlyGradient256 = KeyGradientShape<256, 2, 16, 1, 2, true, false>;
using ValueOnlyGradient256 = KeyGradientShape<256, 4, 16, 1, 2, false, true>;

static_assert(fit_anywhere<KeyGradient64, KeyGradient128Small, KeyOnlyGradient256, ValueOnlyGradient256>(),
              "GPUs of compute capability 8.6 and 8.9 have no more");

}  // namespace

void launch_key_gradients_float32(const Cuda& cuda, const BackwardSm80& op) {
  if (op.forward.head_dim <= 64) {
    launch_key_gradient<KeyGradient64>(cuda, op);
  } else if (op.forward.head_dim > 128) {
    launch_key_gradient<KeyOnlyGradient256>(cuda, op);
    launch_key_gradient<ValueOnlyGradient256>(cuda, op);
  } else if (has_room<KeyGradient128>(cuda)) {
    launch_key_gradient<KeyGradient128>(cuda, op);
  } else {
    launch_key_gradient<KeyGradient128Small>(cuda, op);
  }
}

}  // namespace longseq
