// dq of float32 (backward_float32.h): a block takes queries and streams the keys they see.
#include "attention/backward_float32.h"
#include "attention/block_order.h"
#include "attention/key_blocks.h"

namespace longseq {
namespace {

using namespace sm80;

template <int kHeadDim, int kWarps, int kColumns, int kStages, int kBlocks, bool kHoldsQueries_>
struct QueryGradientShape : BackwardShape<kHeadDim, kWarps, kColumns, kStages, kBlocks> {
  using Base = BackwardShape<kHeadDim, kWarps, kColumns, kStages, kBlocks>;
  static constexpr bool kHoldsQueries = kHoldsQueries_;  // in registers
  static constexpr int kIntervalsAt = Base::kRowsAt + (kHoldsQueries ? 1 : 2) * Base::kRowsBytes;
  static constexpr int kLimitsAt = kIntervalsAt + Base::kRows * static_cast<int>(sizeof(int2));
  static constexpr int kSharedBytes = kLimitsAt + kWarps * static_cast<int>(sizeof(ColumnLimits));
};

template <class S>
class QueryGradientTile {
  static constexpr int kTiles = S::kColumns / 8, kDepthSteps = S::kHeadDim / 8;
  using Blocks = KeyBlocks<S::kColumns, Masking::Optional>;
  using Scores = float[kTiles][4];

 public:
  __device__ QueryGradientTile(const BackwardSm80& op, const BlockOrder& order, char* shared)
      : op_(op), forward_(op.forward), shared_(shared), warp_(threadIdx.x / 32), lane_(threadIdx.x % 32) {
    const auto [tile, head] = order.place(blockIdx.x);
    first_ = (order.tiles - 1 - tile) * S::kRows;
    last_ = min(first_ + S::kRows, forward_.queries) - 1;
    batch_ = head / forward_.heads;
    head_ = head % forward_.heads;
  }

  __device__ void run() {
    find_intervals();
    load_rows();
    stream();
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int64_t query = query_of(half);
      if (query > last_) continue;
      store_row(::longseq::head_of(op_.dq, batch_, head_) + query * op_.dq.row, dq_, half,
                op_.dq_sign * scale_of(forward_.score), forward_.head_dim, op_.adds_to_dq);
    }
  }

 private:
  /** The query of this lane's elements 2 half and 2 half + 1. */
  __device__ int query_of(int half) const { return first_ + warp_ * 16 + lane_ / 4 + 8 * half; }
  __device__ int2* intervals() const { return reinterpret_cast<int2*>(shared_ + S::kIntervalsAt); }
  __device__ ColumnLimits& limits() const {
    return reinterpret_cast<ColumnLimits*>(shared_ + S::kLimitsAt)[warp_];
  }

  __device__ void find_intervals() {
    for (int row = threadIdx.x; row < S::kRows; row += S::kThreads) {
      intervals()[row] = visible_keys(forward_.visible, min(first_ + row, last_), forward_.keys);
    }
    __syncthreads();
    if (lane_ == 0) {
      const int2 first = intervals()[warp_ * 16], last = intervals()[warp_ * 16 + 15];
      const bool has_plain = !forward_.score.has_softcap && forward_.score.slopes == nullptr;
      limits() = {first.x, last.y, has_plain ? last.x : INT32_MAX, first.y - S::kColumns};
    }
    __syncwarp();
  }

  __device__ void load_rows() {
    const float* const q = ::longseq::head_of(forward_.q, batch_, head_);
    const float* const dout = ::longseq::head_of(op_.dout, batch_, head_);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int query = min(query_of(half), last_);
      statistics_[half] = statistics_of(op_, batch_, head_, query);
      if constexpr (S::kHoldsQueries) {
        const float* const from = q + query * forward_.q.row + lane_ % 4;
#pragma unroll
        for (int column = 0; column < S::kHeadDim; column += 4) {
          q_[column / 8][half + column / 4 % 2 * 2] =
              column < forward_.head_dim ? __float_as_uint(from[column]) : 0;
        }
      }
    }
    const uint32_t rows = shared_address(shared_ + S::kRowsAt);
    copy_rows<S::kHeadDim, S::kRows, S::kThreads>(rows, dout, op_.dout.row, first_, forward_.queries,
                                                  forward_.head_dim);
    if constexpr (!S::kHoldsQueries) {
      copy_rows<S::kHeadDim, S::kRows, S::kThreads>(rows + S::kRowsBytes, q, forward_.q.row, first_,
                                                    forward_.queries, forward_.head_dim);
    }
  }

  __device__ void load_keys(int stage, int first) const {
    const int key_head = head_ / forward_.group;
    const uint32_t to = shared_address(shared_ + stage * S::kStageBytes);
    copy_rows<S::kHeadDim, S::kColumns, S::kThreads>(to, ::longseq::head_of(forward_.k, batch_, key_head),
                                                     forward_.k.row, first, forward_.keys, forward_.head_dim);
    copy_rows<S::kHeadDim, S::kColumns, S::kThreads>(to + S::kTileBytes,
                                                     ::longseq::head_of(forward_.v, batch_, key_head),
                                                     forward_.v.row, first, forward_.keys, forward_.head_dim);
    commit_copies();
  }

