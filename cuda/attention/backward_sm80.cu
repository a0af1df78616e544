// Flash attention backward for compute capability 8.0 and later (mma.sync, ldmatrix, cp.async).
//
// A block keeps kKeys keys and values of one head, and their gradients in registers, and streams the queries
// that see them, kRows at a time, for each query head of the group:
//
//   S = q k^T     P = exp2(c S - lse)     dP = dout v^T     dS = P * (dP - delta)
//   dv += P^T dout     dk += dS^T q     dq += dS k
//
// dq is summed in float32 in global memory, since many blocks add to a query. For S and dP each warp takes 32
// queries and kWarpKeys keys; P and dS pass through shared memory to the warps of the other three products,
// of which each takes 32 keys (or queries) and a share of the columns.
//
// May spill registers: a few words, where masks or scores are adjusted and not beside the products.
#include "attention/attention_sm80.h"
#include "core/cuda.h"
#include "tile/sm80.h"
#include "tile/sum.h"

namespace longseq {
namespace {

using namespace sm80;

constexpr float kMinusInfinity = -INFINITY;

template <class Element, int kHeadDim_, int kRows_, int kKeys_, int kWarpKeys_, int kBlocks_>
struct Shape {
  using T = Element;
  static constexpr int kHeadDim = kHeadDim_, kRows = kRows_, kKeys = kKeys_, kWarpKeys = kWarpKeys_,
                       kBlocks = kBlocks_;
  static constexpr int kRowWarps = kRows / 32, kKeyWarps = kKeys / kWarpKeys;
  static constexpr int kWarps = kRowWarps * kKeyWarps, kThreads = 32 * kWarps;
  // Of the products that sum over queries, and of the one that sums over keys.
  static constexpr int kKeyGradientColumns = kHeadDim / (kWarps / (kKeys / 32));
  static constexpr int kQueryGradientColumns = kHeadDim / (kWarps / kRowWarps);
  static constexpr int kDepthSteps = kHeadDim / 16;
  // An odd number of 16-byte chunks a row: the eight rows of a matrix then lie in different banks.
  static constexpr int kPitch = (kHeadDim / 8 | 1) * 16, kScorePitch = (kKeys / 8 | 1) * 16;  // in bytes
  static constexpr int kKeyBytes = kKeys * kPitch, kRowBytes = kRows * kPitch,
                       kScoreBytes = kRows * kScorePitch;
  // k, v, q twice, dout, P, dS.
  static constexpr int kQueriesAt = 2 * kKeyBytes, kGradientsAt = kQueriesAt + 2 * kRowBytes;
  static constexpr int kWeightsAt = kGradientsAt + kRowBytes, kScoresAt = kWeightsAt + kScoreBytes;
  static constexpr int kSharedBytes = kScoresAt + kScoreBytes;
  static_assert(kKeyGradientColumns % 16 == 0 && kQueryGradientColumns % 16 == 0);
};

/** The tiles of queries that see something of a block of keys, the first one first. */
struct RowTile {
  int32_t first = -1;  // query; -1: none
  int32_t tile = -1;   // of the mask, or -1
};

template <int kRows, bool kHasMask>
class RowTiles;

/** Blocks that run at the same time begin at different tiles, or they would all add to the same dq at once.
 */
template <int kRows>
class RowTiles<kRows, false> {
 public:
  __device__ RowTiles(const GpuMask&, int first_key, int begin, int end)
      : begin_(begin / kRows * kRows),
        end_(end),
        left_(end > begin ? (end - begin_ + kRows - 1) / kRows : 0) {
    walk_ = left_ > 0 ? begin_ + first_key / kRows % left_ * kRows : 0;
  }
  __device__ RowTile next() {
    if (left_-- <= 0) return {};
    const int first = walk_;
    walk_ = walk_ + kRows < end_ ? walk_ + kRows : begin_;
    return {first, -1};
  }

