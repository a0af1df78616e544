#pragma once
// Flash attention forward for compute capability 8.0 and later (mma.sync, ldmatrix, cp.async).
//
// A block takes kRows queries of one head, each of its warps 16 kRowTiles of them, and streams the keys in
// stages of kKeys through shared memory (forward_keys_sm80.h). Of each stage
//
//   S = q k^T     P = exp2(c S - base)     l += rowsum P     out += P v
//
// base is not a running maximum: it is the maximum of the first stage that a row's warp sees. A sum in
// float32 has room for what is larger by 2^100 (P as float16: by 2^15), so nothing is rescaled and no maximum
// is taken on the way: the exponentials of 16 keys run beside the products of the 16 before. Where a row
// outgrows the room, or all but vanishes in it, the block finds the true maxima and starts again.
//
// Included by the .cu files of the element types alone, which compile side by side.
#include "attention/attention_sm80.h"
#include "attention/block_order.h"
#include "attention/fitting_shape.h"
#include "attention/forward_keys_sm80.h"
#include "attention/forward_result_sm80.h"
#include "attention/forward_scores_sm80.h"
#include "attention/visit_kernel.h"
#include "core/cuda.h"
#include "tile/multiply.h"
#include "tile/sm80.h"

namespace longseq {
namespace {

using namespace sm80;

constexpr float kMinusInfinity = -INFINITY;

template <class T>
struct Room;
template <>
struct Room<Bf16> {
  static constexpr float margin = 0, least = 0x1p-40f, most = 0x1p100f;
};
template <>
struct Room<Half> {  // P must stay below 65,504
  static constexpr float margin = 6, least = 0x1p-14f, most = 0x1p15f;
};

template <class S, bool kHasMask>
class ForwardTile : ForwardKeys<S, kHasMask> {
  static_assert(!(S::kIsRing && kHasMask));
  using T = typename S::T;
  using Keys = ForwardKeys<S, kHasMask>;
  using Keys::op_, Keys::warp_, Keys::lane_, Keys::tiles_, Keys::memory, Keys::tile, Keys::row_of;
  using typename Keys::Blocks;
  static constexpr int kAhead = 2;  // fragments that are loaded before they are needed

 public:
  __device__ ForwardTile(const ForwardSm80& op, const BlockOrder& order) : Keys(op, order) {}

  __device__ void run() {
    const int2 seen = this->own_interval();  // on its way beside the queries
    this->copy_queries();
    this->share_intervals(seen);
    if (S::kHoldsQueries) take_queries();
    auto blocks = this->begin_blocks();
    if (!S::kHoldsQueries) take_queries();
#pragma unroll
    for (float& base : base_) base = 0;
    based_ = false;
    for (;;) {
      stream(blocks);
      add_up_sums();
      const bool again = !tile().is_exact && outgrown();
      if (!__syncthreads_or(again)) break;
      this->end_blocks();
      find_maxima(this->begin_blocks());
      this->end_blocks();
      blocks = this->begin_blocks();
    }
    write_result(op_, *this, out_, base_, sum_);
  }

 private:
  __device__ void take_queries() {
    wait_copies<0>();
    __syncthreads();
#pragma unroll
    for (int d = 0; d < S::kHeldSteps; d++) load_query_fragments(q_[d], d);
    if (S::kHoldsQueries) __syncthreads();
  }

  __device__ void load_query_fragments(Fragment (&q)[S::kRowTiles], int d) const {
    const uint32_t from =
        tiles_ + S::kQueriesAt + (warp_ * 16 * S::kRowTiles + lane_ % 16) * S::kPitch + lane_ / 16 * 16;
#pragma unroll
    for (int i = 0; i < S::kRowTiles; i++) load_matrices(q[i], from + 16 * i * S::kPitch + 32 * d);
  }

  using Scores = ForwardScores<S>;
  using Weights = uint32_t[S::kRowTiles][4];

  /** s = q k^T for the keys of a stage. */
  __device__ void score(Scores& s, int stage) const {
    const uint32_t from =
        tiles_ + stage * S::kStageBytes + (lane_ % 8 + lane_ / 16 * 8) * S::kPitch + lane_ / 8 % 2 * 16;
#pragma unroll
    for (int i = 0; i < S::kRowTiles; i++) {
#pragma unroll
      for (int j = 0; j < 2 * S::kGroups; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) s[i][j][e] = 0;
      }
    }
    const auto load_right = [&](Fragment& to, int step, int n) {
      load_matrices(to, from + n * 16 * S::kPitch + 32 * step);
    };
    auto left = loaded_left<S::kDepthSteps, S::kRowTiles, S::kHeldSteps>(
        [&](Fragment(&to)[S::kRowTiles], int step) { load_query_fragments(to, step); });
    multiply<T, S::kDepthSteps, kAhead>(
        s,
        [&](int step, bool begins) -> auto& {
          if (begins) left.prepare(step);
          return step < S::kHeldSteps ? q_[step] : left.at(step);
        },
        load_right);
  }

