#pragma once
// The forward kernel's rows for compute capability 9.0: what a warpgroup has of them, and how they leave.
#include "attention/attention_sm80.h"
#include "attention/merged_row.h"
#include "tile/sm90.h"

namespace longseq {

/** A warpgroup's 64 rows of a tile. S, the kernel's shape, says where the results pass through shared memory.
 */
template <class S>
class ForwardRows {
  using T = typename S::T;

 protected:
  __device__ explicit ForwardRows(const ForwardSm80& op)
      : op_(op),
        group_(static_cast<int>(threadIdx.x) / 128 - 1),
        warp_(static_cast<int>(threadIdx.x) / 32 % 4),
        lane_(static_cast<int>(threadIdx.x) % 32) {}

  __device__ static char* shared() { return sm90::aligned_memory(); }
  /** The row of the tile of this lane's elements 4 j + 2 half and 4 j + 2 half + 1. */
  __device__ int row_of(int half) const { return 64 * group_ + 16 * warp_ + lane_ / 4 + 8 * half; }

  template <class Tile>
  __device__ void write(const Tile& tile) {
    const int64_t part = op_.splits > 1 ? tile.part : 0;
    float kept[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = row_of(half);
      float sum = sum_[half];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      float inverse = sum == 0 ? 0 : 1 / sum;
      float value = sum == 0 ? -INFINITY : (base_[half] + log2f(sum)) * 0.6931471805599453f;
      float* const at = op_.log_sum_exp.data + (part * op_.batch + tile.batch) * op_.log_sum_exp.batch +
                        tile.head_of(op_, row) * op_.log_sum_exp.head + tile.query(op_, row);
      kept[half] = 0;
      if (op_.before.data != nullptr) {
        const float before = row < tile.rows(op_) ? *at : -INFINITY;
        __syncwarp();  // all have read it
        kept[half] = merge_row(before, value, inverse);
      }
      if (row < tile.rows(op_) && lane_ % 4 == 0) *at = value;
#pragma unroll
      for (int i = half; i < S::kHeadDim / 4; i += 2) {
        out_[2 * i] *= inverse;
        out_[2 * i + 1] *= inverse;
      }
    }
    if (op_.before.data != nullptr) add_before(tile, kept);
    if (op_.out_float32) {
      write_float32(tile, part);
    } else {
      write_elements(tile);
    }
  }

  const ForwardSm80& op_;
  const int group_, warp_, lane_;
  bool has_base_[2];
  float base_[2], sum_[2];  // of a lane's part of two rows
  float out_[S::kHeadDim / 2];

 private:
  /** Where the tile's first row lies in `rows`. */
  template <class Tile>
  __device__ static int64_t first_of(const Tile& tile, const GpuRows& rows) {
    return tile.batch * rows.batch + tile.head * rows.head + tile.first_query * rows.row;
  }
  /** Columns of this lane's row, none where it has none. */
  template <class Tile>
  __device__ int columns_of(const Tile& tile, int half) const {
    return row_of(half) < tile.rows(op_) ? op_.head_dim : 0;
  }

  /** out += kept times what the call merges with. */
  template <class Tile>
  __device__ void add_before(const Tile& tile, const float (&kept)[2]) {
    const float* const from = static_cast<const float*>(op_.before.data) + first_of(tile, op_.before);
    // On their way at once: a row's, but at D 256 of eight tiles.
    constexpr int kColumns = S::kHeadDim / 8, kTogether = S::kHeadDim > 128 ? 8 : kColumns;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float* const row = from + Tile::offset(op_, op_.before, row_of(half)) + lane_ % 4 * 2;
      const int columns = columns_of(tile, half) - lane_ % 4 * 2;
#pragma unroll
      for (int first = 0; first < kColumns; first += kTogether) {
        float2 before[kTogether] = {};
#pragma unroll
        for (int i = 0; i < kTogether; i++) {
          const int column = 8 * (first + i);
          if (column < columns) before[i] = *reinterpret_cast<const float2*>(row + column);
        }
#pragma unroll
        for (int i = 0; i < kTogether; i++) {
          float* const to = out_ + 4 * (first + i) + 2 * half;
          to[0] = fmaf(before[i].x, kept[half], to[0]);
          to[1] = fmaf(before[i].y, kept[half], to[1]);
        }
      }
    }
  }

  template <class Tile>
  __device__ void write_float32(const Tile& tile, int64_t part) const {
    float* const out =
        static_cast<float*>(op_.out.data) + part * op_.batch * op_.out.batch + first_of(tile, op_.out);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float* const row = out + Tile::offset(op_, op_.out, row_of(half));
      const int columns = columns_of(tile, half);
#pragma unroll
      for (int j = 0; j < S::kHeadDim / 8; j++) {
        const int column = 8 * j + lane_ % 4 * 2;
        if (column >= columns) continue;
        *reinterpret_cast<float2*>(row + column) =
            make_float2(out_[4 * j + 2 * half], out_[4 * j + 2 * half + 1]);
      }
    }
  }

  /** Through shared memory, where rows lie as the queries do, so that they leave in 16-byte pieces. */
  template <class Tile>
  __device__ void write_elements(const Tile& tile) const {
    constexpr int kChunks = S::kHeadDim / 8;
    char* const rows = shared() + S::kOutAt + (64 * group_ + 16 * warp_) * 128;
    const auto place = [&](int row, int chunk) {
      return rows + chunk / 8 * S::kQueryPage + row * 128 + (chunk % 8 ^ row % 8) * 16;
    };
    // In the queries' place: all of the warpgroup are done with those.
    if (S::kSharesQueries) sm80::named_barrier(1 + group_, 128);
    __syncwarp();
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
      for (int j = 0; j < kChunks; j++) {
        *reinterpret_cast<uint32_t*>(place(lane_ / 4 + 8 * half, j) + lane_ % 4 * 4) =
            sm80::pack<T>(out_[4 * j + 2 * half], out_[4 * j + 2 * half + 1]);
      }
    }
    __syncwarp();
    T* const out = static_cast<T*>(op_.out.data) + first_of(tile, op_.out);
    const int inside = tile.rows(op_);
#pragma unroll
    for (int chunk = lane_; chunk < 16 * kChunks; chunk += 32) {
      const int row = chunk / kChunks, column = chunk % kChunks;
      const int of_tile = 64 * group_ + 16 * warp_ + row;
      if (of_tile >= inside || column * 8 >= op_.head_dim) continue;
      *reinterpret_cast<uint4*>(out + Tile::offset(op_, op_.out, of_tile) + column * 8) =
          *reinterpret_cast<const uint4*>(place(row, column));
    }
    // What was read and written here, a copy of the next queries is about to overwrite.
    if (S::kSharesQueries) sm90::publish_writes();
  }
};

}  // namespace longseq
