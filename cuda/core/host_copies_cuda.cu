// Copies between the host and a GPU, through pinned memory: a GPU copies from other memory only while the
// caller waits.
#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "core/cuda.h"
#include "core/task_queue.h"

namespace longseq {
namespace {

constexpr size_t kMebibyte = size_t{1} << 20;
constexpr size_t kChunk = 16 * kMebibyte;
/** Parts of one copy that are in pinned memory at once: enough that the GPU never waits for the next. */
constexpr int kPartsAtOnce = 4;
/** Of freed pinned memory that is kept: pinning takes milliseconds. */
constexpr size_t kPinnedCache = 256 * kMebibyte;
constexpr size_t kSmallest = 4096;

/** In sizes of powers of two. */
class PinnedMemory {
 public:
  static PinnedMemory& instance() {
    static auto* const instance = new PinnedMemory;  // never destroyed: threads may outlive main
    return *instance;
  }
  Memory take(size_t bytes) {
    size_t size = kSmallest;
    while (size < bytes) size *= 2;
    void* data = reuse(size);
    if (data == nullptr) data = allocate(size);
    return {data, size, std::shared_ptr<void>(data, [this, size](void* freed) { give(freed, size); })};
  }

 private:
  void* reuse(size_t size) {
    const std::lock_guard lock(mutex_);
    std::vector<void*>& blocks = blocks_[size];
    if (blocks.empty()) return nullptr;
    void* const data = blocks.back();
    blocks.pop_back();
    held_ -= size;
    return data;
  }
  void* allocate(size_t size) {
    try {
      return pin(size);
    } catch (const Error& error) {
      if (error.code != Code::OutOfMemory) throw;
      clear();
      return pin(size);
    }
  }
  static void* pin(size_t size) {
    reserve_host_memory(size);
    void* data = nullptr;
    const cudaError_t status = cudaHostAlloc(&data, size, cudaHostAllocPortable);
    if (status == cudaSuccess) return data;
    unreserve_host_memory(size);
    cuda_check(status, text("pinning ", size / kMebibyte, " MiB of the host's memory").c_str());
    return nullptr;
  }
  void give(void* data, size_t size) {
    {
      const std::lock_guard lock(mutex_);
      if (held_ + size <= kPinnedCache) {
        blocks_[size].push_back(data);
        held_ += size;
        return;
      }
    }
    unpin(data, size);
  }
  static void unpin(void* data, size_t size) {
    cudaFreeHost(data);
    unreserve_host_memory(size);
  }
  void clear() {
    std::map<size_t, std::vector<void*>> blocks;
    {
      const std::lock_guard lock(mutex_);
      blocks.swap(blocks_);
      held_ = 0;
    }
    for (const auto& [size, all] : blocks) {
      for (void* const data : all) unpin(data, size);
    }
  }

  std::mutex mutex_;
  std::map<size_t, std::vector<void*>> blocks_;
  size_t held_ = 0;
};

/** The places that one copy has for its parts: who launches them waits for a free one. */
class Places : public std::enable_shared_from_this<Places> {
 public:
  /** Held until the last copy of it is gone. */
  std::shared_ptr<void> take() {
    std::unique_lock lock(mutex_);
    freed_.wait(lock, [&] { return free_ > 0; });
    free_--;
    return {nullptr, [places = shared_from_this()](void*) { places->give(); }};
  }

 private:
  void give() {
    const std::lock_guard lock(mutex_);
    free_++;
    freed_.notify_one();
  }
  std::mutex mutex_;
  std::condition_variable freed_;
  int free_ = kPartsAtOnce;
};

/** A part's pinned memory, and its place. */
struct Part {
  Part(Places& places, size_t bytes) : place(places.take()), memory(pinned_memory(bytes)) {}
  std::shared_ptr<void> place;  // let go after the memory, which the next part then finds
  Memory memory;
};

}  // namespace

Memory pinned_memory(size_t bytes) { return PinnedMemory::instance().take(bytes); }

Memory allocate_staging(const Cuda& cuda, size_t bytes) {
  // Pinned, what fits in a few parts is copied by the GPU while the queue's thread goes on.
  if (bytes <= 2 * kChunk) {
    use_gpu(*cuda.gpu);
    return pinned_memory(bytes);
  }
  auto block = std::make_shared<HostBlock>(bytes, nullptr);
  return {block->data(), block->bytes(), block};
}

void upload(const Cuda& cuda, void* device, const Memory& host, size_t bytes) {
  cudaPointerAttributes attributes{};
  const bool pinned = cudaPointerGetAttributes(&attributes, host.data) == cudaSuccess &&
                      attributes.type == cudaMemoryTypeHost;
  if (pinned) {
    cuda_check(cudaMemcpyAsync(device, host.data, bytes, cudaMemcpyHostToDevice, cuda.stream.get()),
               "a copy to the GPU");
    return keep(cuda, host.owner);
  }
  const auto places = std::make_shared<Places>();
  for (size_t at = 0; at < bytes; at += kChunk) {
    const size_t count = std::min(kChunk, bytes - at);
    const auto part = std::make_shared<Part>(*places, count);
    std::memcpy(part->memory.data, static_cast<const char*>(host.data) + at, count);
    cuda_check(cudaMemcpyAsync(static_cast<char*>(device) + at, part->memory.data, count,
                               cudaMemcpyHostToDevice, cuda.stream.get()),
               "a copy to the GPU");
    keep(cuda, part);
  }
}

void download(const Cuda& cuda, const void* device, size_t bytes,
              std::function<void(size_t at, const void* data, size_t bytes)> deliver) {
  const auto places = std::make_shared<Places>();
  for (size_t at = 0; at < bytes; at += kChunk) {
    const size_t count = std::min(kChunk, bytes - at);
    const auto part = std::make_shared<Part>(*places, count);
    cuda_check(cudaMemcpyAsync(part->memory.data, static_cast<const char*>(device) + at, count,
                               cudaMemcpyDeviceToHost, cuda.stream.get()),
               "a copy from the GPU");
    cuda.waiter->push([event = record(cuda), part, deliver, at, count] {
      wait_for(event);  // its error, which ends this task, is also the next completion's
      deliver(at, part->memory.data, count);
    });
  }
}

}  // namespace longseq
