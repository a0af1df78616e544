#include "transfer/transfer.h"

#include <utility>

#include "core/task_queue.h"
#include "elementwise/elementwise.h"

namespace longseq {

void Fence::signal(Word word) {
  const std::lock_guard lock(mutex_);
  word_ = std::move(word);
  done_ = true;
  signalled_.notify_all();
}

std::shared_ptr<void> Fence::wait() {
  const TaskQueue::Held held;
  std::unique_lock lock(mutex_);
  signalled_.wait(lock, [&] { return done_; });
  if (word_.error) std::rethrow_exception(word_.error);
  return word_.event;
}

void queue_transfer(const Cpu& from, const Cpu& to, const Tensor& x, const Tensor& y) {
  const auto copied = std::make_shared<Fence>();
  from.queue->push_watcher([copied, x, y, &from](std::exception_ptr error) {
    try {
      if (!error) run(from, Copy{x, y});
    } catch (...) {
      error = std::current_exception();
    }
    copied->signal({.error = error, .event = nullptr});
  });
  push(to, [copied, y] { copied->wait(); });
}

Tensor transfer(Tensor x, const std::shared_ptr<Device>& device) {
  check(x.contiguous(), Code::Shape, "transfer: the tensor is not contiguous");
  check(!x.device()->closed(), Code::Disposed, "transfer: the tensor's device was disposed");
  const Tensor y = Tensor::empty(device, x.dtype, {x.shape.data(), static_cast<size_t>(x.rank)});
  if (x.elements() == 0) return y;
  if (x.device() == device) {
    copy(std::move(x), y);
    return y;
  }
  std::visit([&](const auto& from, const auto& to) { queue_transfer(from, to, x, y); }, x.device()->engine(),
             device->engine());
  return y;
}

}  // namespace longseq