 private:
  int begin_, end_, left_, walk_;
};

template <int kRows>
class RowTiles<kRows, true> {
 public:
  __device__ RowTiles(const GpuMask& columns, int first_key, int begin, int end)
      : columns_(columns),
        walk_(begin / kRows * kRows),
        end_(end),
        run_(columns.first_run[first_key / 128]),
        last_run_(columns.first_run[first_key / 128 + 1]) {}
  __device__ RowTile next() {
    while (run_ < last_run_) {
      const GpuBlockRun run = columns_.runs[run_];
      walk_ = max(walk_, run.begin * 128);
      if (walk_ >= end_) break;
      if (walk_ >= run.end * 128) {
        run_++;
        continue;
      }
      const int tile = run.tile < 0 ? -1 : columns_.tile_index[run.tile + walk_ / 128 - run.begin];
      walk_ += kRows;
      return {walk_ - kRows, tile};
    }
    return {};
  }

 private:
  const GpuMask& columns_;
  int walk_, end_, run_, last_run_;
};

template <class S, bool kHasMask>
class BackwardTile {
  using T = typename S::T;
  using Fragment = uint32_t[4];
  static constexpr int kChunks = S::kHeadDim / 8;
  static constexpr int kRowsAPass = 1 << (31 - __builtin_clz(S::kThreads / kChunks));

 public:
  __device__ BackwardTile(const BackwardSm80& op, char* shared)
      : op_(op),
        shared_(shared),
        tiles_(shared_address(shared)),
        warp_(thread_index() / 32),
        lane_(thread_index() % 32) {
    const ForwardSm80& forward = op.forward;
    const int key_heads = forward.heads / forward.group, pairs = key_heads * forward.batch;
    first_key_ = static_cast<int>(blockIdx.x / pairs) * S::kKeys;
    batch_ = static_cast<int>(blockIdx.x % pairs) / key_heads;
    key_head_ = static_cast<int>(blockIdx.x % pairs) % key_heads;
  }

  __device__ void run() {
    const ForwardSm80& forward = op_.forward;
    load_rows<S::kKeys>(tiles_, rows_of(forward.k, key_head_), forward.k.row, first_key_, forward.keys);
    load_rows<S::kKeys>(tiles_ + S::kKeyBytes, rows_of(forward.v, key_head_), forward.v.row, first_key_,
                        forward.keys);
    commit_copies();
    clear(dk_);
    clear(dv_);
    const int2 seen = seeing_queries();
    for (int head = key_head_ * forward.group; head < (key_head_ + 1) * forward.group; head++) {
      stream(head, seen);
    }
    wait_copies<0>();  // where nobody sees the keys, their own copies are still under way
    write(dv_, op_.dv, 1, op_.dv_float32);
    write(dk_, op_.dk, op_.scale, op_.dk_float32);
  }

 private:
  using KeyGradient = float[2][S::kKeyGradientColumns / 8][4];
  using Scores = float[2][S::kWarpKeys / 8][4];

