#include "core/task_queue.h"

#include <pthread.h>
#include <unistd.h>

#include <chrono>
#include <thread>
#include <utility>

namespace longseq {
namespace {
thread_local TaskQueue* current = nullptr;
}

void ExitGate::enter() {
  inside_++;
  if (!closed_) return;
  inside_--;
  for (;;) pause();
}

bool ExitGate::close() {
  closed_ = true;
  for (int tries = 0; tries < 300 && inside_ > 0; tries++) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return inside_ == 0;
}

std::shared_ptr<TaskQueue> TaskQueue::start(const char* name, ExitGate* gate) {
  std::shared_ptr<TaskQueue> queue(new TaskQueue(gate));
  std::thread([queue, name] {
    pthread_setname_np(pthread_self(), name);
    current = queue.get();
    queue->work();
  }).detach();
  return queue;
}

TaskQueue::Held::Held() {
  if (current) current->held_ = true;
}
TaskQueue::Held::~Held() {
  if (current) current->held_ = false;
}

void TaskQueue::push(std::function<void()> task) {
  enqueue({.task = std::move(task), .completion = nullptr, .watcher = nullptr});
}

void TaskQueue::push_completion(std::function<void(std::exception_ptr)> done) {
  enqueue({.task = nullptr, .completion = std::move(done), .watcher = nullptr});
}

void TaskQueue::push_watcher(std::function<void(std::exception_ptr)> look) {
  enqueue({.task = nullptr, .completion = nullptr, .watcher = std::move(look)});
}

void TaskQueue::enqueue(Entry entry) {
  bool wake;
  {
    std::lock_guard lock(mutex_);
    entries_.push_back(std::move(entry));
    pushed_.fetch_add(1, std::memory_order_relaxed);
    wake = std::exchange(sleeping_, false);
  }
  if (wake) wake_.notify_one();
}

void TaskQueue::close() {
  std::lock_guard lock(mutex_);
  closed_ = true;
  wake_.notify_one();
}

bool TaskQueue::is_current_thread() const { return current == this; }

void TaskQueue::work() {
  using Clock = std::chrono::steady_clock;
  // Waking a sleeping thread costs the caller a few microseconds: a queue that was just busy waits this long
  // awake.
  constexpr auto kSpin = std::chrono::microseconds(30);
  std::exception_ptr error;
  std::unique_lock lock(mutex_);
  for (;;) {
    if (entries_.empty() && !closed_) {
      const int64_t seen = pushed_.load(std::memory_order_relaxed);
      lock.unlock();
      for (const auto until = Clock::now() + kSpin; pushed_.load(std::memory_order_relaxed) == seen;) {
        if (Clock::now() > until) break;
        std::this_thread::yield();
      }
      lock.lock();
      sleeping_ = entries_.empty();
      wake_.wait(lock, [&] { return !entries_.empty() || closed_; });
      sleeping_ = false;
    }
    if (entries_.empty()) return;
    Entry entry = std::move(entries_.front());
    entries_.pop_front();
    lock.unlock();
    if (gate_) gate_->enter();
    if (entry.completion) {
      entry.completion(std::exchange(error, nullptr));
    } else if (entry.watcher) {
      entry.watcher(error);
    } else {
      try {
        entry.task();
      } catch (...) {
        if (!error) error = std::current_exception();
      }
    }
    entry = {};  // its tensors' storage is let go outside the lock
    if (gate_) gate_->leave();
    lock.lock();
  }
}

}  // namespace longseq
