#pragma once
// An in-order queue of closures with a thread of its own.
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>

namespace longseq {

class TaskQueue {
 public:
  /** The thread shares ownership: it drains the queue after close(), then ends. It is never joined. */
  static std::shared_ptr<TaskQueue> start(const char* name);

  void push(std::function<void()> task);
  /** `done` gets the first exception of the tasks before it; that error then counts as reported. */
  void push_completion(std::function<void(std::exception_ptr)> done);
  void close();
  /** Whether the caller is the queue's thread, which must not wait for itself. */
  bool is_current_thread() const;

 private:
  struct Entry {
    std::function<void()> task;
    std::function<void(std::exception_ptr)> completion;
  };
  TaskQueue() = default;
  void enqueue(Entry entry);
  void work();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Entry> entries_;
  std::atomic<int64_t> pushed_{0};  // what the thread watches while it spins
  bool sleeping_ = false;
  bool closed_ = false;
};

}  // namespace longseq