  /** out += p v for the keys of a stage, and the weights p of 16 keys beside the products of the 16 before.
   */
  __device__ void accumulate(const Scores& s, int stage) {
    const uint32_t from =
        tiles_ + stage * S::kStageBytes + S::kTileBytes + lane_ % 16 * S::kPitch + lane_ / 16 * 16;
    Weights p[2];
    weigh(s, p[0], 0);
    multiply<T, S::kGroups, kAhead>(
        out_, [&](int step, bool) -> auto& { return p[step % 2]; },
        [&](Fragment& to, int step, int n) {
          load_matrices_transposed(to, from + step * 16 * S::kPitch + 32 * n);
        },
        [&](int step, int n) {
          if (n == 0 && step + 1 < S::kGroups) weigh(s, p[(step + 1) % 2], step + 1);
        });
  }

  /** The row's maximum, in all four lanes of its fragments. */
  __device__ static float row_maximum(const Scores& s, int i, int half) {
    float most = kMinusInfinity;
#pragma unroll
    for (int j = 0; j < 2 * S::kGroups; j++)
      most = fmaxf(most, fmaxf(s[i][j][2 * half], s[i][j][2 * half + 1]));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
    return fmaxf(most, __shfl_xor_sync(~0u, most, 2));
  }

  /** A base for every row from the first scores of its warp; rows that see none of them take their
   * neighbours'. */
  __device__ void choose_base(const Scores& s) {
    float warp_most = kMinusInfinity;
#pragma unroll
    for (int r = 0; r < 2 * S::kRowTiles; r++) {
      base_[r] = row_maximum(s, r / 2, r % 2);
      warp_most = fmaxf(warp_most, base_[r]);
    }
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) {
      warp_most = fmaxf(warp_most, __shfl_xor_sync(~0u, warp_most, offset));
    }
    if (warp_most == kMinusInfinity) {  // not yet
#pragma unroll
      for (float& base : base_) base = 0;
      return;
    }
#pragma unroll
    for (int r = 0; r < 2 * S::kRowTiles; r++) {
      const float most = base_[r] == kMinusInfinity ? warp_most : base_[r];
      base_[r] = most * op_.score.exponent + Room<T>::margin;
    }
    based_ = true;
  }

  /** p = exp2(c s - base), rounded, for the 16 keys of `group`; l += rowsum p. */
  __device__ void weigh(const Scores& s, Weights& p, int group) {
#pragma unroll
    for (int i = 0; i < S::kRowTiles; i++) {
#pragma unroll
      for (int j = 0; j < 2; j++) {
        float w[4];
#pragma unroll
        for (int e = 0; e < 4; e++) {
          w[e] = exp2_approximate(fmaf(s[i][2 * group + j][e], op_.score.exponent, -base_[2 * i + e / 2]));
          sum_[2 * i + e / 2] += w[e];
        }
        p[i][2 * j] = pack<T>(w[0], w[1]);
        p[i][2 * j + 1] = pack<T>(w[2], w[3]);
      }
    }
  }

  __device__ void stream(const Blocks& blocks) {
#pragma unroll
    for (float& sum : sum_) sum = 0;
#pragma unroll
    for (int i = 0; i < S::kRowTiles; i++) {
#pragma unroll
      for (int n = 0; n < S::kColumnTiles; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) out_[i][n][e] = 0;
      }
    }
    this->visit_blocks(blocks, [&](int stage, bool is_plain, const auto& block) {
      Scores s;
      score(s, stage);
      if (!is_plain) adjust_scores<S, kHasMask>(op_, *this, block(), s);
      if (!based_) choose_base(s);
      accumulate(s, stage);
    });
  }

  /** Of a row's four lanes. */
  __device__ void add_up_sums() {
#pragma unroll
    for (float& sum : sum_) {
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
    }
  }

  /** Whether a row's sum left the range in which it is exact. */
  __device__ bool outgrown() const {
    bool any = false;
#pragma unroll
    for (int r = 0; r < 2 * S::kRowTiles; r++) {
      const int2 seen = memory().intervals[row_of(r / 2, r % 2)];
      const bool is_empty = max(seen.x, tile().begin) >= min(seen.y, tile().end);
      any |= !is_empty && !(sum_[r] >= Room<T>::least && sum_[r] <= Room<T>::most);
    }
    return any;
  }

  /** base from all scores. */
  __device__ void find_maxima(const Blocks& blocks) {
#pragma unroll
    for (int r = 0; r < 2 * S::kRowTiles; r++) base_[r] = kMinusInfinity;
    this->visit_blocks(blocks, [&](int stage, bool is_plain, const auto& block) {
      Scores s;
      score(s, stage);
      if (!is_plain) adjust_scores<S, kHasMask>(op_, *this, block(), s);
#pragma unroll
      for (int r = 0; r < 2 * S::kRowTiles; r++) base_[r] = fmaxf(base_[r], row_maximum(s, r / 2, r % 2));
    });
    based_ = true;
    if (threadIdx.x == 0) memory().is_exact = true;
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 2 * S::kRowTiles; r++) {
      base_[r] = base_[r] == kMinusInfinity ? 0 : base_[r] * op_.score.exponent + Room<T>::margin;
    }
  }

  bool based_;
  Fragment q_[S::kHeldSteps > 0 ? S::kHeldSteps : 1][S::kRowTiles];
  ForwardSums<S> out_;
  float base_[2 * S::kRowTiles], sum_[2 * S::kRowTiles];
};

