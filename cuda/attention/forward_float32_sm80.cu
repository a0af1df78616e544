// Flash attention forward of float32 (mma.sync of tf32 pairs, tile/tf32.h), as accurate as float32
// arithmetic.
//
// A block takes 16 queries a warp of one head and streams the keys in stages of kKeys through shared memory:
//
//   S = q k^T     base = max(base, c S)     P = exp2(c S - base)     l += rowsum P     out += P v
#include "attention/attention_sm80.h"
#include "attention/block_order.h"
#include "attention/key_blocks.h"
#include "core/cuda.h"
#include "tile/tf32.h"

namespace longseq {
namespace {

using namespace sm80;

constexpr float kLn2 = 0.6931471805599453f;
constexpr float kInfinity = INFINITY;

/** Of a warp; in shared memory, since the registers are taken by operands. */
struct KeyLimits {
  int begin, end;              // keys that the tile sees
  int seen_begin, seen_end;    // keys that a query of the warp sees
  int plain_begin, plain_end;  // first keys of the blocks that need no look at who sees what
};

template <int kHeadDim_, int kWarps_, int kKeys_, int kStages_, int kBlocks_, bool kHoldsQueries_>
struct ForwardShape {
  static constexpr int kHeadDim = kHeadDim_, kWarps = kWarps_, kKeys = kKeys_, kStages = kStages_,
                       kBlocks = kBlocks_;
  static constexpr bool kHoldsQueries = kHoldsQueries_;  // in registers
  static constexpr int kThreads = 32 * kWarps, kRows = 16 * kWarps, kPitch = float32_pitch(kHeadDim);
  static constexpr int kTileBytes = kKeys * kPitch, kStageBytes = 2 * kTileBytes;
  static constexpr int kQueriesAt = kStages * kStageBytes;
  static constexpr int kIntervalsAt = kQueriesAt + (kHoldsQueries ? 0 : kRows * kPitch);
  static constexpr int kLimitsAt = kIntervalsAt + kRows * static_cast<int>(sizeof(int2));
  static constexpr int kSharedBytes = kLimitsAt + kWarps * static_cast<int>(sizeof(KeyLimits));
};

template <class S>
class ForwardTile {
  static constexpr int kTiles = S::kKeys / 8, kDepthSteps = S::kHeadDim / 8;
  using Blocks = KeyBlocks<S::kKeys, Masking::Optional>;
  using Scores = float[kTiles][4];

 public:
  __device__ ForwardTile(const ForwardSm80& op, const BlockOrder& order, char* shared)
      : op_(op), shared_(shared), warp_(threadIdx.x / 32), lane_(threadIdx.x % 32) {
    const auto [tile, head] = order.place(blockIdx.x);
    const int row_heads = op.heads / op.packed;
    first_row_ = (order.tiles - 1 - tile) * S::kRows;
    rows_ = min(S::kRows, op.queries * op.packed - first_row_);
    batch_ = head / row_heads;
    head_ = head % row_heads * op.packed;
  }

  __device__ void run() {
    find_intervals();
    load_queries();
    stream();
    write();
  }

 private:
  __device__ int query_of(int row) const { return (first_row_ + row) / op_.packed; }
  __device__ int head_of(int row) const { return head_ + (first_row_ + row) % op_.packed; }
  /** The row of the tile of this lane's elements 2 half and 2 half + 1. */
  __device__ int row_of(int half) const { return warp_ * 16 + lane_ / 4 + 8 * half; }
  __device__ int2* intervals() const { return reinterpret_cast<int2*>(shared_ + S::kIntervalsAt); }
  __device__ KeyLimits& limits() const { return reinterpret_cast<KeyLimits*>(shared_ + S::kLimitsAt)[warp_]; }

  __device__ void find_intervals() {
    for (int row = threadIdx.x; row < S::kRows; row += S::kThreads) {
      intervals()[row] = visible_keys(op_.visible, query_of(min(row, rows_ - 1)), op_.keys);
    }
    __syncthreads();
    int begin = intervals()[0].x, end = intervals()[S::kRows - 1].y;
    if (op_.splits > 1) {
      const int length = ((end - begin + op_.splits - 1) / op_.splits + S::kKeys - 1) / S::kKeys * S::kKeys;
      begin += static_cast<int>(blockIdx.y) * length;
      end = min(end, begin + length);
    }
    if (lane_ == 0) {
      const int2 first = intervals()[warp_ * 16], last = intervals()[warp_ * 16 + 15];
      const bool has_plain = !op_.score.has_softcap && op_.score.slopes == nullptr;
      limits() = {begin,
                  end,
                  max(first.x, begin),
                  min(last.y, end),
                  has_plain ? max(last.x, begin) : INT32_MAX,
                  min(first.y, end) - S::kKeys};
    }
    __syncwarp();
  }

