#include "core/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "core/cgroup.h"
#include "core/environment.h"

namespace longseq {
namespace {

struct Job {
  FunctionRef<void(int64_t, int)> body;
  int64_t count;
  std::atomic<int64_t> next{0};
  int slots = 1;   // the caller holds slot 0
  int active = 0;  // pool threads inside the loop
  std::exception_ptr error;
  std::condition_variable done;

  bool exhausted() const { return next.load(std::memory_order_relaxed) >= count; }
};

class ThreadPool {
 public:
  explicit ThreadPool(int threads) {
    for (int i = 1; i < threads; i++) {
      try {
        std::thread([this] {
          pthread_setname_np(pthread_self(), "longseq-pool");
          work();
        }).detach();
      } catch (const std::system_error&) {
        return;  // the system has no more: those that there are hold on to this
      }
      const std::lock_guard lock(mutex_);
      threads_++;
    }
  }

  void run(int64_t count, FunctionRef<void(int64_t, int)> body) {
    Job job{.body = body, .count = count};
    std::unique_lock lock(mutex_);
    if (threads_ > 1 && count > 1) {
      jobs_.push_back(&job);
      lock.unlock();
      if (count > 2) {
        wake_.notify_all();
      } else {
        wake_.notify_one();
      }
    } else {
      lock.unlock();
    }
    loop(job, 0);
    lock.lock();
    std::erase(jobs_, &job);
    job.done.wait(lock, [&] { return job.active == 0; });
    if (job.error) std::rethrow_exception(job.error);
  }

 private:
  void loop(Job& job, int slot) {
    try {
      for (int64_t task; (task = job.next.fetch_add(1, std::memory_order_relaxed)) < job.count;)
        job.body(task, slot);
    } catch (...) {
      std::lock_guard lock(mutex_);
      if (!job.error) job.error = std::current_exception();
      job.next.store(job.count, std::memory_order_relaxed);
    }
  }

  Job* open_job() {
    for (Job* job : jobs_) {
      if (!job->exhausted() && job->slots < threads_) return job;
    }
    return nullptr;
  }

  [[noreturn]] void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      Job* job = nullptr;
      wake_.wait(lock, [&] { return (job = open_job()) != nullptr; });
      const int slot = job->slots++;
      job->active++;
      lock.unlock();
      loop(*job, slot);
      lock.lock();
      if (--job->active == 0) job->done.notify_one();
    }
  }

  std::mutex mutex_;
  int threads_ = 1;
  std::condition_variable wake_;
  std::vector<Job*> jobs_;
};

/** The smallest processor quota of a cgroup in cores, rounded up; 0 without one. */
int cgroup_cores() {
  double cores = 0;
  const auto limit = [&](double quota, double period) {
    if (quota > 0 && period > 0 && (cores == 0 || quota / period < cores)) cores = quota / period;
  };
  for (const std::string& folder : cgroup_folders("cpu")) {
    double quota, period;
    std::string most;
    std::ifstream unified(folder + "/cpu.max");
    if (unified >> most >> period && most != "max") limit(std::atof(most.c_str()), period);
    std::ifstream quota_file(folder + "/cpu.cfs_quota_us"), period_file(folder + "/cpu.cfs_period_us");
    if (quota_file >> quota && period_file >> period) limit(quota, period);
  }
  return static_cast<int>(std::ceil(cores));
}

int affinity_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return std::max(1u, std::thread::hardware_concurrency());
}

ThreadCount count_threads() {
  if (const int threads = count_from("LONGSEQ_THREADS", 1024)) return {threads, "LONGSEQ_THREADS"};
  const int cores = affinity_cores(), quota = cgroup_cores();
  if (quota > 0 && quota < cores) return {quota, "the cgroup's processor quota"};
  return {cores, "the cores this process may use"};
}

/** Never destroyed: its threads outlive main(), and may be inside a kernel while the process exits. */
ThreadPool& pool() {
  static ThreadPool* const pool = new ThreadPool(thread_count().threads);
  return *pool;
}

}  // namespace

ThreadCount thread_count() {
  static const ThreadCount count = count_threads();
  return count;
}

void parallel_for(int64_t count, FunctionRef<void(int64_t, int)> body) {
  if (count > 0) pool().run(count, body);
}

void parallel_for(int64_t count, FunctionRef<void(int64_t)> body) {
  parallel_for(count, [&](int64_t task, int) { body(task); });
}

}  // namespace longseq
