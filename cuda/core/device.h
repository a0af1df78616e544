#pragma once
// A device is one in-order queue of operations. An operation is a plain struct; an engine (Cpu, later Cuda)
// runs it through an overload `void run(Engine&, const Operation&)` found by its name alone, so that the
// linker says what an engine lacks.
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <variant>

#include "core/error.h"
#include "core/memory.h"

namespace longseq {

class TaskQueue;

/** The CPU engine: a native thread runs the queue in order, over the process's thread pool. */
struct Cpu {
  std::shared_ptr<TaskQueue> queue;
};

using Engine = std::variant<Cpu>;

/** Called once everything queued before has run, with the queue's first error since the last wait (or null).
 */
using Completion = std::function<void(std::exception_ptr)>;

class Device : public std::enable_shared_from_this<Device> {
 public:
  /** "cpu", "cuda" or "cuda:N". Throws Error(NoCuda) where this build or this machine has no GPU. */
  static std::shared_ptr<Device> open(const std::string& name);
  ~Device();

  const std::string& name() const { return name_; }
  const std::shared_ptr<MemoryUse>& memory() const { return memory_; }

  /** Queues `operation`, which holds references to its tensors' storage until it has run. */
  template <class Operation>
  void submit(Operation operation) {
    std::visit(
        [&](auto& engine) {
          push(engine, [operation = std::move(operation), &engine] { run(engine, operation); });
        },
        engine_);
  }
  /** Queues `done`; returns at once. It runs on the queue's thread, and also when the queue has failed. */
  void when_done(Completion done);

  /** Refuses further work. What is queued still runs. */
  void close();
  bool closed() const { return closed_; }

 private:
  explicit Device(std::string name);
  void push(Cpu& cpu, std::function<void()> task);

  std::string name_;
  std::shared_ptr<MemoryUse> memory_ = std::make_shared<MemoryUse>();
  Engine engine_;
  bool closed_ = false;
};

}  // namespace longseq