template <class S, bool kHasMask>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    forward_kernel(const __grid_constant__ ForwardSm80 op, BlockOrder order) {
  if constexpr (may_run<S>()) {
    ForwardTile<S, kHasMask>(op, order).run();
  } else {
    __trap();
  }
}

template <class S, bool kHasMask>
void launch_shape(const Cuda& cuda, const ForwardSm80& op) {
  const BlockOrder order = order_query_tiles(cuda, op, S::kRows, sizeof(typename S::T), S::kBlocks);
  launch<forward_kernel<S, kHasMask>>(cuda, order.grid(op.splits), S::kThreads, S::kSharedBytes, op, order);
}

/**
 * Whether a large shape, of which a multiprocessor runs one block, is faster: queries see enough keys for the
 * stages that only some of its warps need not to matter, and the last blocks leave few multiprocessors idle.
 */
template <class S>
bool is_worth(const Cuda& cuda, const ForwardSm80& op, int least_keys) {
  const int64_t tiles =
      ceil_div(int64_t{op.queries} * op.packed, S::kRows) * (op.heads / op.packed) * op.batch;
  const int64_t at_once = cuda.gpu->multiprocessors, waves = ceil_div(tiles, at_once);
  const bool ends_with_short = waves > 3 && !sees_all(op.visible);
  return op.splits == 1 && op.head_dim == S::kHeadDim && S::kSharedBytes <= cuda.gpu->shared_bytes &&
         std::min(op.visible.most, op.keys) >= least_keys &&
         (ends_with_short || 10 * tiles >= 9 * waves * at_once);
}

/**
 * Measured on an H100 (bench/RESULTS.md): as many keys a stage, and as many steps of the queries held in
 * registers, as leave some for operands that are loaded ahead. A mask's blocks of 128 keys are cut in equal
 * stages, and its blocks of 128 queries are a tile.
 */
template <class T, bool kHasMask>
void launch_typed(const Cuda& cuda, const ForwardSm80& op) {
  const auto launch = [&]<class S>() { launch_shape<S, kHasMask>(cuda, op); };
  const auto launch_either = [&]<class Large, class Small>(int least_keys) {
    if constexpr (!kHasMask) {
      if (is_worth<Large>(cuda, op, least_keys)) return launch.template operator()<Large>();
    }
    launch.template operator()<Small>();
  };
  if (op.head_dim <= 64) {
    launch.template operator()<ForwardShape<T, 64, 4, 2, 64, 2, 2, 4>>();
  } else if (op.head_dim <= 80) {
    launch_either.template
    operator()<ForwardShape<T, 80, 8, 2, 64, 4, 1, 0>, ForwardShape<T, 80, 4, 2, 64, 2, 2, 0>>(1024);
  } else if (op.head_dim <= 96) {
    launch_either.template operator()<ForwardShape<T, 96, 8, 2, 64, 4, 1, 0>,
                                      ForwardShape<T, 96, 4, 2, kHasMask ? 64 : 48, 2, 2, 0>>(1024);
  } else if (op.head_dim <= 128) {
    launch_either.template
    operator()<ForwardShape<T, 128, 8, 2, 32, 4, 1, 3>, ForwardShape<T, 128, 4, 2, 32, 2, 2, 2>>(2048);
  } else {
    launch_fitting<ForwardShape<T, 256, 8, 1, 32, 2, 1, 0>, ForwardShape<T, 256, 4, 1, 16, 2, 1, 0>>(cuda,
                                                                                                     launch);
  }
}

/** Of elements T. */
template <class T>
void launch_forward_elements(const Cuda& cuda, const ForwardSm80& op) {
  visit_mask(op.mask, [&]<bool kHasMask>() { launch_typed<T, kHasMask>(cuda, op); });
}

}  // namespace
}  // namespace longseq