  __device__ void load_queries() {
    const float* const q = static_cast<const float*>(op_.q.data) + batch_ * op_.q.batch;
    if constexpr (S::kHoldsQueries) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int row = row_of(half);
        const float* const from = q + query_of(row) * op_.q.row + head_of(row) * op_.q.head + lane_ % 4;
#pragma unroll
        for (int column = 0; column < S::kHeadDim; column += 4) {
          const bool inside = row < rows_ && column < op_.head_dim;
          q_[column / 8][half + column / 4 % 2 * 2] = inside ? __float_as_uint(from[column]) : 0;
        }
      }
    } else {
      constexpr int kChunks = S::kHeadDim / 4;
      for (int chunk = threadIdx.x; chunk < S::kRows * kChunks; chunk += S::kThreads) {
        const int row = chunk / kChunks, column = chunk % kChunks * 4;
        const bool inside = row < rows_ && column < op_.head_dim;
        const int64_t at = query_of(row) * op_.q.row + head_of(row) * op_.q.head + column;
        copy_async(shared_address(shared_ + S::kQueriesAt + row * S::kPitch + column * 4),
                   inside ? q + at : q, inside);
      }
    }
  }

  __device__ void load_keys(int stage, int first) const {
    const int key_head = head_ / op_.group;
    const float* const k = static_cast<const float*>(op_.k.data) + batch_ * op_.k.batch;
    const float* const v = static_cast<const float*>(op_.v.data) + batch_ * op_.v.batch;
    const uint32_t to = shared_address(shared_ + stage * S::kStageBytes);
    copy_rows<S::kHeadDim, S::kKeys, S::kThreads>(to, k + key_head * op_.k.head, op_.k.row, first, op_.keys,
                                                  op_.head_dim);
    copy_rows<S::kHeadDim, S::kKeys, S::kThreads>(to + S::kTileBytes, v + key_head * op_.v.head, op_.v.row,
                                                  first, op_.keys, op_.head_dim);
    commit_copies();
  }

  __device__ void stream() {
    clear(out_);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      base_[half] = -kInfinity;
      sum_[half] = 0;
    }
    Blocks blocks(op_.mask, query_of(0) / 128, limits().begin, limits().end);
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
      if (block.first < limits().seen_end && block.first + S::kKeys > limits().seen_begin) {
        attend(block, stage);
      }
      stage = S::kStages - 1 - stage;
    }
    wait_copies<0>();  // the queries', where nobody sees a key
  }

  __device__ void attend(const KeyBlock& block, int stage) {
    const char* const keys = shared_ + stage * S::kStageBytes;
    Scores s;
    if constexpr (S::kHoldsQueries) {
      const auto held = [&](int step, uint32_t(&fragment)[4]) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          fragment[i] = q_[step][i];
          compute_again(fragment[i]);  // the pairs of all would take twice the registers
        }
      };
      multiply_rows<S::kHeadDim>(s, held, shared_address(keys), op_.head_dim);
    } else {
      const uint32_t rows = shared_address(shared_ + S::kQueriesAt) + warp_ * 16 * S::kPitch;
      multiply_rows<S::kHeadDim>(s, fragments_of<S::kHeadDim>(rows), shared_address(keys), op_.head_dim);
    }
    if (block.tile >= 0 || block.first < limits().plain_begin || block.first > limits().plain_end) {
      adjust(s, block);
    }
    raise_base(s);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float base = base_[half] == -kInfinity ? 0 : base_[half];  // nothing seen yet: all are exp2(-inf)
