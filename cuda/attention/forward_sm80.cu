// Flash attention forward for compute capability 8.0 and later (mma.sync, ldmatrix, cp.async).
//
// A block takes kRows queries of one head, each of its warps 16 kRowTiles of them, and streams the keys in
// stages of kKeys through shared memory. Of each stage
//
//   S = q k^T     P = exp2(c S - base)     l += rowsum P     out += P v
//
// base is not a running maximum: it is the maximum of the first stage that a row's warp sees. A sum in
// float32 has room for what is larger by 2^100 (P as float16: by 2^15), so nothing is rescaled and no maximum
// is taken on the way: the exponentials of 16 keys run beside the products of the 16 before. Where a row
// outgrows the room, or all but vanishes in it, the block finds the true maxima and starts again.
//
// May spill registers: a few words, where masks or scores are adjusted and not beside the products.
#include "attention/attention_sm80.h"
#include "attention/block_order.h"
#include "attention/key_blocks.h"
#include "core/cuda.h"
#include "tile/multiply.h"
#include "tile/sm80.h"

namespace longseq {
namespace {

using namespace sm80;

constexpr float kLn2 = 0.6931471805599453f;
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

template <class Element, int kHeadDim_, int kWarps_, int kRowTiles_, int kKeys_, int kBlocks_,
          bool kHoldsQueries_>
struct Shape {
  using T = Element;
  static constexpr int kHeadDim = kHeadDim_, kWarps = kWarps_, kRowTiles = kRowTiles_, kKeys = kKeys_,
                       kBlocks = kBlocks_, kStages = 2;
  static constexpr bool kHoldsQueries = kHoldsQueries_;  // in registers
  static constexpr int kHeldSteps = kHoldsQueries ? kHeadDim_ / 16 : 1;
  static constexpr int kThreads = 32 * kWarps, kRows = 16 * kRowTiles * kWarps;
  static constexpr int kDepthSteps = kHeadDim / 16, kColumnTiles = kHeadDim / 8, kGroups = kKeys / 16;
  // An odd number of 16-byte chunks a row: the eight rows of a matrix then lie in different banks.
  static constexpr int kPitch = (kHeadDim / 8 | 1) * 16;  // in bytes
  static constexpr int kTileBytes = kKeys * kPitch, kStageBytes = 2 * kTileBytes;
  static constexpr int kStreamBytes = kStages * kStageBytes;
  static constexpr int kQueryBytes = kRows * kPitch;
  // Queries that go to registers stand where later stages will be.
  static constexpr int kQueriesAt = kHoldsQueries ? 0 : kStreamBytes;
  static constexpr int kTilesBytes =
      kHoldsQueries ? (kStreamBytes > kQueryBytes ? kStreamBytes : kQueryBytes) : kStreamBytes + kQueryBytes;
  static constexpr int kSharedBytes = kTilesBytes + kRows * 8 + 16 * kWarps + 48;
};

/**
 * What a block knows of its tile. It stays in shared memory and is read where it is needed: the registers are
 * all taken by operands.
 */
template <class S>
struct Tile {
  int first_row, rows, batch, head;
  int begin, end;  // keys that the tile sees
  const typename S::T *k, *v;
  struct {
    int seen_begin, seen_end, full_begin, full_end;  // keys that one row of the warp sees, and all of them
  } warps[S::kWarps];
  int2 intervals[S::kRows];
};

template <class S, bool kHasMask>
class ForwardTile {
  using T = typename S::T;
  using Blocks = KeyBlocks<S::kKeys, kHasMask ? Masking::Given : Masking::None>;
  static constexpr int kAhead = 1;  // fragments that are loaded before they are needed

