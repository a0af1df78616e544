#pragma once
// A tensor's values in a new tensor of another device. Each queue goes on in its own order: the new tensor's
// waits until the values have come, the old one's is not waited for.
#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>

#include "core/tensor.h"

namespace longseq {

/** x must be contiguous. Queues the copy and returns at once. An error of x's queue becomes one of the new
 * tensor's. */
Tensor transfer(Tensor x, const std::shared_ptr<Device>& device);

/**
 * One queue's word to another that it has come so far. A queue waits only for what was queued before, on
 * whichever queue, so that there is always one that goes on.
 */
class Fence {
 public:
  struct Word {
    std::exception_ptr error;
    std::shared_ptr<void> event;  // a GPU's own, that is still to be waited for
  };
  void signal(Word word);
  /** Throws the error. */
  std::shared_ptr<void> wait();
  /** By the queue that has waited, if all went well; once. */
  void let_go() {
    if (const auto release = std::exchange(on_let_go, nullptr)) release();
  }
  /** Set before anyone waits. */
  std::function<void()> on_let_go;

 private:
  std::mutex mutex_;
  std::condition_variable signalled_;
  bool done_ = false;
  Word word_;
};

/** Queue the copy from x to y, which is new: nothing else has been queued on it. */
void queue_transfer(const Cpu& from, const Cpu& to, const Tensor& x, const Tensor& y);
void queue_transfer(const Cpu& from, const Cuda& to, const Tensor& x, const Tensor& y);
void queue_transfer(const Cuda& from, const Cpu& to, const Tensor& x, const Tensor& y);
void queue_transfer(const Cuda& from, const Cuda& to, const Tensor& x, const Tensor& y);

}  // namespace longseq
