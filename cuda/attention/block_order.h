#pragma once
// In which order a kernel's thread blocks take the tiles of all heads, for the GPU starts them in the order
// of their index.
#include <algorithm>
#include <cstdint>

#include "attention/attention_sm80.h"
#include "core/cuda.h"
#include "core/division.h"

namespace longseq {

/**
 * Sections of heads one after the other, so that what a section's blocks read again and again stays in the
 * cache, as far as it has room. Within a section the longest tiles come first, those of all its heads side by
 * side. The last section is the larger one, where nothing else fills the GPU: the short tiles at its end even
 * out when the multiprocessors finish.
 */
struct BlockOrder {
  int32_t tiles;     // of a head
  int32_t heads;     // of all batches
  int32_t together;  // heads of a section
  int32_t last;      // heads of the last section

  struct Place {
    int tile;  // 0 has the most work
    int head;
  };
  struct Section {
    int first, count;  // heads; no heads: there is no such section
  };
  /** The heads of the first two sections: each section's blocks prepare the second behind it, since those of
   * the next may start beside them. */
  __host__ __device__ int prepared_before() const {
    const Section first = section_from(0);
    return first.count + section_from(first.count).count;
  }
  __device__ Section section_of(int block) const {
    const int rest = heads - last;
    return section_from(block < rest * tiles ? block / (tiles * together) * together : rest);
  }
  __host__ __device__ Section behind(const Section& section) const {
    return section_from(section.first + section.count);
  }
  /** Of one that is not the first. */
  __device__ Section before(const Section& section) const {
    return section_from((section.first - 1) / together * together);
  }
  __device__ Place place(int block) const {
    const Section section = section_of(block);
    const int index = block - section.first * tiles;
    return {index / section.count, section.first + index % section.count};
  }

  __host__ __device__ unsigned blocks() const { return static_cast<unsigned>(int64_t{tiles} * heads); }
  /** `parts` blocks for each tile. */
  dim3 grid(int parts = 1) const { return dim3(blocks(), static_cast<unsigned>(parts)); }

 private:
  __host__ __device__ Section section_from(int first) const {
    const int rest = heads - last, left = (first < rest ? rest : heads) - first;
    return {first, first < rest && together < left ? together : left};
  }
};

/** Every query sees every key, as far as intervals go. */
inline bool sees_all(const GpuIntervals& visible) {
  return visible.begin == nullptr && visible.left == INT32_MAX && visible.right == INT32_MAX;
}

/** The order of the tiles of `heads` heads, at most `together` of them at once; a multiprocessor runs
 * `blocks_each` blocks at once. */
inline BlockOrder order_blocks(const Cuda& cuda, int64_t tiles, int64_t heads, int64_t together,
                               int64_t blocks_each) {
  const int64_t section = std::clamp<int64_t>(together, 1, std::max<int64_t>(heads, 1));
  const int64_t even = ceil_div(2 * blocks_each * cuda.gpu->multiprocessors, std::max<int64_t>(tiles, 1));
  return {static_cast<int32_t>(tiles), static_cast<int32_t>(heads), static_cast<int32_t>(section),
          static_cast<int32_t>(std::min(std::max(even, section), heads))};
}

/** Of tiles of `rows` queries, for which keys and values are streamed. */
inline BlockOrder order_query_tiles(const Cuda& cuda, const ForwardSm80& op, int rows, int element_bytes,
                                    int blocks_each) {
  const int64_t heads = op.heads / op.packed, sharing = std::max(op.group / op.packed, 1);
  const int64_t elements =
      (2 * int64_t{op.keys} / sharing + 2 * int64_t{op.queries} * op.packed) * op.head_dim;
  const int64_t tiles = ceil_div(int64_t{op.queries} * op.packed, rows);
  // So many heads the cache has room for.
  const int64_t cached = cuda.gpu->cache_bytes * 3 / 4 / std::max<int64_t>(elements * element_bytes, 1);
  BlockOrder order = order_blocks(cuda, tiles, heads * op.batch, cached, blocks_each);
  if (op.is_beside_others) order.last = std::min(order.together, order.heads);
  return order;
}

/** Of tiles of `rows` keys, for which queries, gradients and sums of dq are streamed. */
inline BlockOrder order_key_tiles(const Cuda& cuda, const BackwardSm80& op, int rows, int blocks_each) {
  const ForwardSm80& forward = op.forward;
  const int64_t tiles = ceil_div(forward.keys, rows),
                heads = int64_t{forward.heads} / forward.group * forward.batch;
  // Blocks of one head that take turns wait for each other: those of all heads side by side wait less, unless
  // all have the same work and keep step.
  if (op.dq_turns != nullptr && !sees_all(forward.visible)) {
    return order_blocks(cuda, tiles, heads, heads, blocks_each);
  }
  // As many heads as fill the multiprocessors once: fewer would not run alone, and with more the sums of the
  // others' dq would be complete later.
  const int64_t filling = (blocks_each * cuda.gpu->multiprocessors + tiles / 2) / std::max<int64_t>(tiles, 1);
  BlockOrder order = order_blocks(cuda, tiles, heads, filling, blocks_each);
  // So has the last section, where no tile has much less work than others.
  if (forward.is_beside_others || forward.visible.most <= forward.queries / 8) {
    order.last = std::min(order.together, order.heads);
  }
  return order;
}

}  // namespace longseq