#pragma unroll
      for (int j = 0; j < kTiles; j++) {
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; e++) {
          s[j][e] = exp2_approximate(fmaf(s[j][e], op_.score.exponent, -base));
          sum_[half] += s[j][e];
        }
      }
    }
    multiply_columns<S::kHeadDim>(out_, s, keys + S::kTileBytes, op_.head_dim);
  }

  /** Softcap, ALiBi, and what becomes 0 where a query does not see a key. */
  __device__ void adjust(Scores& s, const KeyBlock& block) const {
    const GpuScore& score = op_.score;
    const float hidden = copysignf(kInfinity, -score.exponent);
    const int first = block.first + 2 * (lane_ % 4);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      keep_order();  // else both rows' operands are at hand at once, and the registers spill
      const int row = row_of(half), query = query_of(min(row, rows_ - 1));
      if (score.has_softcap) {
#pragma unroll
        for (int j = 0; j < kTiles; j++) {
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; e++) s[j][e] = tanhf(s[j][e] * score.before_cap);
        }
      }
      if (score.slopes != nullptr) {
        const float slope = score.slopes[head_of(min(row, rows_ - 1))] * score.slope_unit;
        const int position = query_position(score, op_.visible, query);
#pragma unroll
        for (int j = 0; j < kTiles; j++) {
#pragma unroll
          for (int e = 0; e < 2; e++) {
            const int distance = position - key_position(score, min(first + 8 * j + e, op_.keys - 1));
            s[j][2 * half + e] -= slope * static_cast<float>(abs(distance));
          }
        }
      }
      const int begin = max(intervals()[row].x, limits().begin) - first;
      const int end = min(intervals()[row].y, limits().end) - first;
      const uint32_t bits = mask_bits(op_.mask, block.tile, query, block.first) >> 2 * (lane_ % 4);
#pragma unroll
      for (int j = 0; j < kTiles; j++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const int at = 8 * j + e;
          if (at < begin || at >= end || (bits >> at & 1) == 0) s[j][2 * half + e] = hidden;
        }
      }
    }
  }

  __device__ void raise_base(const Scores& s) {
    float factor[2];
    bool raised = false;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float most = -kInfinity;
#pragma unroll
      for (int j = 0; j < kTiles; j++) {
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; e++) most = fmaxf(most, s[j][e] * op_.score.exponent);
      }
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
      factor[half] = 1;
      if (most > base_[half]) {
        factor[half] = exp2_approximate(base_[half] - most);
        base_[half] = most;
        raised = true;
      }
    }
    if (!__any_sync(~0u, raised)) return;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      sum_[half] *= factor[half];
#pragma unroll
      for (int n = 0; n < kDepthSteps; n++) {
        out_[n][2 * half] *= factor[half];
        out_[n][2 * half + 1] *= factor[half];
      }
    }
  }

  __device__ void write() {
    const int64_t part = op_.splits > 1 ? blockIdx.y : 0;
    float* const out = static_cast<float*>(op_.out.data) + (part * op_.batch + batch_) * op_.out.batch;
    float* const log_sum_exp = op_.log_sum_exp.data + (part * op_.batch + batch_) * op_.log_sum_exp.batch;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float sum = sum_[half];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      const int row = row_of(half);
      if (row >= rows_) continue;
      if (lane_ % 4 == 0) {
        log_sum_exp[head_of(row) * op_.log_sum_exp.head + query_of(row)] =
            sum == 0 ? -kInfinity : (base_[half] + log2f(sum)) * kLn2;
      }
      store_row(out + query_of(row) * op_.out.row + head_of(row) * op_.out.head, out_, half,
                sum == 0 ? 0 : 1 / sum, op_.head_dim);
    }
  }

  const ForwardSm80& op_;
  char* const shared_;
  const int warp_, lane_;
  int first_row_, rows_, batch_, head_;
  uint32_t q_[S::kHoldsQueries ? kDepthSteps : 1][4];
  float out_[kDepthSteps][4], base_[2], sum_[2];
};

template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    forward_float32_kernel(const __grid_constant__ ForwardSm80 op, BlockOrder order) {
  extern __shared__ __align__(16) char shared[];
  ForwardTile<S>(op, order, shared).run();
}

template <class S>
void launch_shape(const Cuda& cuda, const ForwardSm80& op) {
  const BlockOrder order = order_query_tiles(cuda, op, S::kRows, sizeof(float), S::kBlocks);
  launch<forward_float32_kernel<S>>(cuda, order.grid(op.splits), S::kThreads, S::kSharedBytes, op, order);
}

using Forward64 = ForwardShape<64, 4, 32, 2, 3, false>;
using Forward128 = ForwardShape<128, 4, 32, 2, 2, true>;
using Forward256 = ForwardShape<256, 4, 16, 1, 2, false>;
static_assert(Forward256::kSharedBytes <= kLeastShared);

}  // namespace

void launch_forward_float32(const Cuda& cuda, const ForwardSm80& op) {
  if (op.head_dim <= 64) {
    launch_shape<Forward64>(cuda, op);
  } else if (op.head_dim <= 128) {
    launch_shape<Forward128>(cuda, op);
  } else {
    launch_shape<Forward256>(cuda, op);
  }
}

}  // namespace longseq
