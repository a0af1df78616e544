#pragma once
// How a block of the forward kernel (forward_tile_sm80.h) goes through its keys, the last first. Included by
// .cu files alone.
#include <type_traits>

#include "attention/forward_rows_sm80.h"
#include "attention/key_blocks.h"
#include "tile/barrier.h"
#include "tile/sm80.h"

namespace longseq {

/** Copies queries to shared memory, and blocks of kKeys keys and their values to its stages. */
template <class S>
class ForwardCopies : public ForwardRows<S> {
  using T = typename S::T;
  using Rows = ForwardRows<S>;

 protected:
  using Rows::op_, Rows::tile;
  static constexpr int kChunks = S::kHeadDim / 8;
  static constexpr int kRowsAPass = sm80::rows_a_pass(S::kThreads, kChunks);
  static_assert(S::kKeys % kRowsAPass == 0);

  __device__ ForwardCopies(const ForwardSm80& op, const BlockOrder& order)
      : Rows(op, order), tiles_(sm80::shared_address(Rows::shared())) {}

  __device__ void copy_queries() const {
    const int row = threadIdx.x / kChunks, column = threadIdx.x % kChunks;
    if (row >= kRowsAPass) return;
    const T* const q = static_cast<const T*>(op_.q.data) + this->start_of(op_.q) + column * 8;
    const uint32_t to = tiles_ + S::kQueriesAt + row * S::kPitch + column * 16;
    const int count = column * 8 < op_.head_dim ? tile().rows - row : 0;
    this->with_offsets(op_.q, [&](const auto& offset) {
#pragma unroll 4
      for (int r = 0; r < S::kRows; r += kRowsAPass) {
        sm80::copy_async(to + r * S::kPitch, q + (r < count ? offset(row + r) : 0), r < count);
      }
    });
    sm80::commit_copies();
  }

  /** The next block to be copied begins at key `first`, and each further one lies before it. */
  __device__ void begin_copies(int first) {
    const int row = threadIdx.x / kChunks, column = threadIdx.x % kChunks;
    k_ = tile().k + int64_t{first + row} * op_.k.row + column * 8;
    v_ = tile().v + int64_t{first + row} * op_.v.row + column * 8;
  }
  /** The next block, of which there are so many keys; zeros behind them. */
  __device__ void copy_block(int stage, int keys) {
    if (keys >= S::kKeys && S::kHeadDim == op_.head_dim) {
      copy_whole_block(stage);
    } else {
      copy_some(place_in(stage), k_, op_.k.row, keys);
      copy_some(place_in(stage) + S::kTileBytes, v_, op_.v.row, keys);
      move_on();
    }
  }
  /** The same of which all is there. */
  __device__ void copy_whole_block(int stage) {
    if (kRowsAPass * kChunks == S::kThreads || threadIdx.x < kRowsAPass * kChunks) {
      const uint32_t to = place_in(stage);
#pragma unroll
      for (int r = 0; r < S::kKeys; r += kRowsAPass) sm80::copy_async(to + r * S::kPitch, k_ + r * op_.k.row);
#pragma unroll
      for (int r = 0; r < S::kKeys; r += kRowsAPass) {
        sm80::copy_async(to + S::kTileBytes + r * S::kPitch, v_ + r * op_.v.row);
      }
    }
    move_on();
  }

  const uint32_t tiles_;

 private:
  __device__ uint32_t place_in(int stage) const {
    const int row = threadIdx.x / kChunks, column = threadIdx.x % kChunks;
    return tiles_ + stage * S::kStageBytes + row * S::kPitch + column * 16;
  }
  __device__ void move_on() {
    k_ -= S::kKeys * op_.k.row;
    v_ -= S::kKeys * op_.v.row;
  }
  __device__ void copy_some(uint32_t to, const T* from, int64_t stride, int keys) const {
    const int row = threadIdx.x / kChunks, column = threadIdx.x % kChunks;
    if (row >= kRowsAPass) return;
#pragma unroll 1
    for (int r = 0; r < S::kKeys; r += kRowsAPass) {
      const bool inside = column * 8 < op_.head_dim && row + r < keys;
      sm80::copy_async(to + r * S::kPitch, inside ? from + r * stride : static_cast<const T*>(op_.k.data),
                       inside);
    }
  }

  const T *k_, *v_;  // what this thread copies next
};

/** All warps are at the same block; the next is copied meanwhile. */
template <class S, bool kHasMask>
class KeysInStep : public ForwardCopies<S> {
  using Copies = ForwardCopies<S>;
  static_assert(S::kStages == 2);

 protected:
  using Blocks = KeyBlocks<S::kKeys, kHasMask ? Masking::Given : Masking::None>;
  using Copies::Copies;
  using Copies::op_, Copies::tile, Copies::limits;

  __device__ Blocks begin_blocks() {
    const Blocks blocks(op_.mask, this->query_of(0) / 128, tile().begin, tile().end);
    this->begin_copies(blocks.current().first);
    copy(0, blocks.current());
    return blocks;
  }
  __device__ void end_blocks() {}
  /** visit(stage, is_plain, block) for every block, of those that were begun, of which the warp sees
   * something; is_plain: its scores need no look at who sees what; block() tells which it is. */
  template <class Visit>
  __device__ void visit_blocks(Blocks blocks, const Visit& visit) {
    const bool has_plain = !op_.score.has_softcap && op_.score.slopes == nullptr;
    const int plain_begin = has_plain ? limits().full_begin : INT32_MAX;
    const int plain_end = limits().full_end - S::kKeys;
    for (int stage = 0; blocks.current().first >= 0; blocks.advance(), stage = 1 - stage) {
      // The current block has arrived, and everybody is done with the one before: its stage takes the next.
      sm80::wait_copies<0>();
      sm80::block_barrier();
      copy(1 - stage, blocks.next());
      const KeyBlock block = blocks.current();
      const bool is_plain = block.tile < 0 && block.first >= plain_begin && block.first <= plain_end;
      if (is_plain || (block.first < limits().seen_end && block.first + S::kKeys > limits().seen_begin)) {
        visit(stage, is_plain, [&] { return block; });
      }
    }
  }

