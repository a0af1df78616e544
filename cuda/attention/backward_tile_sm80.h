#pragma once
// Flash attention backward for compute capability 8.0 and later (mma.sync, ldmatrix, cp.async).
//
// A block keeps kKeys keys and values of one head in shared memory and streams the queries that see them,
// kRows at a time, for each query head of the group. Everything is transposed, a row a key, so that weights
// and their gradients are the left operands of the next product as they stand in registers:
//
//   value warps    S^T = k q^T      P^T = exp2(c S^T - lse)         dv += P^T dout
//   key warps      dP^T = v dout^T  dS^T = P^T * (dP^T - delta)     dk += dS^T q     dq += dS k
//
// Each of kGroups pairs of a value and a key warp owns kWarpKeys keys. P^T passes from one to the other
// through the shared memory in which the key warp then leaves dS^T for all key warps, which add dq of these
// queries while the value warps weigh the next ones. dq is summed in float32 in global memory, since many
// blocks add to a query.
//
// Included by the .cu files of the element types alone, which compile side by side.
#include <type_traits>

#include "attention/attention_sm80.h"
#include "attention/backward_scores_sm80.h"
#include "attention/backward_stream_sm80.h"
#include "attention/block_order.h"
#include "attention/fitting_shape.h"
#include "attention/key_blocks.h"
#include "attention/query_sums.h"
#include "attention/query_tiles.h"
#include "attention/visit_kernel.h"
#include "core/cuda.h"
#include "tile/multiply.h"
#include "tile/sm80.h"
#include "tile/sum.h"
#include "tile/swizzle.h"

namespace longseq {
namespace {

using namespace sm80;

template <class S, bool kHasMask>
class BackwardTile : BackwardStream<S> {
  using T = typename S::T;
  using Stream = BackwardStream<S>;
  using Stream::op_, Stream::shared_, Stream::tiles_, Stream::warp_, Stream::lane_, Stream::first_key_,
      Stream::batch_, Stream::key_head_, Stream::group_, Stream::rows_of, Stream::load_tile,
      Stream::first_row, Stream::statistics, Stream::intervals, Stream::scores;
  using Rows = Swizzle<S::kPitch>;
  using ScoreRows = Swizzle<S::kScorePitch>;
  static constexpr int kKeyTiles = S::kWarpKeys / 16, kQueryTiles = S::kRows / 16;  // of 16
  static constexpr int kDepthSteps = S::kHeadDim / 16;
  static constexpr bool kIsHalf = std::is_same_v<T, Half>;
  /** How many fragments are loaded before they are needed. */
  static constexpr int kAhead = S::kHeadDim >= 96 ? 2 : 3;
  /** The key warps have added all of dq; the first value warp tells of it, beside their writing of dk. */
  static constexpr int kSumsAdded = 1 + S::kGroups, kSumsAddedThreads = 32 * (S::kGroups + 1);

  using Scores = float[kKeyTiles][2 * kQueryTiles][4];
  using Weights = Fragment[kQueryTiles][kKeyTiles];
  using Gradient = float[kKeyTiles][S::kHeadDim / 8][4];

 public:
  __device__ BackwardTile(const BackwardSm80& op, const BlockOrder& order, char* shared)
      : Stream(op, order, shared) {}

  __device__ void run() {
#pragma unroll
    for (int e = 0; e < kKeyTiles * S::kHeadDim / 2; e++) {
      gradient_[e / (S::kHeadDim / 2)][e / 4 % (S::kHeadDim / 8)][e % 4] = 0;
    }
    if (warp_ < S::kGroups) {
      run_value_warp();
    } else {
      run_key_warp();
    }
  }

 private:
  /** Sixteen rows and columns of the left operand, a row a query or key. */
  __device__ uint32_t left_lane() const { return Rows::offset(lane_ % 16, lane_ / 16); }
  /** Of the right operand, whose rows are the product's columns. */
  __device__ uint32_t right_lane() const { return Rows::offset(lane_ % 8 + lane_ / 16 * 8, lane_ / 8 % 2); }

