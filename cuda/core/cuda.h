#pragma once
// What the CUDA files share: errors, launches, copies, what a GPU is. Included by .cu files alone.
#include <cuda_runtime.h>

#include <atomic>
#include <memory>
#include <string>

#include "core/device.h"

namespace longseq {

/** A GPU of this process, the same for all queues on it. */
struct Gpu {
  int ordinal;
  std::string name;
  int compute_capability;  // 10 major + minor
  int multiprocessors;
  int shared_bytes;  // at most, of a block
  int64_t memory_bytes, cache_bytes;
  cudaMemPool_t pool;
};

/** Throws what went wrong, as Error(Device); "what" is what was tried. */
void cuda_check(cudaError_t status, const char* what);

using Event = std::shared_ptr<CUevent_st>;
/** Of everything launched so far. */
Event record(const Cuda& cuda, unsigned flags = cudaEventDisableTiming);
/** Keeps `owner` until everything launched so far has run. */
void keep(const Cuda& cuda, std::shared_ptr<void> owner);

/** Host memory to the GPU's and back; `host` may be any memory. */
void upload(const Cuda& cuda, void* device, const Memory& host, size_t bytes);
/** Calls deliver(at, data, bytes) on a native thread with one part after the other, in order. */
void download(const Cuda& cuda, const void* device, size_t bytes,
              std::function<void(size_t at, const void* data, size_t bytes)> deliver);

/** Launches `kernel` on the queue's stream. Where it needs much shared memory it is granted that first. */
template <auto kernel, class... Args>
void launch(const Cuda& cuda, dim3 grid, unsigned threads, size_t shared_bytes, const Args&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  static std::atomic<uint64_t> granted{0};  // a bit for each GPU
  const uint64_t bit = uint64_t{1} << (cuda.gpu->ordinal & 63);
  if (shared_bytes > 48 << 10 && !(granted.load(std::memory_order_relaxed) & bit)) {
    cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(cuda.gpu->shared_bytes)),
               "shared memory");
    granted.fetch_or(bit, std::memory_order_relaxed);
  }
  kernel<<<grid, threads, shared_bytes, cuda.stream.get()>>>(args...);
  cuda_check(cudaGetLastError(), "launch");
}

}  // namespace longseq
