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

/** Where threads stop for good once the process ends, for what they call may be gone by then. */
class ExitGate {
 public:
  void enter();
  void leave() { inside_--; }
  /** Nobody comes in from here on. Waits for those who are inside, though not for ever: returns whether all
   * left. */
  bool close();

 private:
  std::atomic<bool> closed_{false};
  std::atomic<int> inside_{0};
};

class TaskQueue {
 public:
  /**
   * The thread shares ownership: it drains the queue after close(), then ends. It is never joined. Each task
   * runs within `gate`, where there is one.
   */
  static std::shared_ptr<TaskQueue> start(const char* name, ExitGate* gate = nullptr);

  void push(std::function<void()> task);
  /** `done` gets the first exception of the tasks before it; that error then counts as reported. */
  void push_completion(std::function<void(std::exception_ptr)> done);
  /** `look` gets that exception too, which stays to be reported. */
  void push_watcher(std::function<void(std::exception_ptr)> look);
  void close();
  /** Whether the caller is the queue's thread, which must not wait for itself. */
  bool is_current_thread() const;

  /** While a task waits for what other queues do: for what JavaScript may not have called yet. */
  class Held {
   public:
    Held();
    ~Held();
  };
  bool is_held() const { return held_; }

 private:
  struct Entry {
    std::function<void()> task;
    std::function<void(std::exception_ptr)> completion, watcher;
  };
  explicit TaskQueue(ExitGate* gate) : gate_(gate) {}
  void enqueue(Entry entry);
  void work();

  ExitGate* const gate_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Entry> entries_;
  std::atomic<int64_t> pushed_{0};  // what the thread watches while it spins
  bool sleeping_ = false;
  bool closed_ = false;
  std::atomic<bool> held_{false};
};

}  // namespace longseq
