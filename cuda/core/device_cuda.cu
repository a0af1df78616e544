// The CUDA engine: queues as streams, memory in their order, waiting on threads of our own.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "core/cuda.h"
#include "core/environment.h"
#include "core/gpu_info.h"
#include "core/reuse.h"
#include "core/task_queue.h"

namespace longseq {

namespace {

constexpr int64_t kMebibyte = int64_t{1} << 20;

/** LONGSEQ_CUDA_DEBUG: every call waits for its work, and throws that work's error. */
bool waits_for_each_call() {
  static const bool waits = [] {
    const std::string_view value = text_from("LONGSEQ_CUDA_DEBUG");
    return !value.empty() && value != "0";
  }();
  return waits;
}

Gpu open_gpu(int ordinal) {
  cuda_check(cudaSetDevice(ordinal), "choosing the GPU");
  cudaDeviceProp properties;
  cuda_check(cudaGetDeviceProperties(&properties, ordinal), "the GPU's properties");
  const int compute_capability = 10 * properties.major + properties.minor;
  auto shared_bytes = std::min<int64_t>(properties.sharedMemPerBlockOptin, wanted_shared_bytes());
  // 8.7 has more, but kernels that need it have no code for 8.1 to 8.9 (attention/fitting_shape.h).
  if (compute_capability > 80 && compute_capability < 90) {
    shared_bytes = std::min<int64_t>(shared_bytes, kLeastShared);
  }
  Gpu gpu{.ordinal = ordinal,
          .name = properties.name,
          .compute_capability = compute_capability,
          .multiprocessors = properties.multiProcessorCount,
          .shared_bytes = static_cast<int>(shared_bytes),
          .memory_bytes = static_cast<int64_t>(properties.totalGlobalMem),
          .cache_bytes = properties.l2CacheSize,
          .pool = nullptr,
          .use = std::make_shared<MemoryUse>(),
          .small_blocks = std::make_shared<SmallBlocks>(),
          .free_events = std::make_shared<FreeEvents>()};
  check(gpu.compute_capability >= kOldestGpu, Code::NoCuda, "device: cuda:", ordinal, " (", gpu.name,
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

/** The driver is taken down by what its library has registered for the process's end; this comes before that.
 */
struct AtExit {
  ExitGate& gate;
  ~AtExit() { gate.close(); }
};

const Gpu& gpu_of(int ordinal) {
  static std::mutex mutex;
  static auto* const gpus = new std::map<int, Gpu>;  // never destroyed: threads may outlive main
  const std::lock_guard lock(mutex);
  const auto found = gpus->find(ordinal);
  if (found != gpus->end()) return found->second;
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  check(status == cudaSuccess, Code::NoCuda, "device: no GPU can be used: ", cudaGetErrorString(status),
        ". It needs NVIDIA's driver 580 or later; use \"cpu\" otherwise");
  check(ordinal < count, Code::NoCuda, "device: there is no cuda:", ordinal, ", this machine has ", count,
        count == 1 ? " GPU" : " GPUs");
  const Gpu& gpu = gpus->emplace(ordinal, open_gpu(ordinal)).first->second;
  static const AtExit at_exit{exit_gate()};
  return gpu;
}

/** Something that one thread does and another waits for. */
class Reached {
 public:
  void set(std::exception_ptr error) {
    const std::lock_guard lock(mutex_);
    error_ = std::move(error);
    done_ = true;
    reached_.notify_one();
  }
  std::exception_ptr wait() {
    std::unique_lock lock(mutex_);
    reached_.wait(lock, [&] { return done_; });
    return error_;
  }
  bool wait_for(std::chrono::milliseconds time) {
    std::unique_lock lock(mutex_);
    return reached_.wait_for(lock, time, [&] { return done_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable reached_;
  bool done_ = false;
  std::exception_ptr error_;
};

/** Bytes that may still be allocated on the GPU, and in all. */
std::pair<int64_t, int64_t> memory_left(const Gpu& gpu) {
  size_t left = 0, all = 0;
  cudaMemGetInfo(&left, &all);
  uint64_t reserved = 0, used = 0;
  cudaMemPoolGetAttribute(gpu.pool, cudaMemPoolAttrReservedMemCurrent, &reserved);
  cudaMemPoolGetAttribute(gpu.pool, cudaMemPoolAttrUsedMemCurrent, &used);
  const int64_t physical = static_cast<int64_t>(left + reserved - used), limit = wanted_memory_limit();
  return {std::clamp<int64_t>(limit - gpu.use->live, 0, physical),
          std::min(limit, static_cast<int64_t>(all))};
}

[[noreturn]] void refuse(const Cuda& cuda, size_t bytes) {
  const auto [left, all] = memory_left(*cuda.gpu);
  throw Error(Code::OutOfMemory,
              text("out of memory: asked for ", static_cast<int64_t>(bytes) / kMebibyte, " MiB on cuda:",
                   cuda.gpu->ordinal, ", ", left / kMebibyte, " MiB are left of ", all / kMebibyte, ", ",
                   cuda.use->live / kMebibyte, " MiB are held by tensors and scratch of this device, ",
                   (cuda.gpu->use->live - cuda.use->live) / kMebibyte, " MiB by its other queues"));
}

/** Waits, and returns false where the queue stays held: by a rank that is yet to be called, from this thread
 * maybe. */
bool reached(Reached& end, TaskQueue& queue, int patience) {
  for (int held = 0; held < patience; held = queue.is_held() ? held + 1 : 0) {
    if (end.wait_for(std::chrono::milliseconds(10))) return true;
  }
  return false;
}

/** Returns whether all that is queued has been launched. */
bool launched(TaskQueue& queue) {
  const auto here = std::make_shared<Reached>();
  queue.push_watcher([here](std::exception_ptr) { here->set(nullptr); });
  return reached(*here, queue, 50);
}

/** Takes memory by `take_some`; once more when all that is about to be freed, on whichever queue, has been.
 */
template <class Take>
void take_memory(const Cuda& cuda, size_t bytes, Take take_some) {
  const Gpu& gpu = *cuda.gpu;
  const auto size = static_cast<int64_t>(bytes);
  const auto take = [&] {
    gpu.use->add(size);
    const cudaError_t status =
        gpu.use->live > wanted_memory_limit() ? cudaErrorMemoryAllocation : take_some();
    if (status != cudaSuccess) gpu.use->add(-size);
    return status;
  };
  cudaError_t status = take();
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    if (!cuda.queue->is_current_thread()) launched(*cuda.queue);
    gpu.small_blocks->drop_all();
    cudaDeviceSynchronize();
    cudaMemPoolTrimTo(gpu.pool, 0);
    status = take();
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      refuse(cuda, bytes);
    }
  }
  cuda_check(status, "memory");
}

/** Whether the driver refuses all further work of this process after such an error. */
bool is_final(cudaError_t status) {
  switch (status) {
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorIllegalInstruction:
    case cudaErrorHardwareStackError:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
      return true;
    default:
      return false;
  }
}

class CudaMark : public Mark {
 public:
  using Mark::Mark;
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

void stop_threads_at_exit() {
  const auto stop = [](int status, void*) {
    if (exit_gate().close()) return;
    // A library that loads a kernel waits for the GPU; it must not be taken down until it returns.
    std::fflush(nullptr);
    _exit(status);
  };
  static const int registered = on_exit(stop, nullptr);
  static_cast<void>(registered);
}

ExitGate& exit_gate() {
  static auto* const gate = new ExitGate;  // never destroyed: threads stand in it
  return *gate;
}

void use_gpu(const Gpu& gpu) {
  // Choosing takes the driver's lock, looking does not.
  int ordinal = -1;
  if (cudaGetDevice(&ordinal) == cudaSuccess && ordinal == gpu.ordinal) return;
  cuda_check(cudaSetDevice(gpu.ordinal), "choosing the GPU");
}

void cuda_check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // one that can be recovered from is not reported again
  throw Error(
      status == cudaErrorMemoryAllocation ? Code::OutOfMemory : Code::Device,
      text("cuda: ", what, ": ", cudaGetErrorString(status), " (", cudaGetErrorName(status), ")",
           is_final(status) ? "; the GPU is lost to this process. With LONGSEQ_CUDA_DEBUG=1 the call that "
                              "caused it throws"
                            : ""));
}

std::vector<GpuInfo> gpu_infos() {
  int count = 0;
  std::vector<GpuInfo> out;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return out;
  }
  for (int ordinal = 0; ordinal < count; ordinal++) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, ordinal) != cudaSuccess) continue;
    out.push_back({properties.name, 10 * properties.major + properties.minor, properties.multiProcessorCount,
                   static_cast<int64_t>(properties.totalGlobalMem)});
  }
  return out;
}

Event record(const Cuda& cuda, unsigned flags) {
  FreeEvents& free = *cuda.gpu->free_events;
  cudaEvent_t event = free.take(flags);
  if (event == nullptr) cuda_check(cudaEventCreateWithFlags(&event, flags), "an event");
  Event owned(event, [flags, &free](cudaEvent_t freed) { free.give(flags, freed); });
  cuda_check(cudaEventRecord(event, cuda.stream.get()), "an event");
  return owned;
}

void wait_for(const Event& event, std::chrono::microseconds awake) {
  cudaError_t status;
  const auto until = std::chrono::steady_clock::now() + awake;
  while ((status = cudaEventQuery(event.get())) == cudaErrorNotReady) {
    if (std::chrono::steady_clock::now() >= until) {
      status = cudaEventSynchronize(event.get());
      break;
    }
    std::this_thread::yield();
  }
  cuda_check(status, "work on the GPU");
}

void keep(const Cuda& cuda, std::shared_ptr<void> owner) {
  // Asleep: nobody is in a hurry, and who looks again and again holds up those that launch.
  cuda.waiter->push([event = record(cuda), owner = std::move(owner)] { wait_for(event, {}); });
}

Cuda open_cuda(int ordinal, const std::shared_ptr<MemoryUse>& use, bool goes_first) {
  const Gpu& gpu = gpu_of(ordinal);
  use_gpu(gpu);
  cudaStream_t stream;
  int last = 0, first = 0;
  cuda_check(cudaDeviceGetStreamPriorityRange(&last, &first), "priorities");
  cuda_check(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, goes_first ? first : last),
             "a stream");
  std::shared_ptr<CUstream_st> owned(stream, [&gpu](cudaStream_t freed) {
    gpu.small_blocks->drop(freed);
    cudaStreamDestroy(freed);
  });
  const auto launch = TaskQueue::start("longseq-launch", &exit_gate());
  const auto wait = [&] {
    try {
      return TaskQueue::start("longseq-wait", &exit_gate());
    } catch (...) {
      launch->close();  // else its thread would wait for tasks for ever
      throw;
    }
  }();
  Cuda cuda{.queue = launch,
            .waiter = wait,
            .stream = std::move(owned),
            .use = use,
            .kept = std::make_shared<KeptCopies>(),
            .gpu = &gpu};
  for (const auto& queue : {cuda.queue, cuda.waiter}) queue->push([&gpu] { use_gpu(gpu); });
  return cuda;
}