  __device__ static void clear(KeyGradient& gradient) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
      for (int n = 0; n < S::kKeyGradientColumns / 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) gradient[i][n][e] = 0;
      }
    }
  }

  __device__ const T* rows_of(const GpuRows& rows, int head) const {
    return static_cast<const T*>(rows.data) + batch_ * rows.batch + head * rows.head;
  }

  __device__ int2 interval(int query) const {
    const GpuIntervals& visible = op_.forward.visible;
    if (visible.begin != nullptr) return make_int2(visible.begin[query], visible.end[query]);
    const int64_t position = int64_t{query} + visible.shift, keys = op_.forward.keys;
    const int64_t begin = max(position - visible.left, int64_t{0}),
                  end = min(position + visible.right + 1, keys);
    return make_int2(static_cast<int>(min(begin, keys)), static_cast<int>(max(end, int64_t{0})));
  }

  /** The queries outside of this see none of the block's keys: intervals only move forward. */
  __device__ int2 seeing_queries() const {
    const int last_key = min(first_key_ + S::kKeys, op_.forward.keys) - 1;
    const auto first_where = [&](auto holds) {
      int low = 0, high = op_.forward.queries;
      while (low < high) {
        const int middle = low + (high - low) / 2;
        if (holds(interval(middle))) {
          high = middle;
        } else {
          low = middle + 1;
        }
      }
      return low;
    };
    return make_int2(first_where([&](int2 keys) { return keys.y > first_key_; }),
                     first_where([&](int2 keys) { return keys.x > last_key; }));
  }

  /** Rows [first, first + count) of [rows x D], from global to shared memory; zeros from `limit` on. */
  template <int count>
  __device__ void load_rows(uint32_t to, const T* from, int64_t stride, int first, int limit) const {
    const int thread = warp_ * 32 + lane_, row = thread / kChunks, column = thread % kChunks;
    if (kRowsAPass * kChunks != S::kThreads && row >= kRowsAPass) return;
    const T* const source = from + (first + row) * stride + column * 8;
    to += row * S::kPitch + column * 16;
    if (first + count <= limit && op_.forward.head_dim == S::kHeadDim) {
#pragma unroll
      for (int r = 0; r < count; r += kRowsAPass) copy_async(to + r * S::kPitch, source + r * stride);
    } else {
#pragma unroll 1
      for (int r = 0; r < count; r += kRowsAPass) {
        const bool inside = column * 8 < op_.forward.head_dim && first + row + r < limit;
        copy_async(to + r * S::kPitch, inside ? source + r * stride : from, inside);
      }
    }
  }

  /** acc += a b^T, both as rows in shared memory: 32 rows of a, 8 kTiles of b. */
  template <int kTiles>
  __device__ void multiply_rows(float (&c)[2][kTiles][4], uint32_t a, uint32_t b) const {
    const uint32_t a_at = a + lane_ % 16 * S::kPitch + lane_ / 16 * 16;
    const uint32_t b_at = b + (lane_ % 8 + lane_ / 16 * 8) * S::kPitch + lane_ / 8 % 2 * 16;
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
      for (int n = 0; n < kTiles; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) c[i][n][e] = 0;
      }
    }
    Fragment left[2][2], right[2][kTiles / 2];
    const auto load = [&](int step) {
#pragma unroll
      for (int i = 0; i < 2; i++) load_matrices(left[step % 2][i], a_at + 16 * i * S::kPitch + 32 * step);
#pragma unroll
      for (int n = 0; n < kTiles / 2; n++) {
        load_matrices(right[step % 2][n], b_at + 16 * n * S::kPitch + 32 * step);
      }
    };
    load(0);
#pragma unroll
    for (int step = 0; step < S::kDepthSteps; step++) {
      if (step + 1 < S::kDepthSteps) load(step + 1);
#pragma unroll
      for (int n = 0; n < kTiles; n++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
          multiply_add<T>(c[i][n], left[step % 2][i], right[step % 2][n / 2][n % 2 * 2],
                          right[step % 2][n / 2][n % 2 * 2 + 1]);
        }
      }
    }
  }

  /**
   * c += a b over `kDepth` rows of b [depth x columns]. a is [rows x depth], or where kTransposed its
   * transpose [depth x rows]; 32 rows of c, 8 kTiles columns.
   */
  template <bool kTransposed, int kDepth, int kTiles>
  __device__ void multiply_columns(float (&c)[2][kTiles][4], uint32_t a, uint32_t b) const {
    const uint32_t a_at = kTransposed ? a + (lane_ % 8 + lane_ / 16 * 8) * S::kScorePitch + lane_ / 8 % 2 * 16
                                      : a + lane_ % 16 * S::kScorePitch + lane_ / 16 * 16;
    const uint32_t b_at = b + lane_ % 16 * S::kPitch + lane_ / 16 * 16;
    Fragment left[2][2], right[2][kTiles / 2];
    const auto load = [&](int step) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        if constexpr (kTransposed) {
          load_matrices_transposed(left[step % 2][i], a_at + 16 * step * S::kScorePitch + 32 * i);
        } else {
          load_matrices(left[step % 2][i], a_at + 16 * i * S::kScorePitch + 32 * step);
        }
      }
#pragma unroll
      for (int n = 0; n < kTiles / 2; n++) {
        load_matrices_transposed(right[step % 2][n], b_at + 16 * step * S::kPitch + 32 * n);
      }
    };
    load(0);