 public:
  __device__ ForwardTile(const ForwardSm80& op, const BlockOrder& order, char* shared)
      : op_(op), tiles_(shared_address(shared)), warp_(threadIdx.x / 32), lane_(threadIdx.x % 32) {
    if (threadIdx.x == 0) {
      const auto [index, head] = order.place(blockIdx.x);
      const int row_heads = op.heads / op.packed;
      Tile<S>& tile = memory();
      tile.first_row = (order.tiles - 1 - index) * S::kRows;
      tile.batch = head / row_heads;
      tile.head = head % row_heads * op.packed;
      tile.rows = min(S::kRows, op.queries * op.packed - tile.first_row);
      const int key_head = tile.head / op.group;
      tile.k = static_cast<const T*>(op.k.data) + tile.batch * op.k.batch + key_head * op.k.head;
      tile.v = static_cast<const T*>(op.v.data) + tile.batch * op.v.batch + key_head * op.v.head;
    }
    __syncthreads();
  }

  __device__ void run() {
    find_intervals();
    load_queries();
    bool exact = false;
    for (;;) {
      stream(exact);
      const bool again = outgrown();
      if (!__syncthreads_or(again) || exact) break;
      find_maxima();
      exact = true;
    }
    write();
  }

 private:
  __device__ static char* shared() {
    extern __shared__ __align__(16) char bytes[];
    return bytes;
  }
  __device__ static Tile<S>& memory() { return *reinterpret_cast<Tile<S>*>(shared() + S::kTilesBytes); }
  /** Volatile: to be read again each time. */
  __device__ static const volatile Tile<S>& tile() { return memory(); }
  __device__ const volatile auto& limits() const { return tile().warps[warp_]; }

  __device__ int query_of(int row) const { return (tile().first_row + row) / op_.packed; }
  __device__ int head_of(int row) const { return tile().head + (tile().first_row + row) % op_.packed; }
  __device__ int last_row() const { return tile().rows - 1; }
  /** The row of the tile of this lane's elements 2 half and 2 half + 1 in fragments of row tile i. */
  __device__ int row_of(int i, int half) const {
    return warp_ * 16 * S::kRowTiles + 16 * i + lane_ / 4 + 8 * half;
  }

  __device__ int2 interval(int row) const {
    return visible_keys(op_.visible, query_of(min(row, last_row())), op_.keys);
  }

  __device__ void find_intervals() {
    Tile<S>& tile = memory();
    for (int row = threadIdx.x; row < S::kRows; row += S::kThreads) tile.intervals[row] = interval(row);
    __syncthreads();
    int begin = tile.intervals[0].x, end = tile.intervals[S::kRows - 1].y;
    if (op_.splits > 1) {
      const int length = ((end - begin + op_.splits - 1) / op_.splits + S::kKeys - 1) / S::kKeys * S::kKeys;
      begin += static_cast<int>(blockIdx.y) * length;
      end = min(end, begin + length);
    }
    if (threadIdx.x < S::kWarps) {
      const int first = static_cast<int>(threadIdx.x) * 16 * S::kRowTiles,
                last = first + 16 * S::kRowTiles - 1;
      tile.warps[threadIdx.x] = {max(tile.intervals[first].x, begin), min(tile.intervals[last].y, end),
                                 max(tile.intervals[last].x, begin), min(tile.intervals[first].y, end)};
    }
    if (threadIdx.x == 0) {
      tile.begin = begin;
      tile.end = end;
    }
    __syncthreads();
  }

  static constexpr int kChunks = S::kHeadDim / 8;
  static constexpr int kRowsAPass = 1 << (31 - __builtin_clz(S::kThreads / kChunks));

  /** Keys and values [first, first + kKeys) from global to shared memory; zeros beyond the last. */
  __device__ void load_keys(int stage, int first) {
    const int row = threadIdx.x / kChunks, column = threadIdx.x % kChunks;
    const uint32_t to = tiles_ + stage * S::kStageBytes + row * S::kPitch + column * 16;
    if (kHasMask || first + S::kKeys > op_.keys || S::kHeadDim != op_.head_dim) {
      load_some(to, tile().k, op_.k.row, first);
      load_some(to + S::kTileBytes, tile().v, op_.v.row, first);
    } else if (kRowsAPass * kChunks == S::kThreads || row < kRowsAPass) {
      // The last two calls' blocks lie side by side: the pointers move along.
#pragma unroll
      for (int r = 0; r < S::kKeys; r += kRowsAPass) copy_async(to + r * S::kPitch, k_ + r * op_.k.row);
#pragma unroll
      for (int r = 0; r < S::kKeys; r += kRowsAPass) {
        copy_async(to + S::kTileBytes + r * S::kPitch, v_ + r * op_.v.row);
      }
    }
    k_ -= S::kKeys * op_.k.row;
    v_ -= S::kKeys * op_.v.row;
  }
  __device__ void load_some(uint32_t to, const T* from, int64_t stride, int first) const {
    const int row = threadIdx.x / kChunks, column = threadIdx.x % kChunks;
    if (row >= kRowsAPass) return;
#pragma unroll 1
    for (int r = 0; r < S::kKeys; r += kRowsAPass) {
      const bool inside = column * 8 < op_.head_dim && first + row + r < op_.keys;
      copy_async(to + r * S::kPitch, inside ? from + (first + row + r) * stride + column * 8 : from, inside);
    }
  }

