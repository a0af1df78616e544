// The CUDA engine: queues as streams, memory in their order, copies through pinned memory.
#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "core/cuda.h"
#include "core/gpu_info.h"
#include "core/task_queue.h"

namespace longseq {
namespace {

constexpr size_t kMebibyte = size_t{1} << 20;
constexpr size_t kChunk = 16 * kMebibyte;  // of a copy that goes through pinned memory
constexpr size_t kPinnedCache =
    256 * kMebibyte;  // of freed pinned memory that is kept: pinning takes milliseconds

/** LONGSEQ_CUDA_DEBUG: every call waits for its work, and throws that work's error. */
bool waits_for_each_call() {
  static const bool waits = [] {
    const char* const value = std::getenv("LONGSEQ_CUDA_DEBUG");
    return value != nullptr && *value != '\0' && *value != '0';
  }();
  return waits;
}

void use_gpu(const Gpu& gpu) { cuda_check(cudaSetDevice(gpu.ordinal), "choosing the GPU"); }

Gpu open_gpu(int ordinal) {
  cuda_check(cudaSetDevice(ordinal), "choosing the GPU");
  cudaDeviceProp properties;
  cuda_check(cudaGetDeviceProperties(&properties, ordinal), "the GPU's properties");
  Gpu gpu{.ordinal = ordinal,
          .name = properties.name,
          .compute_capability = 10 * properties.major + properties.minor,
          .multiprocessors = properties.multiProcessorCount,
          .shared_bytes = static_cast<int>(properties.sharedMemPerBlockOptin),
          .memory_bytes = static_cast<int64_t>(properties.totalGlobalMem),
          .cache_bytes = properties.l2CacheSize,
          .pool = nullptr};
  check(gpu.compute_capability >= 80, Code::NoCuda, "device: cuda:", ordinal, " (", gpu.name,
        ") has compute capability ", properties.major, ".", properties.minor, ", expected 8.0 or later");
  cudaMemPoolProps pool{};
  pool.allocType = cudaMemAllocationTypePinned;
  pool.location = {cudaMemLocationTypeDevice, ordinal};
  cuda_check(cudaMemPoolCreate(&gpu.pool, &pool), "the memory pool");
  uint64_t keep_all = UINT64_MAX;
  cuda_check(cudaMemPoolSetAttribute(gpu.pool, cudaMemPoolAttrReleaseThreshold, &keep_all),
             "the memory pool");
  return gpu;
}

const Gpu& gpu_of(int ordinal) {
  static std::mutex mutex;
  static auto* const gpus = new std::map<int, Gpu>;  // never destroyed: threads may outlive main
  std::lock_guard lock(mutex);
  const auto found = gpus->find(ordinal);
  if (found != gpus->end()) return found->second;
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  check(status == cudaSuccess, Code::NoCuda, "device: no GPU can be used: ", cudaGetErrorString(status),
        ". It needs NVIDIA's driver 580 or later; use \"cpu\" otherwise");
  check(ordinal < count, Code::NoCuda, "device: there is no cuda:", ordinal, ", this machine has ", count,
        count == 1 ? " GPU" : " GPUs");
  return gpus->emplace(ordinal, open_gpu(ordinal)).first->second;
}

/** Pinned host memory in sizes of powers of two; what is freed is kept for the next copy. */
class PinnedMemory {
 public:
  static Memory take(size_t bytes) {
    size_t size = 4096;
    while (size < bytes) size *= 2;
    if (void* const cached = instance().reuse(size)) return owned(cached, size);
    void* data = nullptr;
    cuda_check(cudaHostAlloc(&data, size, cudaHostAllocPortable), "pinned memory");
    return owned(data, size);
  }

 private:
  static PinnedMemory& instance() {
    static auto* const instance = new PinnedMemory;
    return *instance;
  }
  static Memory owned(void* data, size_t size) {
    return {data, size, std::shared_ptr<void>(data, [size](void* freed) { instance().give(freed, size); })};
  }
  void* reuse(size_t size) {
    std::lock_guard lock(mutex_);
    std::vector<void*>& blocks = blocks_[size];
    if (blocks.empty()) return nullptr;
    void* const data = blocks.back();
    blocks.pop_back();
    held_ -= size;
    return data;
  }
  void give(void* data, size_t size) {
    {
      std::lock_guard lock(mutex_);
      if (held_ + size <= kPinnedCache) {
        blocks_[size].push_back(data);
        held_ += size;
        return;
      }
    }
    cudaFreeHost(data);
  }