  /** The warp's own keys or values: a product's left fragments, in registers where there are enough. */
  class OwnRows {
   public:
    __device__ explicit OwnRows(uint32_t at) : at_(at) {
      if constexpr (S::kOwnKept) {
#pragma unroll
        for (int step = 0; step < kDepthSteps; step++) load(kept_[step], step);
      }
    }
    __device__ void load(Fragment (&to)[kKeyTiles], int step) const {
#pragma unroll
      for (int i = 0; i < kKeyTiles; i++) {
        load_matrices(to[i], Rows::two_chunks(at_, step) + 16 * i * S::kPitch);
      }
    }
    /** c += own rows^T: the kRows streamed ones at `rows`. */
    __device__ void multiply_by(uint32_t rows, Scores& c) const {
      const auto load_right = [&](Fragment& to, int step, int n) {
        load_matrices(to, Rows::two_chunks(rows, step) + 16 * n * S::kPitch);
      };
      if constexpr (S::kOwnKept) {
        multiply<T, kDepthSteps, kAhead>(
            c, [&](int step, bool) -> auto& { return kept_[step]; }, load_right);
      } else {
        auto left = loaded_left<kDepthSteps, kKeyTiles>([&](auto& to, int step) { load(to, step); });
        multiply<T, kDepthSteps, kAhead>(
            c, [&](int step, bool begins) -> auto& { return left(step, begins); }, load_right);
      }
    }

   private:
    uint32_t at_;
    Fragment kept_[S::kOwnKept ? kDepthSteps : 1][kKeyTiles];
  };
  __device__ OwnRows own_rows(uint32_t at) const {
    return OwnRows(at + group_ * S::kWarpKeys * S::kPitch + left_lane());
  }

  /** gradient += weights rows, the kRows streamed ones at `rows_at`. */
  __device__ void add_weighted(const Weights& weights, uint32_t rows_at) {
    const uint32_t rows = rows_at + left_lane();
    multiply<T, kQueryTiles, kAhead>(
        gradient_, [&](int step, bool) -> auto& { return weights[step]; },
        [&](Fragment& to, int step, int n) {
          load_matrices_transposed(to, Rows::two_chunks(rows, n) + 16 * step * S::kPitch);
        });
  }

  __device__ void run_value_warp() {
    // Begun at the same tile, blocks that run at the same time would all add to the same dq at once; in turn,
    // each follows the one before it.
    const int last_key = min(first_key_ + S::kKeys, op_.forward.keys) - 1;
    RowTiles<S::kRows, kHasMask, true> tiles(
        op_, first_key_, seeing_queries(op_.forward, first_key_, last_key), key_head_ * op_.forward.group);
    RowTile rows = tiles.next();
    load_tile(rows, 0);
    wait_copies<0>();
    block_barrier();
    const OwnRows keys = own_rows(tiles_);
    for (int stage = 0; rows.first >= 0; stage = 1 - stage) {
      const RowTile next = tiles.next();
      const bool plain = is_plain(rows, stage);
      load_tile(next, 1 - stage);
      Scores s = {};
      keys.multiply_by(tiles_ + S::kQueriesAt + stage * S::kRowBytes + right_lane(), s);
      if (plain) {
        add_values<Scoring::Plain>(s, rows, stage);
      } else if (!is_adjusted()) {
        add_values<Scoring::Masked>(s, rows, stage);
      } else {
        add_values<Scoring::Adjusted>(s, rows, stage);
      }
      rows = next;
      wait_copies<0>();
      block_barrier();  // the tile has arrived, and all are done with the one before
    }
    write(op_.dv, kWeightUnit, op_.dv_float32, op_.adds_to_dv);
    if (warp_ == 0 && op_.progress != nullptr) {
      named_barrier(kSumsAdded, kSumsAddedThreads);
      const int head = batch_ * (op_.forward.heads / op_.forward.group) + key_head_;
      if (lane_ == 0) add_release(&op_.progress[head].added, 1);
    }
  }

  __device__ void run_key_warp() {
    const ForwardSm80& forward = op_.forward;
    this->template load_rows<S::kKeys>(tiles_, rows_of(forward.k, key_head_ / op_.key_shares), forward.k.row,
                                       first_key_, forward.keys);
    this->template load_rows<S::kKeys>(tiles_ + S::kKeyBytes, rows_of(forward.v, key_head_ / op_.key_shares),
                                       forward.v.row, first_key_, forward.keys);
    commit_copies();
    wait_copies<0>();
    block_barrier();
    const OwnRows values = own_rows(tiles_ + S::kKeyBytes);
    int row = first_row(0);
    for (int stage = 0; row >= 0; stage = 1 - stage) {
      Scores ds;
#pragma unroll
      for (int n = 0; n < 2 * kQueryTiles; n++) {
        const float4 row_statistics = statistics(stage)[4 * n];
#pragma unroll
        for (int i = 0; i < kKeyTiles; i++) {
#pragma unroll
          for (int e = 0; e < 4; e++) ds[i][n][e] = -(e % 2 ? row_statistics.w : row_statistics.y);
        }
      }
      values.multiply_by(tiles_ + S::kGradientsAt + stage * S::kRowBytes + right_lane(), ds);
      named_barrier(1 + group_, 64);
      Weights weights;
      differentiate(ds, weights, stage);
      add_weighted(weights, tiles_ + S::kQueriesAt + stage * S::kRowBytes);
      block_barrier();
      const int next = first_row(1 - stage);
      add_query_gradients(row, stage);
      row = next;
    }
    if (op_.progress != nullptr) arrive_barrier(kSumsAdded, kSumsAddedThreads);
    write(op_.dk, kIsHalf ? op_.scale : op_.scale * kWeightUnit, op_.dk_float32, op_.adds_to_dk);
  }