  __device__ void stream() {
    clear(dq_);
    Blocks blocks(forward_.mask, first_ / 128, intervals()[0].x, intervals()[S::kRows - 1].y);
    if (S::kStages == 2 && blocks.current().first >= 0) load_keys(0, blocks.current().first);
    for (int stage = 0; blocks.current().first >= 0; blocks.advance()) {
      const KeyBlock block = blocks.current();
      if constexpr (S::kStages == 2) {
        wait_copies<0>();
        block_barrier();  // the block has arrived, and everybody is done with the one before
        if (blocks.next().first >= 0) load_keys(1 - stage, blocks.next().first);
      } else {
        block_barrier();
        load_keys(0, block.first);
        wait_copies<0>();
        block_barrier();
      }
      if (block.first < limits().seen_end && block.first + S::kColumns > limits().seen_begin) {
        add_gradients(block, shared_ + stage * S::kStageBytes);
      }
      stage = S::kStages - 1 - stage;
    }
    wait_copies<0>();
  }

  __device__ void add_gradients(const KeyBlock& block, const char* keys) {
    const uint32_t rows = shared_address(shared_ + S::kRowsAt) + warp_ * 16 * S::kPitch;
    Scores s, ds;
    if constexpr (S::kHoldsQueries) {
      const auto held = [&](int step, uint32_t(&fragment)[4]) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          fragment[i] = q_[step][i];
          compute_again(fragment[i]);  // the pairs of all would take twice the registers
        }
      };
      multiply_rows<S::kHeadDim>(s, held, shared_address(keys), forward_.head_dim);
    } else {
      multiply_rows<S::kHeadDim>(s, fragments_of<S::kHeadDim>(rows + S::kRowsBytes), shared_address(keys),
                                 forward_.head_dim);
    }
    multiply_rows<S::kHeadDim>(ds, fragments_of<S::kHeadDim>(rows), shared_address(keys + S::kTileBytes),
                               forward_.head_dim);
    if (block.tile < 0 && block.first >= limits().plain_begin && block.first <= limits().plain_end) {
#pragma unroll
      for (int j = 0; j < kTiles; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
          differentiate(s[j][e], ds[j][e], forward_.score.exponent, statistics_[e / 2].x,
                        statistics_[e / 2].y);
        }
      }
    } else {
      differentiate_some(s, ds, block);
    }
    multiply_columns<S::kHeadDim>(dq_, ds, keys, forward_.head_dim);
  }

  /** With softcap, ALiBi, and a look at who sees what. */
  __device__ void differentiate_some(Scores& s, Scores& ds, const KeyBlock& block) const {
    const GpuScore& score = forward_.score;
    const float bias = score.slopes != nullptr ? score.slopes[head_] * score.slope_unit : 0;
    const int first = block.first + 2 * (lane_ % 4);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      keep_order();  // else both rows' operands are at hand at once, and the registers spill
      const int query = min(query_of(half), last_);
      const int position = query_position(score, forward_.visible, query);
      const int2 seen = intervals()[query - first_];
      const uint32_t bits = mask_bits(forward_.mask, block.tile, query, block.first) >> 2 * (lane_ % 4);
#pragma unroll
      for (int j = 0; j < kTiles; j++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const int key = first + 8 * j + e;
          const bool is_visible = key >= seen.x && key < seen.y && (bits >> (8 * j + e) & 1) != 0;
          const int distance = position - key_position(score, min(key, forward_.keys - 1));
          differentiate(s[j][2 * half + e], ds[j][2 * half + e], score, is_visible,
                        bias * static_cast<float>(abs(distance)), statistics_[half].x, statistics_[half].y);
        }
      }
    }
  }

  const BackwardSm80& op_;
  const ForwardSm80& forward_;
  char* const shared_;
  const int warp_, lane_;
  int first_, last_, batch_, head_;  // queries
  float2 statistics_[2];
  uint32_t q_[S::kHoldsQueries ? kDepthSteps : 1][4];
  float dq_[kDepthSteps][4];
};

template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    query_gradient_float32_kernel(const __grid_constant__ BackwardSm80 op, BlockOrder order) {
  extern __shared__ __align__(16) char shared[];
  QueryGradientTile<S>(op, order, shared).run();
}

template <class S>
void launch_query_gradient(const Cuda& cuda, const BackwardSm80& op) {
  const BlockOrder order = order_query_tiles(cuda, op.forward, S::kRows, sizeof(float), S::kBlocks);
  launch<query_gradient_float32_kernel<S>>(cuda, order.grid(), S::kThreads, S::kSharedBytes, op, order);
}

using QueryGradient64 = QueryGradientShape<64, 4, 32, 2, 3, false>;
using QueryGradient128 = QueryGradientShape<128, 4, 32, 2, 2, true>;
using QueryGradient128Small = QueryGradientShape<128, 4, 32, 1, 2, true>;
using QueryGradient256 = QueryGradientShape<256, 2, 16, 1, 2, false>;
static_assert(fit_anywhere<QueryGradient64, QueryGradient128Small, QueryGradient256>(),
              "GPUs of compute capability 8.6 and 8.9 have no more");

}  // namespace

void launch_query_gradient_float32(const Cuda& cuda, const BackwardSm80& op) {
  if (op.forward.head_dim <= 64) {
    launch_query_gradient<QueryGradient64>(cuda, op);
  } else if (op.forward.head_dim > 128) {
    launch_query_gradient<QueryGradient256>(cuda, op);
  } else if (has_room<QueryGradient128>(cuda)) {
    launch_query_gradient<QueryGradient128>(cuda, op);
  } else {
    launch_query_gradient<QueryGradient128Small>(cuda, op);
  }
}

}  // namespace longseq