  std::mutex mutex_;
  std::map<size_t, std::vector<void*>> blocks_;
  size_t held_ = 0;
};

/** Waits, on the caller's thread, until all that is queued has run. Returns the queue's error. */
std::exception_ptr drain(const Cuda& cuda) {
  struct {
    std::mutex mutex;
    std::condition_variable reached;
    bool done = false;
    std::exception_ptr error;
  } state;
  when_done(cuda, [&state](std::exception_ptr error) {
    std::lock_guard lock(state.mutex);
    state.error = error;
    state.done = true;
    state.reached.notify_one();
  });
  std::unique_lock lock(state.mutex);
  state.reached.wait(lock, [&] { return state.done; });
  return state.error;
}

[[noreturn]] void refuse(const Cuda& cuda, size_t bytes) {
  size_t left = 0, all = 0;
  cudaMemGetInfo(&left, &all);
  throw Error(Code::OutOfMemory,
              text("out of memory: asked for ", bytes / kMebibyte, " MiB on cuda:", cuda.gpu->ordinal, ", ",
                   left / kMebibyte, " of its ", all / kMebibyte, " MiB are free, ",
                   cuda.use->live.load() / static_cast<int64_t>(kMebibyte),
                   " MiB are held by this device's tensors and scratch"));
}

class CudaMark : public Mark {
 public:
  double since(const Mark& earlier) const override {
    float milliseconds = 0;
    const cudaError_t status =
        cudaEventElapsedTime(&milliseconds, static_cast<const CudaMark&>(earlier).event.get(), event.get());
    cuda_check(status, "timing");
    return milliseconds;
  }
  Event event;
};

}  // namespace

void cuda_check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // one that can be recovered from is not reported again
  throw Error(status == cudaErrorMemoryAllocation ? Code::OutOfMemory : Code::Device,
              text("cuda: ", what, ": ", cudaGetErrorString(status), " (", cudaGetErrorName(status), ")"));
}

std::vector<GpuInfo> gpu_infos() {
  int count = 0;
  std::vector<GpuInfo> out;
  if (cudaGetDeviceCount(&count) != cudaSuccess) return out;
  for (int ordinal = 0; ordinal < count; ordinal++) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, ordinal) != cudaSuccess) continue;
    out.push_back({properties.name, 10 * properties.major + properties.minor, properties.multiProcessorCount,
                   static_cast<int64_t>(properties.totalGlobalMem)});
  }
  return out;
}

Event record(const Cuda& cuda, unsigned flags) {
  cudaEvent_t event;
  cuda_check(cudaEventCreateWithFlags(&event, flags), "an event");
  Event owned(event, [](cudaEvent_t freed) { cudaEventDestroy(freed); });
  cuda_check(cudaEventRecord(event, cuda.stream.get()), "an event");
  return owned;
}

void keep(const Cuda& cuda, std::shared_ptr<void> owner) {
  cuda.waiter->push([event = record(cuda), owner = std::move(owner)] { cudaEventSynchronize(event.get()); });
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
  for (size_t at = 0; at < bytes; at += kChunk) {
    const size_t count = std::min(kChunk, bytes - at);
    const Memory chunk = PinnedMemory::take(count);
    std::memcpy(chunk.data, static_cast<const char*>(host.data) + at, count);
    cuda_check(cudaMemcpyAsync(static_cast<char*>(device) + at, chunk.data, count, cudaMemcpyHostToDevice,
                               cuda.stream.get()),
               "a copy to the GPU");
    keep(cuda, chunk.owner);
  }
}