void close(const Cuda& cuda) {
  // What is queued may still hand work to the waiter.
  cuda.queue->push([cuda] {
    cuda.kept->clear();
    cuda.waiter->push([event = record(cuda), stream = cuda.stream, &gpu = *cuda.gpu] {
      // Other processes may need what nothing here holds any more.
      wait_for(event);
      gpu.small_blocks->drop(stream.get());
      cudaMemPoolTrimTo(gpu.pool, 0);
    });
    cuda.waiter->close();
  });
  cuda.queue->close();
}

void check_room(const Cuda& cuda, size_t bytes) {
  if (bytes <= static_cast<size_t>(std::min(wanted_memory_limit(), cuda.gpu->memory_bytes))) return;
  use_gpu(*cuda.gpu);
  refuse(cuda, bytes);
}

Memory allocate(const Cuda& cuda, size_t bytes) {
  const Gpu& gpu = *cuda.gpu;
  use_gpu(gpu);
  check_room(cuda, bytes);
  const int64_t size = std::max<int64_t>(256, (static_cast<int64_t>(bytes) + 255) / 256 * 256);
  const bool is_small = size <= SmallBlocks::kLargest;
  const int64_t block = is_small ? SmallBlocks::size_for(size) : size;
  cudaStream_t const stream = cuda.stream.get();
  void* data = nullptr;
  take_memory(cuda, static_cast<size_t>(size), [&] {
    if (is_small) data = gpu.small_blocks->take(stream, block);
    return data != nullptr ? cudaSuccess
                           : cudaMallocFromPoolAsync(&data, static_cast<size_t>(block), gpu.pool, stream);
  });
  cuda.use->add(size);
  const auto release = [stream = cuda.stream, use = cuda.use, &gpu, size, block, is_small](void* freed) {
    if (!is_small || !gpu.small_blocks->give(stream.get(), freed, block)) cudaFreeAsync(freed, stream.get());
    use->add(-size);
    gpu.use->add(-size);
  };
  return {data, static_cast<size_t>(size), std::shared_ptr<void>(data, release)};
}