#pragma unroll
    for (int step = 0; step < kDepth / 16; step++) {
      if (step + 1 < kDepth / 16) load(step + 1);
#pragma unroll
      for (int n = 0; n < kTiles; n++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
          multiply_add<T>(c[i][n], left[step % 2][i], right[step % 2][n / 2][n % 2 * 2],
                          right[step % 2][n / 2][n % 2 * 2 + 1]);
        }
      }
    }
  }

  __device__ int row_of(int i, int half) const {
    return warp_ % S::kRowWarps * 32 + 16 * i + lane_ / 4 + 8 * half;
  }

  __device__ int position_of(int query) const {
    const GpuScore& score = op_.forward.score;
    return score.query_positions ? score.query_positions[query] : query + op_.forward.visible.shift;
  }
  __device__ float distance(int position, int key) const {
    const int32_t* const positions = op_.forward.score.key_positions;
    return static_cast<float>(abs(position - (positions ? positions[min(key, op_.forward.keys - 1)] : key)));
  }

  /** Softcap's hyperbolic tangent, ALiBi, and -inf where a query does not see a key. */
  __device__ void adjust(Scores& s, const RowTile& rows, int head) const {
    const ForwardSm80& forward = op_.forward;
    const int first_key = first_key_ + warp_ / S::kRowWarps * S::kWarpKeys, column = 2 * (lane_ % 4);
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        keep_order();  // else all rows' operands are at hand at once, and the registers spill
        const int query = min(rows.first + row_of(i, half), forward.queries - 1);
        if (forward.score.has_softcap) {
#pragma unroll
          for (int j = 0; j < S::kWarpKeys / 8; j++) {
#pragma unroll
            for (int e = 2 * half; e < 2 * half + 2; e++) {
              s[i][j][e] = tanh_accurate(s[i][j][e] * forward.score.before_cap);
            }
          }
        }
        if (forward.score.slopes != nullptr) {
          const float slope = forward.score.slopes[head] * forward.score.slope_unit;
          const int position = position_of(query);
#pragma unroll
          for (int j = 0; j < S::kWarpKeys / 8; j++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
              s[i][j][2 * half + e] -= slope * distance(position, first_key + 8 * j + column + e);
            }
          }
        }
        const int2 seen = interval(query);
        const int begin = seen.x - first_key - column, end = seen.y - first_key - column;
        constexpr int kWords = (S::kWarpKeys + 31) / 32;
        uint32_t bits[kWords];
#pragma unroll
        for (int word = 0; word < kWords; word++) {
          bits[word] = ~0u;
          if (kHasMask && rows.tile >= 0) {
            bits[word] =
                forward.mask
                    .tiles[(int64_t{rows.tile} * 128 + query % 128) * 4 + first_key / 32 % 4 + word] >>
                (column + first_key % 32);
          }
        }
