#pragma once
// A device is one in-order queue of operations. An operation is a plain struct; an engine (Cpu, Cuda) runs it
// through an overload `void run(const Engine&, const Operation&)` found by its name alone, so that the linker
// says what an engine lacks.
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <variant>

#include "core/error.h"
#include "core/memory.h"

struct CUstream_st;

namespace longseq {

class TaskQueue;
class Mark;
class KeptCopies;
struct Gpu;

/** The CPU engine: a native thread runs the queue in order, over the process's thread pool. */
struct Cpu {
  std::shared_ptr<TaskQueue> queue;
  std::shared_ptr<MemoryUse> use;
};

/**
 * The CUDA engine (core/device_cuda.cu): a stream of one GPU. A native thread launches what is queued, so
 * that no caller ever waits for the driver, and a second one waits for what was launched.
 */
struct Cuda {
  std::shared_ptr<TaskQueue> queue, waiter;
  std::shared_ptr<CUstream_st> stream;
  std::shared_ptr<MemoryUse> use;
  std::shared_ptr<KeptCopies> kept;  // the launching thread's
  const Gpu* gpu;
};

#ifdef LONGSEQ_HAVE_CUDA
using Engine = std::variant<Cpu, Cuda>;
#else
using Engine = std::variant<Cpu>;
#endif

/** Called once everything queued before has run, with the queue's first error since the last wait (or null).
 */
using Completion = std::function<void(std::exception_ptr)>;

/** What an engine does besides its operations; each is defined beside the engine. */
Cpu open_cpu(const std::shared_ptr<MemoryUse>& use);
Cuda open_cuda(int ordinal, const std::shared_ptr<MemoryUse>& use, bool goes_first);
void close(const Cpu& cpu);
void close(const Cuda& cuda);
void check_room(const Cpu& cpu, size_t bytes);
void check_room(const Cuda& cuda, size_t bytes);
Memory allocate(const Cpu& cpu, size_t bytes);
Memory allocate(const Cuda& cuda, size_t bytes);
Memory allocate_staging(const Cpu& cpu, size_t bytes);
Memory allocate_staging(const Cuda& cuda, size_t bytes);
void push(const Cpu& cpu, std::function<void()> task);
void push(const Cuda& cuda, std::function<void()> task);
void when_done(const Cpu& cpu, Completion done);
void when_done(const Cuda& cuda, Completion done);
std::shared_ptr<Mark> mark(const Cpu& cpu);
std::shared_ptr<Mark> mark(const Cuda& cuda);

class Device : public std::enable_shared_from_this<Device> {
 public:
  /** "cpu", "cuda" or "cuda:N". Throws Error(NoCuda) where this build or this machine has no such GPU. What
   * goes first gets a GPU's multiprocessors as they become free, before the blocks of other queues' kernels
   * that are waiting. */
  static std::shared_ptr<Device> open(const std::string& name, bool goes_first = false);
  /** LONGSEQ_DEVICE, else "cuda" where there is a GPU that can be used, else "cpu". */
  static const std::string& default_name();
  ~Device();

  const std::string& name() const { return name_; }
  const std::shared_ptr<MemoryUse>& memory() const { return memory_; }
  const Engine& engine() const { return engine_; }
  bool is_cpu() const { return std::holds_alternative<Cpu>(engine_); }
  bool owns(const Mark& mark) const;

  /** Throws Error(OutOfMemory) where so much could never be allocated. */
  void check_room(size_t bytes) const;
  /** Its contents are undefined. Throws Error(OutOfMemory). */
  Memory allocate(size_t bytes) const;
  /** Memory of the host, from which the engine copies fast. */
  Memory allocate_staging(size_t bytes) const;

  /** Queues `operation`, which holds references to its tensors' storage until it has run. */
  template <class Operation>
  void submit(Operation operation) {
    check_open();
    std::visit(
        [&](const auto& engine) {
          push(engine, [operation = std::move(operation), &engine] { run(engine, operation); });
        },
        engine_);
  }
  /** Queues `done`; returns at once. It runs on a native thread, and also when the queue has failed. */
  void when_done(Completion done) const;
  /** Notes the time at which everything queued so far has run. */
  std::shared_ptr<Mark> mark() const;

  /** Refuses further work. What is queued still runs. */
  void close();
  bool closed() const { return closed_; }

 private:
  Device(std::string name, bool goes_first);
  void check_open() const;

  std::string name_;
  std::shared_ptr<MemoryUse> memory_ = std::make_shared<MemoryUse>();
  Engine engine_;
  bool closed_ = false;
};

/** A point of a queue's work. */
class Mark {
 public:
  explicit Mark(std::shared_ptr<TaskQueue> owner) : queue(std::move(owner)) {}
  virtual ~Mark() = default;
  const std::shared_ptr<TaskQueue> queue;
  /** Milliseconds from `earlier`, of the same queue, to this. Both have been reached. */
  virtual double since(const Mark& earlier) const = 0;
};

}  // namespace longseq