  __device__ void load_queries() {
    const T* const q = static_cast<const T*>(op_.q.data) + tile().batch * op_.q.batch;
#pragma unroll 1
    for (int chunk = threadIdx.x; chunk < S::kRows * kChunks; chunk += S::kThreads) {
      const int row = chunk / kChunks, column = chunk % kChunks;
      const bool inside = row < tile().rows && column * 8 < op_.head_dim;
      const T* const source =
          inside ? q + query_of(row) * op_.q.row + head_of(row) * op_.q.head + column * 8 : q;
      copy_async(tiles_ + S::kQueriesAt + row * S::kPitch + column * 16, source, inside);
    }
    commit_copies();
    if constexpr (!S::kHoldsQueries) return;
    wait_copies<0>();
    __syncthreads();
#pragma unroll
    for (int d = 0; d < S::kDepthSteps; d++) load_query_fragments(q_[d], d);
    __syncthreads();
  }

  __device__ void load_query_fragments(Fragment (&q)[S::kRowTiles], int d) const {
    const uint32_t from =
        tiles_ + S::kQueriesAt + (warp_ * 16 * S::kRowTiles + lane_ % 16) * S::kPitch + lane_ / 16 * 16;
#pragma unroll
    for (int i = 0; i < S::kRowTiles; i++) load_matrices(q[i], from + 16 * i * S::kPitch + 32 * d);
  }

  using Scores = float[S::kRowTiles][2 * S::kGroups][4];
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
    if constexpr (S::kHoldsQueries) {
      multiply<T, S::kDepthSteps, kAhead>(
          s, [&](int step, bool) -> auto& { return q_[step]; }, load_right);
    } else {
      auto left = loaded_left<S::kDepthSteps, S::kRowTiles>(
          [&](Fragment(&to)[S::kRowTiles], int step) { load_query_fragments(to, step); });
      multiply<T, S::kDepthSteps, kAhead>(
          s, [&](int step, bool begins) -> auto& { return left(step, begins); }, load_right);
    }
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

  /** Softcap, ALiBi, and -inf where a query does not see a key. */
  __device__ void adjust(Scores& s, const KeyBlock& block) {
#pragma unroll
    for (int i = 0; i < S::kRowTiles; i++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        keep_order();  // else all rows' operands are at hand at once, and the registers spill
        const int row = row_of(i, half);
        if (op_.score.has_softcap) {
#pragma unroll
          for (int j = 0; j < 2 * S::kGroups; j++) {
#pragma unroll
            for (int e = 2 * half; e < 2 * half + 2; e++) {
              s[i][j][e] = tanh_accurate(s[i][j][e] * op_.score.before_cap);
            }
          }
        }
        if (op_.score.slopes != nullptr) {
          const int query = query_of(min(row, last_row()));
          const float slope = op_.score.slopes[head_of(min(row, last_row()))] * op_.score.slope_unit;
          const int position =
              op_.score.query_positions ? op_.score.query_positions[query] : query + op_.visible.shift;
#pragma unroll
          for (int j = 0; j < 2 * S::kGroups; j++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
              const int key = block.first + 8 * j + 2 * (lane_ % 4) + e;
              const int at = op_.score.key_positions ? op_.score.key_positions[min(key, op_.keys - 1)] : key;
              s[i][j][2 * half + e] -= slope * static_cast<float>(abs(position - at));
            }
          }
        }
        const int2 seen = memory().intervals[row];
        const int begin = max(seen.x, tile().begin) - block.first - 2 * (lane_ % 4);
        const int end = min(seen.y, tile().end) - block.first - 2 * (lane_ % 4);
        constexpr int kWords = (S::kKeys + 31) / 32;
        uint32_t bits[kWords];
#pragma unroll
        for (int word = 0; word < kWords; word++) {
          bits[word] = ~0u;
          if (kHasMask && block.tile >= 0) {
            const int mask_row = query_of(min(row, last_row())) % 128;
            bits[word] = op_.mask.tiles[(static_cast<int64_t>(block.tile) * 128 + mask_row) * 4 +
                                        block.first / 32 % 4 + word] >>
                         (2 * (lane_ % 4) + block.first % 32);
          }
        }
#pragma unroll
        for (int j = 0; j < 2 * S::kGroups; j++) {
#pragma unroll
          for (int e = 0; e < 2; e++) {
            const int at = 8 * j + e;
            if (at < begin || at >= end || (kHasMask && (bits[j / 4] >> (8 * (j % 4) + e) & 1) == 0)) {
              s[i][j][2 * half + e] = kMinusInfinity;
            }
          }
        }
      }
    }
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

