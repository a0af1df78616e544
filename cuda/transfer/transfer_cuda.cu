// Transfers from and to a GPU: the source's queue copies, but for the host's memory, which a GPU's queue
// reads.
#include <cstring>

#include "core/cuda.h"
#include "core/task_queue.h"
#include "transfer/transfer.h"

namespace longseq {
namespace {

/** Signals at the end of a scope, however that is left. */
class SignalAtEnd {
 public:
  explicit SignalAtEnd(Fence& fence) : fence_(fence) {}
  ~SignalAtEnd() { fence_.signal({}); }
  SignalAtEnd(const SignalAtEnd&) = delete;
  SignalAtEnd& operator=(const SignalAtEnd&) = delete;

 private:
  Fence& fence_;
};

}  // namespace

void queue_transfer(const Cpu& from, const Cuda& to, const Tensor& x, const Tensor& y) {
  const auto ready = std::make_shared<Fence>(), taken = std::make_shared<Fence>();
  from.queue->push_watcher([ready](std::exception_ptr error) { ready->signal({error, nullptr}); });
  push(to, [ready, taken, x, y, &to] {
    const SignalAtEnd signal(*taken);
    ready->wait();
    const Memory host{x.data<char>(), static_cast<size_t>(x.bytes()), x.storage};
    upload(to, y.data<char>(), host, host.bytes);
  });
  push(from, [taken, x] { taken->wait(); });
}

void queue_transfer(const Cuda& from, const Cpu& to, const Tensor& x, const Tensor& y) {
  const auto arrived = std::make_shared<Fence>();
  from.queue->push_watcher([arrived, x, y, &from](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
      download(
          from, x.data<char>(), static_cast<size_t>(x.bytes()),
          [y](size_t at, const void* part, size_t bytes) { std::memcpy(y.data<char>() + at, part, bytes); });
      from.waiter->push_watcher([arrived, event = record(from)](std::exception_ptr failure) {
        try {
          if (!failure) wait_for(event);
        } catch (...) {
          failure = std::current_exception();
        }
        arrived->signal({failure, nullptr});
      });
    } catch (...) {
      arrived->signal({std::current_exception(), nullptr});
    }
  });
  push(to, [arrived, y] { arrived->wait(); });
}

void queue_transfer(const Cuda& from, const Cuda& to, const Tensor& x, const Tensor& y) {
  const auto copied = std::make_shared<Fence>();
  y.storage->memory();            // at once, for another stream is the first to use it
  const Event made = record(to);  // it is y's own from this point of its stream on
  from.queue->push_watcher([copied, x, y, made, &from, &to](std::exception_ptr error) {
    std::shared_ptr<void> event;
    try {
      if (error) std::rethrow_exception(error);
      cuda_check(cudaStreamWaitEvent(from.stream.get(), made.get()), "a copy between GPUs");
      const auto bytes = static_cast<size_t>(x.bytes());
      cuda_check(from.gpu == to.gpu ? cudaMemcpyAsync(y.data<char>(), x.data<char>(), bytes,
                                                      cudaMemcpyDeviceToDevice, from.stream.get())
                                    : cudaMemcpyPeerAsync(y.data<char>(), to.gpu->ordinal, x.data<char>(),
                                                          from.gpu->ordinal, bytes, from.stream.get()),
                 "a copy between GPUs");
      event = record(from);
    } catch (...) {
      error = std::current_exception();
    }
    copied->signal({error, event});
  });
  push(to, [copied, y, &to] {
    const auto event = std::static_pointer_cast<CUevent_st>(copied->wait());
    cuda_check(cudaStreamWaitEvent(to.stream.get(), event.get()), "a copy between GPUs");
  });
}

}  // namespace longseq