  __device__ bool is_adjusted() const {
    return op_.forward.score.has_softcap || op_.forward.score.slopes != nullptr;
  }
  __device__ bool is_plain(const RowTile& rows, int stage) const {
    if (rows.tile >= 0 || is_adjusted()) return false;
    const int2* const seen = intervals(stage);
    return seen[S::kRows - 1].x <= first_key_ && seen[0].y >= first_key_ + S::kKeys;
  }

  /**
   * dv += P^T dout, a step of 16 queries after the other while the next one's weights are made; the key warp
   * gets P^T, times the softcap's derivative.
   */
  template <Scoring kScoring>
  __device__ void add_values(const Scores& s, const RowTile& rows, int stage) {
    auto* const to = reinterpret_cast<uint4*>(scores(stage)) + lane_;
    const float exponent = op_.forward.score.exponent;
    const int lane_key = first_key_ + group_ * S::kWarpKeys + lane_ / 4;
    constexpr int kPairs = 4 * kKeyTiles, kColumns = S::kHeadDim / 16;
    Fragment weights[2][kKeyTiles], passed[kKeyTiles];
    float base[2];
    Seen seen[2];
    const auto weigh = [&](int step, int pair) {
      const int n = pair / (2 * kKeyTiles), i = pair / 2 % kKeyTiles, half = pair % 2, tile = 2 * step + n;
      if (pair % (2 * kKeyTiles) == 0) {
        const float4 row_statistics = statistics(stage)[4 * tile];
        base[0] = kWeightBits - row_statistics.x;
        base[1] = kWeightBits - row_statistics.z;
        if constexpr (kScoring != Scoring::Plain) {
          keep_order();  // else all columns' operands are at hand at once, and the registers spill
          const int row = 8 * tile + lane_ % 4 * 2;
          seen[0] = seen_by<kScoring, kHasMask>(op_.forward, rows, row, intervals(stage)[row], lane_key);
          seen[1] =
              seen_by<kScoring, kHasMask>(op_.forward, rows, row + 1, intervals(stage)[row + 1], lane_key);
        }
      }
      float p[2], derivative[2] = {1, 1};
#pragma unroll
      for (int e = 0; e < 2; e++) {
        float score = s[i][tile][2 * half + e];
        if constexpr (kScoring != Scoring::Plain) {
          derivative[e] =
              adjust_score<kScoring, kHasMask>(op_.forward, score, seen[e], 16 * i + 8 * half, lane_key);
        }
        p[e] = exp2_approximate(fmaf(score, exponent, base[e]));
      }
      weights[step % 2][i][2 * n + half] = pack<T>(p[0], p[1]);
      passed[i][2 * n + half] = pack<Half>(p[0] * derivative[0], p[1] * derivative[1]);
      if (n == 1 && half == 1) {
        to[(step * kKeyTiles + i) * 32] = make_uint4(passed[i][0], passed[i][1], passed[i][2], passed[i][3]);
      }
    };
#pragma unroll
    for (int pair = 0; pair < kPairs; pair++) weigh(0, pair);
    const uint32_t values = tiles_ + S::kGradientsAt + stage * S::kRowBytes + left_lane();
    multiply<T, kQueryTiles, kAhead>(
        gradient_,
        [&](int step, bool begins) -> auto& {
          if (begins && step == kQueryTiles - 1) arrive_barrier(1 + group_, 64);
          return weights[step % 2];
        },
        [&](Fragment& to, int step, int n) {
          load_matrices_transposed(to, Rows::two_chunks(values, n) + 16 * step * S::kPitch);
        },
        [&](int step, int n) {
          if (step + 1 == kQueryTiles) return;
#pragma unroll
          for (int pair = 0; pair < kPairs; pair++) {
            if (pair * kColumns / kPairs == n) weigh(step + 1, pair);
          }
        });
  }