  __device__ bool sees(const KeyBlock& block) const {
    return block.first >= 0 && block.first < limits().seen_end &&
           block.first + S::kKeys > limits().seen_begin;
  }
  /** Whether its scores need no look at who sees what. */
  __device__ bool is_plain(const KeyBlock& block) const {
    return block.tile < 0 && block.first >= plain_begin_ && block.first <= plain_end_;
  }

  __device__ Blocks begin_blocks() {
    Blocks blocks(op_.mask, query_of(0) / 128, tile().begin, tile().end);
    stage_ = 0;
    const int row = threadIdx.x / kChunks, column = threadIdx.x % kChunks;
    k_ = tile().k + (blocks.current().first + row) * op_.k.row + column * 8;
    v_ = tile().v + (blocks.current().first + row) * op_.v.row + column * 8;
    const bool has_plain = !op_.score.has_softcap && op_.score.slopes == nullptr;
    plain_begin_ = has_plain ? limits().full_begin : INT32_MAX;
    plain_end_ = limits().full_end - S::kKeys;
    if (blocks.current().first >= 0) load_keys(0, blocks.current().first);
    commit_copies();
    return blocks;
  }
  /** The current block has arrived, and everybody is done with the one before: its stage takes the next. */
  __device__ void take(const Blocks& blocks) {
    wait_copies<0>();
    block_barrier();
    if (blocks.next().first >= 0) load_keys(1 - stage_, blocks.next().first);
    commit_copies();
  }

  __device__ void stream(bool exact) {
#pragma unroll
    for (int r = 0; r < 2 * S::kRowTiles; r++) {
      sum_[r] = 0;
      if (!exact) base_[r] = 0;
    }
    based_ = exact;
#pragma unroll
    for (int i = 0; i < S::kRowTiles; i++) {
#pragma unroll
      for (int n = 0; n < S::kColumnTiles; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) out_[i][n][e] = 0;
      }
    }
    for (Blocks blocks = begin_blocks(); blocks.current().first >= 0; blocks.advance()) {
      take(blocks);
      const bool plain = is_plain(blocks.current());
      if (plain || sees(blocks.current())) {
        Scores s;
        score(s, stage_);
        if (!plain) adjust(s, blocks.current());
        if (!based_) choose_base(s);
        accumulate(s, stage_);
      }
      stage_ = 1 - stage_;
    }
  }

  /** Whether a row's sum left the range in which it is exact. */
  __device__ bool outgrown() {
    bool any = false;
#pragma unroll
    for (int r = 0; r < 2 * S::kRowTiles; r++) {
      sum_[r] += __shfl_xor_sync(~0u, sum_[r], 1);
      sum_[r] += __shfl_xor_sync(~0u, sum_[r], 2);
      const int2 seen = memory().intervals[row_of(r / 2, r % 2)];
      const bool is_empty = max(seen.x, tile().begin) >= min(seen.y, tile().end);
      any |= !is_empty && !(sum_[r] >= Room<T>::least && sum_[r] <= Room<T>::most);
    }
    return any;
  }

