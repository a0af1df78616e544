#pragma once
// Ranks that exchange tensors. A rank is a device and its place in a group. Its exchanges run in the order of
// the calls on a queue of their own, the link, beside what the device computes.
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "transfer/transfer.h"

namespace longseq {

/**
 * What a rank sends and receives in one step, to which all ranks of the group come. What it sends to a peer
 * is received by it in the same order. All are contiguous.
 *
 * Where ranks share memory, what is received as Tensor::borrowed is the sender's own memory. That one writes
 * to it, or lets others, when it has come back: when the borrower has sent it, and it is received in the
 * place where it is.
 */
struct Exchange {
  std::vector<Tensor> sent, received;
  std::vector<int> to, from;
};

/** How a rank reaches the others. These run on the link's queue, but for what says otherwise. */
class Transport {
 public:
  virtual ~Transport() = default;
  /** The link's first task. */
  virtual void begin(const Engine&) {}
  virtual void exchange(const Engine& link, const Exchange&) = 0;
  /** A step to which all come, and that none leaves before that. */
  virtual void barrier(const Engine& link) { exchange(link, {}); }
  /** The others learn that this rank can go on no more. */
  virtual void fail(std::exception_ptr why) noexcept = 0;
  /** This rank comes to no further step. */
  virtual void leave() noexcept = 0;

  /**
   * On the caller's thread, as all below. Of the group of these ranks, of which this is one. All of them call
   * it, in the same order of calls.
   */
  virtual std::shared_ptr<Transport> group(const std::shared_ptr<Device>& link,
                                           const std::vector<int>& ranks) = 0;
  /** No further call will be made: what is queued still runs, and then the rank leaves. */
  virtual void close() {}
  /** The device has been told to wait for steps that may still fail: then its next wait throws. */
  virtual void guard(const std::shared_ptr<Device>&) {}
  /** Why the group can go on no more; empty while it can. */
  virtual std::string failure() const { return {}; }
  /** Whether all ranks are queues of one memory, so that they can lend each other tensors. */
  virtual bool shares_memory() const { return false; }
  /** Ends the group, for a reason that is known outside of it. */
  virtual void end(const std::string& why) = 0;
  /** How many steps this rank has come to. */
  virtual int64_t steps() const { return 0; }
  /** A rank has left after so many steps. */
  virtual void left(int, int64_t) {}
};

/**
 * The tensors of a step. The link keeps them until it has run it, which takes until the host hears of it; or
 * until the device has been told to wait for it, for what becomes of their memory then comes behind that.
 */
class StepTensors {
 public:
  explicit StepTensors(std::vector<Tensor> tensors) : tensors_(std::move(tensors)) {}
  void let_go() {
    std::vector<Tensor> gone;
    const std::lock_guard lock(mutex_);
    gone.swap(tensors_);
  }

 private:
  std::mutex mutex_;
  std::vector<Tensor> tensors_;
};

class Communicator {
 public:
  Communicator(std::shared_ptr<Device> device, std::shared_ptr<Transport> transport, int rank, int size);
  ~Communicator();

  int rank() const { return rank_; }
  int size() const { return size_; }
  const std::shared_ptr<Device>& device() const { return device_; }

  /** The link goes on with its next step when the device has run what is queued on it until then. */
  void follow();
  void exchange(Exchange step);
  /** All ranks come to it before any goes on. */
  void barrier();
  /** On the link: y = the sum of the parts. */
  void sum(std::vector<Tensor> parts, Tensor y);
  /** Reached when the link has run what is queued on it so far. */
  std::shared_ptr<Fence> fence();
  /** The device goes on when the fence is reached, which must be of this communicator. */
  void join(const std::shared_ptr<Fence>& fence);
  std::shared_ptr<Communicator> group(const std::vector<int>& ranks);
  /** Refuses further work. What is queued still runs, then the others learn that this rank has left. */
  void close();
  const std::shared_ptr<Device>& link() const { return link_; }
  Transport& transport() const { return *transport_; }

 private:
  void check_open() const;
  void check_tensor(const Tensor& tensor, const char* what) const;
  /** Queues a step of these tensors, behind the device where it is to follow, or has yet to take memory. */
  template <class Operation>
  void submit(std::vector<Tensor> tensors, Operation operation);
  void queue_follow();

  const std::shared_ptr<Device> device_, link_;
  const std::shared_ptr<Transport> transport_;
  const int rank_, size_;
  bool closed_ = false, follows_ = false;
  std::vector<std::shared_ptr<StepTensors>> in_use_;  // by steps since the last fence
};

/** Ranks of this process, one for each device, which are all of one kind. */
std::vector<std::shared_ptr<Communicator>> local_communicators(
    const std::vector<std::shared_ptr<Device>>& devices, double timeout_ms);
/** One of them, where each is made in a thread of its own: the group is known by its name. */
std::shared_ptr<Communicator> join_local(const std::string& name, int rank, int size,
                                         const std::shared_ptr<Device>& device, double timeout_ms);

/** An operation of the link's queue. Its tensors are of another device, so it keeps the link alive itself. */
template <class Operation>
struct LinkStep {
  std::shared_ptr<Device> link;
  std::shared_ptr<StepTensors> tensors;
  Operation operation;
};
struct ExchangeStep {
  std::shared_ptr<Transport> transport;
  Exchange exchange;
};
struct BarrierStep {
  std::shared_ptr<Transport> transport;
};
/** Keeps what the queue has just been given until it has run it: the tensors' own stream does not know. */
inline void hold(const Cpu&, std::shared_ptr<const void>) {}
void hold(const Cuda& queue, std::shared_ptr<const void> what);

template <class Queue, class Operation>
void run(const Queue& queue, const LinkStep<Operation>& step) {
  std::exception_ptr error;
  try {
    if constexpr (std::is_same_v<Operation, ExchangeStep>) {
      step.operation.transport->exchange(step.link->engine(), step.operation.exchange);
    } else if constexpr (std::is_same_v<Operation, BarrierStep>) {
      step.operation.transport->barrier(step.link->engine());
    } else {
      run(queue, step.operation);
    }
  } catch (...) {
    error = std::current_exception();  // part of it may run nevertheless
    if constexpr (requires { step.operation.transport; }) step.operation.transport->fail(error);
  }
  hold(queue, std::make_shared<std::pair<std::shared_ptr<Device>, std::shared_ptr<StepTensors>>>(
                  step.link, step.tensors));
  if (error) std::rethrow_exception(error);
}

std::string message_of(const std::exception_ptr& error);

/** Of the queue: what is queued keeps it. */
using Owner = std::shared_ptr<Device>;
/** `fence` is signalled when `queue` comes to it, with the first error that the queue had. */
void queue_signal(const Cpu& queue, const std::shared_ptr<Fence>& fence, Owner owner);
void queue_signal(const Cuda& queue, const std::shared_ptr<Fence>& fence, Owner owner);
/** `queue` waits for it. An error that it brings is given to `failed`, and is then the queue's. */
using Failed = std::function<void(std::exception_ptr)>;
void queue_wait(const Cpu& queue, const std::shared_ptr<Fence>& fence, Owner owner, Failed failed);
void queue_wait(const Cuda& queue, const std::shared_ptr<Fence>& fence, Owner owner, Failed failed);

}  // namespace longseq