#pragma unroll
        for (int j = 0; j < S::kWarpKeys / 8; j++) {
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

  __device__ bool is_plain(const RowTile& rows) const {
    if (rows.tile >= 0 || op_.forward.score.has_softcap || op_.forward.score.slopes != nullptr) return false;
    const int last = min(rows.first + S::kRows, op_.forward.queries) - 1;
    return interval(last).x <= first_key_ && interval(rows.first).y >= first_key_ + S::kKeys;
  }

  /** A tile of 32 x kWarpKeys to the shared memory at `to`, in elements. */
  __device__ void store(const Scores& s, int to) const {
    char* const at = shared_ + to + row_of(0, 0) * S::kScorePitch +
                     (warp_ / S::kRowWarps * S::kWarpKeys + lane_ % 4 * 2) * 2;
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int j = 0; j < S::kWarpKeys / 8; j++) {
          *reinterpret_cast<uint32_t*>(at + (16 * i + 8 * half) * S::kScorePitch + 16 * j) =
              pack<T>(s[i][j][2 * half], s[i][j][2 * half + 1]);
        }
      }
    }
  }

  __device__ void stream(int head, int2 seen) {
    const ForwardSm80& forward = op_.forward;
    RowTiles<S::kRows, kHasMask> tiles(op_.mask_columns, first_key_, seen.x, seen.y);
    RowTile rows = tiles.next();
    if (rows.first < 0) return;
    const T *const q = rows_of(forward.q, head), *const dout = rows_of(op_.dout, head);
    const float2* const statistics =
        op_.statistics + (int64_t{batch_} * forward.heads + head) * op_.padded_queries;
    float* const dq =
        op_.dq_sum + (int64_t{batch_} * forward.heads + head) * op_.padded_queries * S::kHeadDim;
    __syncthreads();  // the head before is read
    load_rows<S::kRows>(tiles_ + S::kQueriesAt, q, forward.q.row, rows.first, forward.queries);
    load_rows<S::kRows>(tiles_ + S::kGradientsAt, dout, op_.dout.row, rows.first, forward.queries);
    commit_copies();
    const uint32_t rows_at = warp_ % S::kRowWarps * 32 * S::kPitch;
    const uint32_t keys_at = warp_ / S::kRowWarps * S::kWarpKeys * S::kPitch;
    // The warp's share of the other products: which 32 keys or queries, which columns.
    constexpr int kKeyTiles = S::kKeys / 32;
    const int key_tile = warp_ % kKeyTiles, key_column = warp_ / kKeyTiles * S::kKeyGradientColumns;
    const int row_tile = warp_ % S::kRowWarps, row_column = warp_ / S::kRowWarps * S::kQueryGradientColumns;
    for (int stage = 0; rows.first >= 0; stage = 1 - stage) {
      const uint32_t queries_at = S::kQueriesAt + stage * S::kRowBytes;
      const RowTile next = tiles.next();
      float2 row_statistics[2][2];  // log-sum-exp in powers of 2, delta
#pragma unroll
      for (int r = 0; r < 4; r++)
        row_statistics[r / 2][r % 2] = statistics[rows.first + row_of(r / 2, r % 2)];
      wait_copies<0>();
      __syncthreads();  // the tile has arrived, and everybody is done with the P, dS and queries before it
      if (next.first >= 0) {
        load_rows<S::kRows>(tiles_ + S::kQueriesAt + (1 - stage) * S::kRowBytes, q, forward.q.row, next.first,
                            forward.queries);
      }
      commit_copies();
      Scores s, ds;
      multiply_rows(s, tiles_ + queries_at + rows_at, tiles_ + keys_at);
      const bool plain = is_plain(rows);
      if (!plain) adjust(s, rows, head);
      const bool capped = forward.score.has_softcap;
#pragma unroll
      for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int j = 0; j < S::kWarpKeys / 8; j++) {
#pragma unroll
          for (int e = 0; e < 4; e++) {
            ds[i][j][e] =
                exp2_approximate(fmaf(s[i][j][e], forward.score.exponent, -row_statistics[i][e / 2].x));
          }
        }
      }
      store(ds, S::kWeightsAt);
      if (!capped) {
#pragma unroll
        for (int e = 0; e < 2 * S::kWarpKeys / 8 * 4; e++) {
          s[e / (S::kWarpKeys / 2)][e / 4 % (S::kWarpKeys / 8)][e % 4] =
              ds[e / (S::kWarpKeys / 2)][e / 4 % (S::kWarpKeys / 8)][e % 4];
        }
      }
      multiply_rows(ds, tiles_ + S::kGradientsAt + rows_at, tiles_ + S::kKeyBytes + keys_at);
      if (capped) uncap(s, rows, head, row_statistics);
#pragma unroll
      for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int j = 0; j < S::kWarpKeys / 8; j++) {
#pragma unroll
          for (int e = 0; e < 4; e++) ds[i][j][e] = s[i][j][e] * (ds[i][j][e] - row_statistics[i][e / 2].y);
        }
      }
      store(ds, S::kScoresAt);
      __syncthreads();  // P and dS are there
      multiply_columns<true, S::kRows>(dv_, tiles_ + S::kWeightsAt + key_tile * 64,
                                       tiles_ + S::kGradientsAt + key_column * 2);
      __syncthreads();  // everybody is done with dout
      if (next.first >= 0) {
        load_rows<S::kRows>(tiles_ + S::kGradientsAt, dout, op_.dout.row, next.first, forward.queries);
      }
      commit_copies();
      multiply_columns<true, S::kRows>(dk_, tiles_ + S::kScoresAt + key_tile * 64,
                                       tiles_ + queries_at + key_column * 2);
      float sum[2][S::kQueryGradientColumns / 8][4] = {};
      multiply_columns<false, S::kKeys>(sum, tiles_ + S::kScoresAt + row_tile * 32 * S::kScorePitch,
                                        tiles_ + row_column * 2);
      float* const to =
          dq + sum_offset(rows.first + row_tile * 32, row_column, S::kHeadDim) + sum_lane_offset(lane_);