  /** base from all scores. */
  __device__ void find_maxima() {
#pragma unroll
    for (int r = 0; r < 2 * S::kRowTiles; r++) base_[r] = kMinusInfinity;
    for (Blocks blocks = begin_blocks(); blocks.current().first >= 0; blocks.advance()) {
      take(blocks);
      if (sees(blocks.current())) {
        Scores s;
        score(s, stage_);
        if (!is_plain(blocks.current())) adjust(s, blocks.current());
#pragma unroll
        for (int r = 0; r < 2 * S::kRowTiles; r++) base_[r] = fmaxf(base_[r], row_maximum(s, r / 2, r % 2));
      }
      stage_ = 1 - stage_;
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 2 * S::kRowTiles; r++) {
      base_[r] = base_[r] == kMinusInfinity ? 0 : base_[r] * op_.score.exponent + Room<T>::margin;
    }
  }

  __device__ void write() {
    __syncthreads();  // the last stages are read: results may take their place
    const int64_t part = op_.splits > 1 ? blockIdx.y : 0;
    float kept[2 * S::kRowTiles];  // of what is there already
#pragma unroll
    for (int r = 0; r < 2 * S::kRowTiles; r++) {
      const int row = row_of(r / 2, r % 2);
      float inverse = sum_[r] == 0 ? 0 : 1 / sum_[r];
      float value = sum_[r] == 0 ? kMinusInfinity : (base_[r] + log2f(sum_[r])) * kLn2;
      float* const at = op_.log_sum_exp.data + (part * op_.batch + tile().batch) * op_.log_sum_exp.batch +
                        head_of(row) * op_.log_sum_exp.head + query_of(row);
      kept[r] = 0;
      if (op_.merges) {
        const float before = row < tile().rows ? *at : kMinusInfinity, most = fmaxf(before, value);
        __syncwarp();  // all have read it
        if (most != kMinusInfinity) {
          const float total = most + logf(expf(before - most) + expf(value - most));
          kept[r] = expf(before - total);
          inverse *= expf(value - total);
          value = total;
        }
      }
      if (row < tile().rows && lane_ % 4 == 0) *at = value;
#pragma unroll
      for (int n = 0; n < S::kColumnTiles; n++) {
        out_[r / 2][n][r % 2 * 2] *= inverse;
        out_[r / 2][n][r % 2 * 2 + 1] *= inverse;
      }
    }
    if (op_.out_float32) {
      write_float32(part, kept);
    } else {
      write_elements();
    }
  }

  __device__ void write_float32(int64_t part, const float (&kept)[2 * S::kRowTiles]) const {
    float* const out = static_cast<float*>(op_.out.data) + (part * op_.batch + tile().batch) * op_.out.batch;
#pragma unroll
    for (int r = 0; r < 2 * S::kRowTiles; r++) {
      const int row = row_of(r / 2, r % 2);
      if (row >= tile().rows) continue;
      float* const to = out + query_of(row) * op_.out.row + head_of(row) * op_.out.head;
#pragma unroll
      for (int n = 0; n < S::kColumnTiles; n++) {
        const int column = 8 * n + lane_ % 4 * 2;
        if (column >= op_.head_dim) continue;
        float2 result = make_float2(out_[r / 2][n][r % 2 * 2], out_[r / 2][n][r % 2 * 2 + 1]);
        auto* const place = reinterpret_cast<float2*>(to + column);
        if (op_.merges) {
          const float2 before = *place;
          result.x = fmaf(before.x, kept[r], result.x);
          result.y = fmaf(before.y, kept[r], result.y);
        }
        *place = result;
      }
    }
  }

