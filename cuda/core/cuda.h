#pragma once
// What the CUDA files share: errors, launches, copies, what a GPU is. Included by .cu files alone.
#include <cuda_runtime.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>

#include "core/device.h"

namespace longseq {

class SmallBlocks;
class FreeEvents;
class ExitGate;

/** Bytes of shared memory that a block can have on compute capability 8.6, 8.9 and 12; others' have more. */
inline constexpr int kLeastShared = 99 << 10;

/** A GPU of this process, the same for all queues on it. */
struct Gpu {
  int ordinal;
  std::string name;
  int compute_capability;  // 10 major + minor
  int multiprocessors;
  int shared_bytes;  // at most, of a block
  int64_t memory_bytes, cache_bytes;
  cudaMemPool_t pool;
  std::shared_ptr<MemoryUse> use;  // of all its queues
  std::shared_ptr<SmallBlocks> small_blocks;
  std::shared_ptr<FreeEvents> free_events;
};

/** Throws what went wrong, as Error(Device); "what" is what was tried. */
void cuda_check(cudaError_t status, const char* what);

/** What the thread calls next is for this GPU. */
void use_gpu(const Gpu& gpu);

/** For every thread that calls the driver. */
ExitGate& exit_gate();

using Event = std::shared_ptr<CUevent_st>;
/** Of everything launched so far. */
Event record(const Cuda& cuda, unsigned flags = cudaEventDisableTiming | cudaEventBlockingSync);
/** Waits on the caller's thread, which must not be one that JavaScript runs on; so long awake, for a thread
 * that sleeps is woken 20 us late, and more. Throws the work's error. */
void wait_for(const Event& event, std::chrono::microseconds awake = std::chrono::microseconds(100));
/** Keeps `owner` until everything launched so far has run. */
void keep(const Cuda& cuda, std::shared_ptr<void> owner);

/** Memory of the GPU that belongs to none of its queues: all may use it, and giving it back waits for them.
 */
std::shared_ptr<void> allocate_for_all(const Cuda& cuda, size_t bytes);

/** Pinned memory of the host, which the GPU copies from and to by itself; it counts as the host's. */
Memory pinned_memory(size_t bytes);

/** Host memory to the GPU's; `host` may be any memory. What is not pinned may be changed once this returns.
 */
void upload(const Cuda& cuda, void* device, const Memory& host, size_t bytes);
/** The GPU's to the host: calls deliver(at, data, bytes) on a native thread, one part after the other. */
void download(const Cuda& cuda, const void* device, size_t bytes,
              std::function<void(size_t at, const void* data, size_t bytes)> deliver);

/** Grants a kernel all the shared memory that a block can have beside what it declares. */
template <auto kernel>
void grant_shared_memory(const Gpu& gpu) {
  cudaFuncAttributes attributes;
  cuda_check(cudaFuncGetAttributes(&attributes, kernel), "a kernel's attributes");
  const int most = gpu.shared_bytes - static_cast<int>(attributes.sharedSizeBytes);
  cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most),
             "shared memory");
}

/** Launches `kernel` on the queue's stream. Where it needs much shared memory it is granted that first. */
template <auto kernel, class... Args>
void launch(const Cuda& cuda, dim3 grid, unsigned threads, size_t shared_bytes, const Args&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  static std::atomic<uint64_t> granted{0};  // a bit for each GPU
  const uint64_t bit = uint64_t{1} << (cuda.gpu->ordinal & 63);
  if (shared_bytes > 48 << 10 && !(granted.load(std::memory_order_relaxed) & bit)) {
    grant_shared_memory<kernel>(*cuda.gpu);
    granted.fetch_or(bit, std::memory_order_relaxed);
  }
  kernel<<<grid, threads, shared_bytes, cuda.stream.get()>>>(args...);
  cuda_check(cudaGetLastError(), "launch");
}

}  // namespace longseq