#pragma unroll
      for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int n = 0; n < S::kQueryGradientColumns / 8; n++) {
          add_four(to + 16 * i * S::kHeadDim + 128 * n, sum[i][n]);
        }
      }
      rows = next;
    }
  }

  /** From adjusted scores to weights times the derivative of the softcap. */
  __device__ void uncap(Scores& s, const RowTile& rows, int head,
                        const float2 (&row_statistics)[2][2]) const {
    const GpuScore& score = op_.forward.score;
    const int first_key = first_key_ + warp_ / S::kRowWarps * S::kWarpKeys + 2 * (lane_ % 4);
    const float slope = score.slopes ? score.slopes[head] * score.slope_unit : 0;
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
      for (int j = 0; j < S::kWarpKeys / 8; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
          if (s[i][j][e] == kMinusInfinity) {
            s[i][j][e] = 0;
            continue;
          }
          float tangent = s[i][j][e];
          if (score.slopes) {
            const int query = min(rows.first + row_of(i, e / 2), op_.forward.queries - 1);
            tangent += slope * distance(position_of(query), first_key + 8 * j + e % 2);
          }
          s[i][j][e] = exp2_approximate(fmaf(s[i][j][e], score.exponent, -row_statistics[i][e / 2].x)) *
                       (1 - tangent * tangent);
        }
      }
    }
  }

  __device__ void write(const KeyGradient& gradient, const GpuRows& rows, float factor,
                        bool is_float32) const {
    constexpr int kKeyTiles = S::kKeys / 32;
    const int first_row = warp_ % kKeyTiles * 32, first_column = warp_ / kKeyTiles * S::kKeyGradientColumns;
    const int head_dim = op_.forward.head_dim, keys = op_.forward.keys;
    const int64_t base = batch_ * rows.batch + key_head_ * rows.head;
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int key = first_key_ + first_row + 16 * i + 8 * half + lane_ / 4;
        if (key >= keys) continue;
#pragma unroll
        for (int n = 0; n < S::kKeyGradientColumns / 8; n++) {
          const int column = first_column + 8 * n + lane_ % 4 * 2;
          if (column >= head_dim) continue;
          const float low = gradient[i][n][2 * half] * factor, high = gradient[i][n][2 * half + 1] * factor;
          const int64_t at = base + key * rows.row + column;
          if (is_float32) {
            *reinterpret_cast<float2*>(static_cast<float*>(rows.data) + at) = make_float2(low, high);
          } else {
            *reinterpret_cast<uint32_t*>(static_cast<T*>(rows.data) + at) = pack<T>(low, high);
          }
        }
      }
    }
  }

  const BackwardSm80& op_;
  char* const shared_;
  const uint32_t tiles_;
  const int warp_, lane_;
  int first_key_, batch_, key_head_;
  KeyGradient dk_, dv_;
};

template <class S, bool kHasMask>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    backward_kernel(const __grid_constant__ BackwardSm80 op) {
  extern __shared__ __align__(16) char shared[];
  BackwardTile<S, kHasMask>(op, shared).run();
}

template <class S, bool kHasMask>
void launch_shape(const Cuda& cuda, const BackwardSm80& op) {
  const int64_t pairs = int64_t{op.forward.heads} / op.forward.group * op.forward.batch;
  const int64_t blocks = (int64_t{op.forward.keys} + S::kKeys - 1) / S::kKeys * pairs;
  launch<backward_kernel<S, kHasMask>>(cuda, dim3(static_cast<unsigned>(blocks)), S::kThreads,
                                       S::kSharedBytes, op);
}

template <class T, bool kHasMask>
void launch_typed(const Cuda& cuda, const BackwardSm80& op) {
  switch (backward_columns_sm80(op.forward.head_dim)) {
    case 64:
      return launch_shape<Shape<T, 64, 64, 128, 32, 1>, kHasMask>(cuda, op);
    case 96:
      return launch_shape<Shape<T, 96, 64, kHasMask ? 64 : 96, 32, 1>, kHasMask>(cuda, op);
    case 128:
      return launch_shape<Shape<T, 128, 64, 128, 32, 1>, kHasMask>(cuda, op);
    default:
      return launch_shape<Shape<T, 256, 64, 64, 16, 1>, kHasMask>(cuda, op);
  }
}

}  // namespace

int backward_columns_sm80(int head_dim) {
  return head_dim <= 64 ? 64 : head_dim <= 96 ? 96 : head_dim <= 128 ? 128 : 256;
}

void launch_backward_sm80(const Cuda& cuda, DType dtype, const BackwardSm80& op) {
  const auto typed = [&]<class T>(T) {
    if (op.forward.mask.first_run != nullptr) {
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
