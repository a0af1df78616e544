#pragma once
// Host memory: 64-byte aligned blocks with the bytes counted a device, refused before the machine runs out.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace longseq {

/** Bytes that a device's tensors and scratch hold now, and the most they held since the peak was last reset.
 */
struct MemoryUse {
  std::atomic<int64_t> live{0}, peak{0}, tensors{0};
  void add(int64_t bytes);
};

/**
 * A block of at least `bytes`, its contents undefined. Throws Error(OutOfMemory) where the request would pass
 * LONGSEQ_MEMORY_LIMIT, or what the machine (or the cgroup) has left: Linux would grant it and kill the
 * process at the first touch.
 */
class HostBlock {
 public:
  HostBlock() = default;
  HostBlock(size_t bytes, std::shared_ptr<MemoryUse> use);
  ~HostBlock();
  HostBlock(HostBlock&& other) noexcept;
  HostBlock& operator=(HostBlock&& other) noexcept;

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
  std::shared_ptr<MemoryUse> use_;
};

/**
 * Counts `bytes` of host memory as taken, before they are. Throws Error(OutOfMemory) as HostBlock does, whose
 * blocks are counted by this too.
 */
void reserve_host_memory(size_t bytes);
void unreserve_host_memory(size_t bytes);
/** Refuses what there is never room for, whatever is held now. */
void check_host_room(size_t bytes);

/** Memory of any engine: it is given back when the last copy of this is gone, on a GPU in the stream's order.
 */
struct Memory {
  void* data = nullptr;
  size_t bytes = 0;
  std::shared_ptr<void> owner;
};

/** LONGSEQ_MEMORY_LIMIT, on a GPU too; INT64_MAX where there is none. */
int64_t wanted_memory_limit();
/** LONGSEQ_MASK_BUDGET: the most that a mask's bits take on a GPU of so much memory, which larger masks go
 * through in panels. A sixteenth of that memory where nothing is said. */
int64_t mask_budget(int64_t gpu_bytes);
/** LONGSEQ_SHARED_BYTES: lowers what a block on a GPU takes of shared memory to a smaller GPU's; INT64_MAX
 * where there is none. */
int64_t wanted_shared_bytes();
/** The most of the host's that may be allocated in all: LONGSEQ_MEMORY_LIMIT (bytes, or 512m, 4g), else the
 * machine's or the cgroup's memory. */
int64_t memory_limit();

}  // namespace longseq
