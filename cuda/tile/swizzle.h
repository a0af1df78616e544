#pragma once
// Rows in shared memory whose 16-byte chunks are permuted, so that eight rows' matrices are loaded at once.
#include <cstdint>

namespace longseq::sm80 {

/** The 16-byte chunks of rows, so permuted that the same chunk of eight rows lies in different banks. */
template <int kPitch>
struct Swizzle {
  static constexpr int kChunks = kPitch / 16;
  static constexpr int kSpan = kChunks % 8 == 0 ? 8 : kChunks % 4 == 0 ? 4 : kChunks % 2 == 0 ? 2 : 1;

  __device__ static int permuted(int row, int chunk) { return chunk ^ row / (8 / kSpan) % kSpan; }
  /** Of chunk 2 i + (0 or 1), from the address of chunk 0 or 1. */
  __device__ static uint32_t two_chunks(uint32_t address, int i) {
    return (address ^ 32 * (i % (kSpan / 2))) + 16 * kSpan * (i / (kSpan / 2));
  }
  __device__ static uint32_t offset(int row, int chunk) { return row * kPitch + permuted(row, chunk) * 16; }
};

}  // namespace longseq::sm80