  /** Through shared memory, so that rows leave in 16-byte pieces. */
  __device__ void write_elements() const {
#pragma unroll
    for (int r = 0; r < 2 * S::kRowTiles; r++) {
      char* const to = shared() + row_of(r / 2, r % 2) * S::kPitch + lane_ % 4 * 4;
#pragma unroll
      for (int n = 0; n < S::kColumnTiles; n++) {
        *reinterpret_cast<uint32_t*>(to + 16 * n) =
            pack<T>(out_[r / 2][n][r % 2 * 2], out_[r / 2][n][r % 2 * 2 + 1]);
      }
    }
    __syncwarp();
    T* const out = static_cast<T*>(op_.out.data) + tile().batch * op_.out.batch;
    constexpr int kWarpRows = 16 * S::kRowTiles;
#pragma unroll 1
    for (int chunk = lane_; chunk < kWarpRows * kChunks; chunk += 32) {
      const int row = warp_ * kWarpRows + chunk / kChunks, column = chunk % kChunks;
      if (row >= tile().rows || column * 8 >= op_.head_dim) continue;
      *reinterpret_cast<uint4*>(out + query_of(row) * op_.out.row + head_of(row) * op_.out.head +
                                column * 8) =
          *reinterpret_cast<const uint4*>(shared() + row * S::kPitch + column * 16);
    }
  }

  const ForwardSm80& op_;
  const uint32_t tiles_;
  const int warp_, lane_;
  bool based_;
  int stage_;        // of the current block
  const T *k_, *v_;  // what this thread copies next
  int plain_begin_, plain_end_;
  uint32_t q_[S::kHeldSteps][S::kRowTiles][4];
  float out_[S::kRowTiles][S::kColumnTiles][4];
  float base_[2 * S::kRowTiles], sum_[2 * S::kRowTiles];
};

template <class S, bool kHasMask>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    forward_kernel(const __grid_constant__ ForwardSm80 op, BlockOrder order) {
  extern __shared__ __align__(16) char shared[];
  ForwardTile<S, kHasMask>(op, order, shared).run();
}

template <class S, bool kHasMask>
void launch_shape(const Cuda& cuda, const ForwardSm80& op) {
  const BlockOrder order = order_query_tiles(cuda, op, S::kRows, sizeof(typename S::T), S::kBlocks);
  launch<forward_kernel<S, kHasMask>>(cuda, order.grid(op.splits), S::kThreads, S::kSharedBytes, op, order);
}

/**
 * Measured on an H100 (bench/RESULTS.md). Queries are held in registers where those suffice. 48 keys a stage
 * leave registers for operands that are loaded ahead at D 128; a mask's blocks of 128 are cut in 64.
 */
template <class T, bool kHasMask>
void launch_typed(const Cuda& cuda, const ForwardSm80& op) {
  if (op.head_dim <= 64) {
    launch_shape<Shape<T, 64, 4, 2, 64, 2, true>, kHasMask>(cuda, op);
  } else if (op.head_dim <= 80) {
    launch_shape<Shape<T, 80, 4, 2, 64, 2, false>, kHasMask>(cuda, op);
  } else if (op.head_dim <= 96) {
    launch_shape<Shape<T, 96, 4, 2, kHasMask ? 64 : 48, 2, false>, kHasMask>(cuda, op);
  } else if (op.head_dim <= 128) {
    launch_shape<Shape<T, 128, 4, 2, kHasMask ? 32 : 48, 2, false>, kHasMask>(cuda, op);
  } else {
    using Large = Shape<T, 256, 8, 1, 32, 1, false>;
    using Small =
        Shape<T, 256, 4, 1, 16, 1, false>;  // compute capability 8.6, 8.9 and 12 have no more memory
    static_assert(Small::kSharedBytes <= 99 << 10);
    if (Large::kSharedBytes <= cuda.gpu->shared_bytes) {
      launch_shape<Large, kHasMask>(cuda, op);
    } else {
      launch_shape<Small, kHasMask>(cuda, op);
    }
  }
}

}  // namespace

void launch_forward_sm80(const Cuda& cuda, DType dtype, const ForwardSm80& op) {
  const auto typed = [&]<class T>(T) {
    if (op.mask.first_run != nullptr) {
      launch_typed<T, true>(cuda, op);
    } else {
      launch_typed<T, false>(cuda, op);
    }
  };
  if (dtype == DType::BFloat16) {
    typed(Bf16{});
  } else {
    typed(Half{});
  }
}

}  // namespace longseq