std::shared_ptr<void> allocate_for_all(const Cuda& cuda, size_t bytes) {
  use_gpu(*cuda.gpu);
  void* data = nullptr;
  take_memory(cuda, bytes, [&] { return cudaMalloc(&data, bytes); });
  return {data, [use = cuda.gpu->use, bytes](void* freed) {
            cudaFree(freed);
            use->add(-static_cast<int64_t>(bytes));
          }};
}

void push(const Cuda& cuda, std::function<void()> task) {
  cuda.queue->push(std::move(task));
  if (!waits_for_each_call() || cuda.queue->is_current_thread()) return;
  const auto end = std::make_shared<Reached>();
  when_done(cuda, [end](std::exception_ptr error) { end->set(std::move(error)); });
  if (!reached(*end, *cuda.queue, 2)) return;  // its error comes at the next wait
  if (const std::exception_ptr error = end->wait()) std::rethrow_exception(error);
}

void when_done(const Cuda& cuda, Completion done) {
  cuda.queue->push_completion([cuda, done = std::move(done)](std::exception_ptr error) {
    Event event;
    try {
      event = record(cuda);
    } catch (...) {
      if (!error) error = std::current_exception();
    }
    cuda.waiter->push_completion([event, error, done](std::exception_ptr earlier) mutable {
      if (!error) error = earlier;
      try {
        if (event) wait_for(event);
      } catch (...) {
        if (!error) error = std::current_exception();
      }
      done(error);
    });
  });
}

std::shared_ptr<Mark> mark(const Cuda& cuda) {
  const auto mark = std::make_shared<CudaMark>(cuda.queue);
  cuda.queue->push([mark, cuda] { mark->event = record(cuda, cudaEventDefault); });
  return mark;
}

}  // namespace longseq