 private:
  __device__ void copy(int stage, const KeyBlock& block) {
    if (block.first >= 0) {
      if (kHasMask) this->begin_copies(block.first);
      this->copy_block(stage, op_.keys - block.first);
    }
    sm80::commit_copies();
  }
};

/**
 * A ring of stages, for many warps, whole rows and no mask: a block is copied kBlocksAhead blocks before its
 * turn, and the fastest warp may be a block further than the slowest. Blocks have numbers from 0 on. What is
 * to be done of them changes a few times a tile, and is found out then, from shared memory: between, the loop
 * keeps a counter and no more in registers.
 */
template <class S>
class KeysInRing : public ForwardCopies<S> {
  using Copies = ForwardCopies<S>;
  using Barrier = sm80::Barrier;
  static constexpr int kBlocksAhead = S::kStages / 2;

 protected:
  struct Blocks {};  // they are counted where they are visited
  using Copies::Copies;
  using Copies::op_, Copies::tile, Copies::limits;

  __device__ Blocks begin_blocks() {
    if (threadIdx.x == 0) {
      for (int stage = 0; stage < S::kStages; stage++) {
        arrived(stage).init(S::kThreads);
        released(stage).init(S::kWarps);
      }
    }
    __syncthreads();
    this->begin_copies(first_of(0));
#pragma unroll 1
    for (int number = 0; number < kBlocksAhead && number < blocks(); number++) {
      this->copy_block(number, op_.keys - first_of(number));
      arrived(number).arrive_behind_copies();
    }
    return {};
  }
  /** Behind a barrier: blocks that have been visited may begin again. */
  __device__ void end_blocks() {
    if (threadIdx.x == 0) {
      for (int index = 0; index < 2 * S::kStages; index++) barrier(index).invalidate();
    }
  }
  template <class Visit>
  __device__ void visit_blocks(Blocks, const Visit& visit) {
    for (int number = 0;;) {
      const Stretch stretch = stretch_from(number);
      if (stretch.blocks == 0) break;
#pragma unroll 1
      for (int left = stretch.blocks; left > 0; left--) {
        if (stretch.kinds & kCopies) copy_ahead(number + kBlocksAhead);
        arrived(number).poll(parity_of(number));
        if (stretch.kinds & kSeen) {
          visit(number % S::kStages, stretch.kinds & kPlain, [&] { return KeyBlock{first_of(number), -1}; });
        }
        __syncwarp();
        if (this->lane_ == 0) released(number).arrive();
        number++;
      }
    }
  }

 private:
  /** Blocks of which the same is done; none: the tile has no more. Three bools would take three registers. */
  struct Stretch {
    int blocks;
    uint32_t kinds;
  };
  static constexpr uint32_t kCopies = 1, kSeen = 2, kPlain = 4;  // kCopies: of the block kBlocksAhead further

  __device__ static int blocks() { return blocks_of(tile().end - tile().begin); }
  /** Its first key. */
  __device__ static int first_of(int number) { return tile().begin + (blocks() - 1 - number) * S::kKeys; }
  __device__ static int blocks_of(int keys) { return max(keys + S::kKeys - 1, 0) / S::kKeys; }
  __device__ static int parity_of(int number) { return number / S::kStages & 1; }
  /** The block is in its stage. */
  __device__ static Barrier arrived(int number) { return barrier(number % S::kStages); }
  /** No warp needs what is in its stage any more. */
  __device__ static Barrier released(int number) { return barrier(S::kStages + number % S::kStages); }
  __device__ static Barrier barrier(int index) {
    return Barrier(sm80::shared_address(&ForwardRows<S>::memory().barriers[index]));
  }

  __device__ void copy_ahead(int number) {
    released(number).poll(parity_of(number) ^ 1);  // by the block before in this stage; at once, if none was
    this->copy_whole_block(number % S::kStages);
    arrived(number).arrive_behind_copies();
  }

  __device__ Stretch stretch_from(int number) const {
    const int all = blocks(), end = tile().begin + all * S::kKeys;
    int until = all;
    // A kind of the blocks [first, last), at whose ends a stretch ends.
    uint32_t kinds = 0;
    const auto find = [&](uint32_t kind, int first, int last) {
      if (number < first) {
        until = min(until, first);
      } else if (number < last) {
        until = min(until, last);
        kinds |= kind;
      }
    };
    // Block n has the keys [end - (n + 1) kKeys, end - n kKeys).
    find(kCopies, 0, all - kBlocksAhead);
    find(kSeen, (end - limits().seen_end) / S::kKeys, blocks_of(end - limits().seen_begin));
    if (!op_.score.has_softcap && op_.score.slopes == nullptr) {
      find(kPlain, blocks_of(end - limits().full_end), max(end - limits().full_begin, 0) / S::kKeys);
    }
    return {until - number, kinds};
  }
};

template <class S, bool kHasMask>
using ForwardKeys = std::conditional_t<S::kIsRing, KeysInRing<S>, KeysInStep<S, kHasMask>>;

}  // namespace longseq