void download(const Cuda& cuda, const void* device, size_t bytes,
              std::function<void(size_t at, const void* data, size_t bytes)> deliver) {
  for (size_t at = 0; at < bytes; at += kChunk) {
    const size_t count = std::min(kChunk, bytes - at);
    const Memory chunk = PinnedMemory::take(count);
    cuda_check(cudaMemcpyAsync(chunk.data, static_cast<const char*>(device) + at, count,
                               cudaMemcpyDeviceToHost, cuda.stream.get()),
               "a copy from the GPU");
    cuda.waiter->push([event = record(cuda), chunk, deliver, at, count] {
      if (cudaEventSynchronize(event.get()) == cudaSuccess) deliver(at, chunk.data, count);
    });
  }
}

Cuda open_cuda(int ordinal, const std::shared_ptr<MemoryUse>& use) {
  const Gpu& gpu = gpu_of(ordinal);
  use_gpu(gpu);
  cudaStream_t stream;
  cuda_check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
  Cuda cuda{.queue = TaskQueue::start("longseq-launch"),
            .waiter = TaskQueue::start("longseq-wait"),
            .stream = {stream, [](cudaStream_t freed) { cudaStreamDestroy(freed); }},
            .use = use,
            .gpu = &gpu};
  for (const auto& queue : {cuda.queue, cuda.waiter}) queue->push([&gpu] { use_gpu(gpu); });
  return cuda;
}

void close(const Cuda& cuda) {
  // What is queued may still hand work to the waiter.
  cuda.queue->push([waiter = cuda.waiter] { waiter->close(); });
  cuda.queue->close();
}

Memory allocate(const Cuda& cuda, size_t bytes) {
  use_gpu(*cuda.gpu);
  const size_t size = std::max<size_t>(256, (bytes + 255) / 256 * 256);
  if (size > static_cast<size_t>(INT64_MAX)) refuse(cuda, bytes);
  const auto take = [&](void** data) {
    return cudaMallocFromPoolAsync(data, size, cuda.gpu->pool, cuda.stream.get());
  };
  void* data = nullptr;
  cudaError_t status = take(&data);
  if (status == cudaErrorMemoryAllocation) {
    // What is about to be freed, here or on another queue, may suffice.
    cudaGetLastError();
    std::exception_ptr error;
    if (!cuda.queue->is_current_thread()) error = drain(cuda);
    cudaDeviceSynchronize();
    cudaMemPoolTrimTo(cuda.gpu->pool, 0);
    status = take(&data);
    if (error) cuda.queue->push([error] { std::rethrow_exception(error); });  // still to be reported
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      refuse(cuda, bytes);
    }
  }
  cuda_check(status, "memory");
  cuda.use->add(static_cast<int64_t>(size));
  const auto release = [stream = cuda.stream, use = cuda.use, size](void* freed) {
    cudaFreeAsync(freed, stream.get());
    use->add(-static_cast<int64_t>(size));
  };
  return {data, size, std::shared_ptr<void>(data, release)};
}

Memory allocate_staging(const Cuda& cuda, size_t bytes) {
  use_gpu(*cuda.gpu);
  if (bytes <= 2 * kChunk) return PinnedMemory::take(bytes);
  auto block = std::make_shared<HostBlock>(bytes, nullptr);
  return {block->data(), block->bytes(), block};
}

void push(const Cuda& cuda, std::function<void()> task) {
  cuda.queue->push(std::move(task));
  if (!waits_for_each_call() || cuda.queue->is_current_thread()) return;
  if (const std::exception_ptr error = drain(cuda)) std::rethrow_exception(error);
}

void when_done(const Cuda& cuda, Completion done) {
  cuda.queue->push_completion([cuda, done = std::move(done)](std::exception_ptr error) {
    Event event;
    try {
      event = record(cuda);
    } catch (...) {
      if (!error) error = std::current_exception();
    }
    cuda.waiter->push([event, error, done]() mutable {
      try {
        if (event) cuda_check(cudaEventSynchronize(event.get()), "work on the GPU");
      } catch (...) {
        if (!error) error = std::current_exception();
      }
      done(error);
    });
  });
}

std::shared_ptr<Mark> mark(const Cuda& cuda) {
  const auto mark = std::make_shared<CudaMark>();
  cuda.queue->push([mark, cuda] { mark->event = record(cuda, cudaEventDefault); });
  return mark;
}

}  // namespace longseq