  /** dS^T = P^T * (dP^T - delta), for dk and, in shared memory, for dq. */
  __device__ void differentiate(const Scores& ds, Weights& weights, int stage) const {
    char* const from = scores(stage);
#pragma unroll
    for (int at = 0; at < kQueryTiles * kKeyTiles; at++) {
      const uint4 passed = reinterpret_cast<const uint4*>(from)[at * 32 + lane_];
      Fragment& p = weights[at / kKeyTiles][at % kKeyTiles];
      p[0] = passed.x;
      p[1] = passed.y;
      p[2] = passed.z;
      p[3] = passed.w;
    }
    __syncwarp();
#pragma unroll
    for (int step = 0; step < kQueryTiles; step++) {
#pragma unroll
      for (int i = 0; i < kKeyTiles; i++) {
#pragma unroll
        for (int part = 0; part < 4; part++) {
          const float(&x)[4] = ds[i][2 * step + part / 2];
          const int half = part % 2;
          uint32_t& word = weights[step][i][part];
          const float2 p = __half22float2(*reinterpret_cast<const __half2*>(&word));
          constexpr float kUnit = kIsHalf ? kWeightUnit : 1;
          word = pack<T>(p.x * kUnit * x[2 * half], p.y * kUnit * x[2 * half + 1]);
          const uint32_t offset = ScoreRows::offset(16 * i + 8 * half + lane_ / 4, 2 * step + part / 2);
          *reinterpret_cast<uint32_t*>(from + offset + lane_ % 4 * 4) = word;
        }
      }
    }
  }

  /** Of the blocks that add to dq of these queries, how many come before this one. */
  __device__ int blocks_before(int query) const {
    const int first = visible_keys(op_.forward.visible, query, op_.forward.keys).x / S::kKeys,
              block = first_key_ / S::kKeys;
    if (!kHasMask) return block - first;
    constexpr int kBlocks = 128 / S::kKeys;  // of keys, in a block of the mask
    const GpuMask& mask = op_.forward.mask;
    int before = 0;
    for (int run = mask.first_run[query / 128]; run < mask.first_run[query / 128 + 1]; run++) {
      const int begin = (mask.runs[run].begin - op_.first_key_block) * kBlocks,
                end = (mask.runs[run].end - op_.first_key_block) * kBlocks;
      before += max(min(end, block) - max(begin, first), 0);
    }
    return before;
  }

  /** dq += dS k, the warp's share, of the tile whose first row among all heads' this is. */
  __device__ void add_query_gradients(int first_row, int stage) const {
    const int row = group_ % S::kQueryParts * S::kQueryRows,
              column = group_ / S::kQueryParts * S::kQueryColumns;
    constexpr int kSteps = S::kKeys / 16, kLeft = S::kQueryRows / 16;
    const uint32_t left_at =
        tiles_ + S::kScoresAt + stage * S::kScoreBytes + (lane_ % 8 + lane_ / 16 * 8) * S::kScorePitch;
    const uint32_t right_at = tiles_ + lane_ % 16 * S::kPitch;
    float sum[kLeft][S::kQueryColumns / 8][4] = {};
    auto left = loaded_left<kSteps, kLeft>([&](Fragment(&to)[kLeft], int step) {
#pragma unroll
      for (int i = 0; i < kLeft; i++) {
        const int chunk = ScoreRows::permuted(lane_ % 8, row / 8 + 2 * i + lane_ / 8 % 2);
        load_matrices_transposed(to[i], left_at + 16 * step * S::kScorePitch + 16 * chunk);
      }
    });
    multiply<T, kSteps, kAhead>(
        sum, [&](int step, bool begins) -> auto& { return left(step, begins); },
        [&](Fragment& to, int step, int n) {
          const int chunk = Rows::permuted(lane_ % 8, column / 8 + 2 * n + lane_ / 16);
          load_matrices_transposed(to, right_at + 16 * step * S::kPitch + 16 * chunk);
        });
    int* turn = nullptr;
    if (op_.dq_turns != nullptr) {
      turn = op_.dq_turns + first_row / 16;
      wait_for(turn, blocks_before(static_cast<int>(first_row % op_.padded_queries)) * S::kGroups);
    }
    float* const to =
        op_.dq_sum + sum_offset(int64_t{first_row} + row, column, S::kHeadDim) + sum_lane_offset(lane_);
#pragma unroll
    for (int i = 0; i < kLeft; i++) {
#pragma unroll
      for (int n = 0; n < S::kQueryColumns / 8; n++) {
        add_four(to + 16 * i * S::kHeadDim + 128 * n, sum[i][n]);
      }
    }
    if (turn != nullptr) pass_turn(turn);
  }

