#pragma once
// From sums of dq to dq, of 16 bits, by warps that have nothing else to do: those of the backward kernels
// that are done or that wait, and behind them those of a pass of its own, which take what is left.
// Nobody waits for sums: a head whose sums are not complete is left to whoever comes later.
#include "attention/attention_sm80.h"
#include "core/division.h"
#include "tile/sm80.h"
#include "tile/sum.h"

namespace longseq {

inline constexpr int kSumRows = 16;  // that a warp takes at a time, of one head

/** Tiles of kSumRows queries of a head; heads that share keys have theirs one behind the other. */
__device__ inline int sum_tiles(const ForwardSm80& op) { return ceil_div(op.queries, kSumRows); }

/** What BackwardSm80 calls statistics, of a query. */
__device__ inline float2 row_statistics(float log_sum_exp, float delta) {
  constexpr float kLog2e = 1.4426950408889634f;
  return log_sum_exp == -INFINITY ? make_float2(INFINITY, 0) : make_float2(log_sum_exp * kLog2e, delta);
}

/** Where the sums of a head's rows are. */
__device__ inline float* sums_of(const BackwardSm80& op, int pair, int first_row) {
  return op.dq_sum + (pair * op.padded_queries + first_row) * op.dq_columns;
}

/**
 * kSumRows rows of a head, of T in memory, on 16 bytes. Reads kTiles tiles of 16 x 8 sums at a time, by
 * load(first column, values). A lane has two neighbours of each in rows r and r + 8; as 16-bit elements lanes
 * of a row exchange theirs, of four tiles or two, so that each writes 16 bytes of it, or 8.
 */
template <class T, int kTiles, class Load>
__device__ void finish_rows(const BackwardSm80& op, int pair, int first_row, const Load& load) {
  constexpr int kWords = kTiles < 4 ? kTiles : 4;
  const int lane = static_cast<int>(threadIdx.x) % 32, place = lane % 4, head_dim = op.forward.head_dim;
  const int batch = pair / op.forward.heads, head = pair % op.forward.heads, row = first_row + lane / 4;
  const int column = 8 * (place % kWords) + 2 * (place / kWords * kWords);
  T* const to =
      static_cast<T*>(op.dq.data) + batch * op.dq.batch + head * op.dq.head + row * op.dq.row + column;
#pragma unroll 1
  for (int first = 0; first < head_dim; first += 8 * kTiles) {
    float values[kTiles][4] = {};
#pragma unroll
    for (int n = 0; n < kTiles; n++) {
      if (first + 8 * n < head_dim) load(first + 8 * n, values[n]);
    }
#pragma unroll
    for (int part = 0; part < kTiles; part += kWords) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        uint32_t words[kWords];
#pragma unroll
        for (int n = 0; n < kWords; n++) {
          const float(&x)[4] = values[part + n];
          words[n] = sm80::pack<T>(x[2 * half] * op.sum_scale, x[2 * half + 1] * op.sum_scale);
        }
        sm80::transpose_words(words);
        const int begin = first + 8 * part;
        if (row + 8 * half >= op.forward.queries || begin + column >= head_dim) continue;
        T* const there = to + 8 * half * op.dq.row + begin;
        if constexpr (kWords == 4) {
          *reinterpret_cast<uint4*>(there) = make_uint4(words[0], words[1], words[2], words[3]);
        } else {
          *reinterpret_cast<uint2*>(there) = make_uint2(words[0], words[1]);
        }
      }
    }
  }
}

/** The same from where the sums are; `is_of_sm90` as of `load_four`. */
template <class T, int kTiles>
__device__ void finish_rows(const BackwardSm80& op, int pair, int first_row, bool is_of_sm90 = false) {
  const float* const sums = sums_of(op, pair, first_row);
  finish_rows<T, kTiles>(op, pair, first_row, [&](int column, float(&values)[4]) {
    load_four(sums + sum_offset(0, column, 0), static_cast<int>(threadIdx.x) % 32, values, is_of_sm90);
  });
}

/** A head to which all of its `blocks` have added and of which rows are left; -1: there is none. */
__device__ inline int complete_head(const BackwardSm80& op, int blocks) {
  const int lane = static_cast<int>(threadIdx.x) % 32, group = op.forward.group;
  const int heads = op.forward.batch * (op.forward.heads / group), tiles = group * sum_tiles(op.forward);
  for (int first = 0; first < heads; first += 32) {
    bool is_complete = false;
    if (first + lane < heads) {
      const int2 seen = sm80::load_relaxed(&op.progress[first + lane]);
      is_complete = seen.x == blocks && seen.y < tiles;
    }
    const uint32_t complete = __ballot_sync(~0u, is_complete);
    if (complete != 0) {
      sm80::fence_of_gpu();
      __syncwarp();
      return first + __ffs(static_cast<int>(complete)) - 1;
    }
  }
  return -1;
}

/** finish(pair, first row) for rows of heads to which all of their `blocks` have added, until there are none,
 * or ends(). */
template <class Finish, class Ends>
__device__ void finish_complete_heads(const BackwardSm80& op, int blocks, const Finish& finish,
                                      const Ends& ends) {
  const int group = op.forward.group, tiles = sum_tiles(op.forward);
  for (int head = complete_head(op, blocks); head >= 0; head = complete_head(op, blocks)) {
    for (;;) {
      if (ends()) return;
      int tile = 0;
      if (threadIdx.x % 32 == 0) tile = atomicAdd(&op.progress[head].taken, 1);
      tile = __shfl_sync(~0u, tile, 0);
      if (tile >= group * tiles) break;
      finish(head * group + tile / tiles, tile % tiles * kSumRows);
    }
  }
}

}  // namespace longseq