  __device__ void wait_for(const int* turn, int value) const {
    while (load_acquire(turn) < value) continue;
    __syncwarp();
  }
  __device__ void pass_turn(int* turn) const {
    __threadfence();
    __syncwarp();
    if (lane_ == 0) add_release(turn, 1);
  }

  __device__ void write(const GpuRows& rows, float factor, bool is_float32, bool adds) const {
    const int64_t base = batch_ * rows.batch + key_head_ * rows.head;
#pragma unroll
    for (int i = 0; i < kKeyTiles; i++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int key = first_key_ + group_ * S::kWarpKeys + 16 * i + 8 * half + lane_ / 4;
        const int64_t at = base + key * rows.row;
        const int columns = key < op_.forward.keys ? op_.forward.head_dim : 0;
        const auto two = [&](int n) {
          const float(&x)[4] = gradient_[i][n];
          return make_float2(x[2 * half] * factor, x[2 * half + 1] * factor);
        };
        if (is_float32) {
          put_row<S::kHeadDim / 8>(static_cast<float*>(rows.data) + at, columns, two, adds);
        } else {
          write_row<T, S::kHeadDim / 8>(static_cast<T*>(rows.data) + at, columns, two);
        }
      }
    }
  }

  Gradient gradient_;  // dv of a value warp's keys, dk of a key warp's
};

template <class S, bool kHasMask>
__global__ void __launch_bounds__(S::kThreads, 1)
    backward_kernel(const __grid_constant__ BackwardSm80 op, BlockOrder order) {
  if constexpr (may_run<S>()) {
    extern __shared__ __align__(128) char shared[];
    if (blockIdx.x >= order.blocks()) {
      finish_complete_heads(
          op, order.tiles,
          [&](int pair, int first_row) { finish_rows<typename S::T, 16>(op, pair, first_row); },
          [] { return false; });
    } else {
      BackwardTile<S, kHasMask>(op, order, shared).run();
    }
  } else {
    __trap();
  }
}

template <class S, bool kHasMask>
void launch_shape(const Cuda& cuda, const BackwardSm80& op) {
  const BlockOrder order = order_key_tiles(cuda, op, S::kKeys, 1);
  dim3 grid = order.grid();
  // Behind all others: where a multiprocessor has no more keys, it finishes rows of dq.
  if (op.progress != nullptr) grid.x += cuda.gpu->multiprocessors;
  launch<backward_kernel<S, kHasMask>>(cuda, grid, S::kThreads, S::kSharedBytes, op, order);
}

template <class T, bool kHasMask>
void launch_typed(const Cuda& cuda, const BackwardSm80& op) {
  const auto launch = [&]<class S>() { launch_shape<S, kHasMask>(cuda, op); };
  switch (backward_columns_sm80(op.forward.head_dim)) {
    case 64:
      return launch.template operator()<BackwardShape<T, 64, 64, 32, 4, 32>>();
    case 80:
      return launch_fitting<BackwardShape<T, 80, 64, 32, 4, 16>, BackwardShape<T, 80, 32, 32, 2, 16>>(cuda,
                                                                                                      launch);
    case 96:
      return launch_fitting<BackwardShape<T, 96, 64, 32, 4, 32>, BackwardShape<T, 96, 32, 32, 2, 32>>(cuda,
                                                                                                      launch);
    case 128:
      return launch_fitting<BackwardShape<T, 128, 64, 32, 4, 32>, BackwardShape<T, 128, 32, 32, 2, 32>>(
          cuda, launch);
    default:
      return launch_fitting<BackwardShape<T, 256, 32, 16, 4, 32>, BackwardShape<T, 256, 16, 16, 2, 16>>(
          cuda, launch);
  }
}

/** Of elements T. */
template <class T>
void launch_backward_elements(const Cuda& cuda, const BackwardSm80& op) {
  visit_mask(op.forward.mask, [&]<bool kHasMask>() { launch_typed<T, kHasMask>(cuda, op); });
}

}  // namespace
}  // namespace longseq
