// Ranks over NCCL. All calls are non-blocking (but the library of before 2.19, whose abort waits): the link's
// thread launches, a watcher's thread sees to it that what was launched ends, and ends it where it does not.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <future>
#include <limits>
#include <mutex>
#include <optional>
#include <thread>

#include "comm/nccl.h"
#include "core/cuda.h"
#include "core/task_queue.h"

namespace longseq {
namespace {

using Clock = std::chrono::steady_clock;
using nccl::is_error;

/** From one look to the next: awake at first, then asleep, up to a hundredth of a second. */
class Patience {
 public:
  void rest() {
    if (looks_++ < 100) return std::this_thread::yield();
    std::this_thread::sleep_for(pause_);
    pause_ = std::min(2 * pause_, std::chrono::microseconds(10'000));
  }

 private:
  int looks_ = 0;
  std::chrono::microseconds pause_{20};
};

class NcclTransport;

/** What the first communicator and the groups made of it share: all of them go on, or none. */
class Fellowship {
 public:
  explicit Fellowship(double timeout_ms) : timeout_ms_(timeout_ms) {}

  void add(const std::shared_ptr<NcclTransport>& transport) {
    const std::lock_guard lock(mutex_);
    std::erase_if(transports_, [](const auto& known) { return known.expired(); });
    transports_.push_back(transport);
  }
  std::string failure() const {
    const std::lock_guard lock(mutex_);
    return failure_;
  }
  /** Throws the failure. */
  void check_well() const {
    if (const std::string why = failure(); !why.empty()) throw Error(Code::Comm, why);
  }
  /** The first reason counts. */
  void fail(const std::string& why);

  bool is_over(Clock::time_point since) const {
    return Clock::now() - since > std::chrono::duration<double, std::milli>(timeout_ms_);
  }
  std::string timeout_text() const { return text(timeout_ms_ / 1000, " s"); }

 private:
  const double timeout_ms_;
  mutable std::mutex mutex_;
  std::string failure_;
  std::vector<std::weak_ptr<NcclTransport>> transports_;
};

class NcclTransport : public Transport, public std::enable_shared_from_this<NcclTransport> {
 public:
  /** `names` are the ranks' numbers in the first communicator. */
  NcclTransport(std::shared_ptr<Fellowship> fellowship, std::shared_future<nccl::Id> id, int rank,
                std::vector<int> names)
      : fellowship_(std::move(fellowship)),
        id_(std::move(id)),
        rank_(rank),
        names_(std::move(names)),
        watcher_(TaskQueue::start("longseq-nccl", &exit_gate())) {}

  void begin(const Engine& link) override;
  void exchange(const Engine& link, const Exchange&) override;
  void barrier(const Engine& link) override;
  void fail(std::exception_ptr why) noexcept override {
    end(text(name(rank_), " failed: ", message_of(why)));
  }
  void leave() noexcept override;
  std::shared_ptr<Transport> group(const std::shared_ptr<Device>& link,
                                   const std::vector<int>& ranks) override;
  void guard(const std::shared_ptr<Device>& device) override;
  std::string failure() const override { return fellowship_->failure(); }
  void end(const std::string& why) override { fellowship_->fail("communicator: " + why); }
  int64_t steps() const override { return steps_; }
  void left(int rank, int64_t steps) override;

  /** Soon nothing of it runs on. Returns at once. */
  void stop() {
    if (!is_leaving_) watcher_->push([self = shared_from_this()] { self->cancel(); });
  }

 private:
  std::string name(int rank) const { return text("rank ", names_[static_cast<size_t>(rank)]); }
  std::string names_of(std::vector<int> peers) const;
  /** A step of all: counted, so that who has left is missed only by what comes later. */
  void count_step();
  /** Launches what `work`, which gives a status, asks of NCCL. `what` is for messages. */
  template <class Work>
  void perform(const Cuda& cuda, const std::string& what, Work work);
  void exchange_parcels(const Cuda& cuda, const std::string& what, const Exchange& own);
  void copy_own(const Cuda& cuda, const Exchange& own);
  /** Waits until NCCL has launched, or set up, what it was asked for. */
  void settle(const std::string& what);
  /** Fails all of the fellowship, and throws, where there is an error. */
  void check_status(nccl::Status status, const std::string& what);
  /** What NCCL says of itself. */
  nccl::Status state();
  /** Throws where what has arrived cannot be relied on. */
  void confirm();
  /** Until `done`, which must come in time from when `reached` does. */
  void watch(const Event& reached, const Event& done, const std::string& what);
  void cancel();
  void destroy();
  nccl::Id share_id(const Cuda& cuda, const std::vector<int>& ranks);

  const std::shared_ptr<Fellowship> fellowship_;
  const std::shared_future<nccl::Id> id_;
  const int rank_;
  const std::vector<int> names_;
  const std::shared_ptr<TaskQueue> watcher_;
  std::atomic<bool> is_leaving_{false};  // from then on what is watched still stops where it must, by itself

  std::mutex mutex_;  // of the handle, which one thread may use at a time
  nccl::Handle handle_ = nullptr;
  Memory one_byte_;

  std::mutex steps_mutex_;
  std::atomic<int64_t> steps_{0};
  int64_t last_step_ = std::numeric_limits<int64_t>::max();
  int leaver_ = 0;
};

void Fellowship::fail(const std::string& why) {
  std::vector<std::shared_ptr<NcclTransport>> ending;
  {
    const std::lock_guard lock(mutex_);
    if (!failure_.empty()) return;
    failure_ = why;
    for (const auto& known : transports_) {
      if (auto transport = known.lock()) ending.push_back(std::move(transport));
    }
  }
  for (const auto& transport : ending) transport->stop();
}

std::string NcclTransport::names_of(std::vector<int> peers) const {
  std::sort(peers.begin(), peers.end());
  peers.erase(std::unique(peers.begin(), peers.end()), peers.end());
  std::erase(peers, rank_);
  std::string out;
  for (const int peer : peers) out += (out.empty() ? "" : ", ") + text(names_[static_cast<size_t>(peer)]);
  return (peers.size() == 1 ? "rank " : "ranks ") + out;
}

void NcclTransport::count_step() {
  const std::lock_guard lock(steps_mutex_);
  if (++steps_ > last_step_) end(name(leaver_) + " has left");
}

void NcclTransport::left(int rank, int64_t steps) {
  const std::lock_guard lock(steps_mutex_);
  if (steps >= last_step_) return;
  last_step_ = steps;
  leaver_ = rank;
  if (steps_ > last_step_) end(name(leaver_) + " has left");
}

nccl::Status NcclTransport::state() {
  const std::lock_guard lock(mutex_);
  if (handle_ == nullptr) return nccl::kSuccess;
  nccl::Status state = nccl::kSuccess;
  const nccl::Status status = nccl::functions().CommGetAsyncError(handle_, &state);
  return is_error(status) ? status : state;
}

void NcclTransport::check_status(nccl::Status status, const std::string& what) {
  if (is_error(status)) {
    const nccl::Functions& library = nccl::functions();
    end(text(what, ": NCCL: ", library.GetErrorString(status), " (", library.GetLastError(nullptr), ")"));
  }
  fellowship_->check_well();
}

void NcclTransport::settle(const std::string& what) {
  const auto since = Clock::now();
  try {
    for (Patience patience;; patience.rest()) {
      const nccl::Status status = state();
      check_status(status, what);
      if (status == nccl::kSuccess) return;
      if (fellowship_->is_over(since))
        end(text(what, " could not begin within ", fellowship_->timeout_text()));
    }
  } catch (...) {
    cancel();  // what is half launched must not run on when its tensors are let go
    throw;
  }
}

void NcclTransport::begin(const Engine& link) {
  const Cuda& cuda = std::get<Cuda>(link);
  watcher_->push([gpu = cuda.gpu] { use_gpu(*gpu); });
  const std::string what = text("the meeting of ", names_.size(), names_.size() == 1 ? " rank" : " ranks");
  const nccl::Id id = id_.get();
  fellowship_->check_well();
  one_byte_ = allocate(cuda, 1);
  nccl::Status status;
  {
    const std::lock_guard lock(mutex_);
    nccl::Config config;
    status =
        nccl::functions().CommInitRankConfig(&handle_, static_cast<int>(names_.size()), id, rank_, &config);
  }
  check_status(status, what);
  settle(what);
}

template <class Work>
void NcclTransport::perform(const Cuda& cuda, const std::string& what, Work work) {
  fellowship_->check_well();
  const Event reached = record(cuda);
  nccl::Status status;
  {
    const std::lock_guard lock(mutex_);
    if (handle_ == nullptr) fellowship_->check_well();
    check(handle_ != nullptr, Code::Comm, "communicator: ", what, ": the ranks have not met");
    const nccl::Functions& library = nccl::functions();
    status = library.GroupStart();
    if (!is_error(status)) {
      const nccl::Status asked = work(library, handle_);
      const nccl::Status ended = library.GroupEnd();
      status = is_error(asked) ? asked : ended;
    }
  }
  check_status(status, what);
  settle(what);
  watcher_->push(
      [self = shared_from_this(), reached, done = record(cuda), what] { self->watch(reached, done, what); });
}

void NcclTransport::exchange(const Engine& link, const Exchange& own) {
  const Cuda& cuda = std::get<Cuda>(link);
  count_step();
  std::vector<int> peers = own.to;
  peers.insert(peers.end(), own.from.begin(), own.from.end());
  copy_own(cuda, own);
  exchange_parcels(cuda, text("step ", steps_.load(), " with ", names_of(std::move(peers))), own);
}

void NcclTransport::barrier(const Engine& link) {
  const Cuda& cuda = std::get<Cuda>(link);
  count_step();
  perform(cuda, text("step ", steps_.load(), ", a barrier"),
          [&](const nccl::Functions& library, nccl::Handle handle) {
            return library.AllReduce(one_byte_.data, one_byte_.data, 1, nccl::DataType::Int8,
                                     nccl::Reduction::Sum, handle, cuda.stream.get());
          });
}

void NcclTransport::copy_own(const Cuda& cuda, const Exchange& own) {
  std::vector<const Tensor*> sent, received;
  for (size_t i = 0; i < own.sent.size(); i++) {
    if (own.to[i] == rank_) sent.push_back(&own.sent[i]);
  }
  for (size_t i = 0; i < own.received.size(); i++) {
    if (own.from[i] == rank_) received.push_back(&own.received[i]);
  }
  bool agree = sent.size() == received.size();
  for (size_t i = 0; i < sent.size() && agree; i++) {
    agree = sent[i]->dtype == received[i]->dtype && sent[i]->elements() == received[i]->elements();
  }
  if (!agree) {
    end(text(name(rank_), " sends to itself something else than it receives"));
    fellowship_->check_well();
  }
  for (size_t i = 0; i < sent.size(); i++) {
    if (sent[i]->bytes() == 0) continue;
    cuda_check(
        cudaMemcpyAsync(received[i]->data<char>(), sent[i]->data<char>(),
                        static_cast<size_t>(sent[i]->bytes()), cudaMemcpyDeviceToDevice, cuda.stream.get()),
        "a rank's exchange");
  }
}

void NcclTransport::exchange_parcels(const Cuda& cuda, const std::string& what, const Exchange& own) {
  const auto crosses = [&](const Tensor& tensor, int peer) { return peer != rank_ && tensor.bytes() > 0; };
  perform(cuda, what, [&](const nccl::Functions& library, nccl::Handle handle) {
    nccl::Status status = nccl::kSuccess;
    for (size_t i = 0; i < own.sent.size() && !is_error(status); i++) {
      const Tensor& tensor = own.sent[i];
      if (!crosses(tensor, own.to[i])) continue;
      status = library.Send(tensor.data<char>(), static_cast<size_t>(tensor.bytes()), nccl::DataType::Int8,
                            own.to[i], handle, cuda.stream.get());
    }
    for (size_t i = 0; i < own.received.size() && !is_error(status); i++) {
      const Tensor& tensor = own.received[i];
      if (!crosses(tensor, own.from[i])) continue;
      status = library.Recv(tensor.data<char>(), static_cast<size_t>(tensor.bytes()), nccl::DataType::Int8,
                            own.from[i], handle, cuda.stream.get());
    }
    return status;
  });
}

void NcclTransport::watch(const Event& reached, const Event& done, const std::string& what) {
  const auto has_come = [](const Event& event) {
    const cudaError_t status = cudaEventQuery(event.get());
    if (status != cudaErrorNotReady) cuda_check(status, "a rank's exchange");
    return status == cudaSuccess;
  };
  std::optional<Clock::time_point> since;
  try {
    for (Patience patience; !has_come(done); patience.rest()) {
      if (!since && has_come(reached)) since = Clock::now();
      if (since && fellowship_->is_over(*since)) {
        end(text(what, " did not end within ", fellowship_->timeout_text()));
      }
      check_status(state(), what);
    }
  } catch (const std::exception& error) {
    end(text(what, ": ", error.what()));
    cancel();
  }
}

void NcclTransport::confirm() { check_status(state(), "what has arrived"); }

void NcclTransport::guard(const std::shared_ptr<Device>& device) {
  const Cuda& cuda = std::get<Cuda>(device->engine());
  cuda.queue->push([self = shared_from_this(), device, &cuda] {
    cuda.waiter->push([self, event = record(cuda)] {
      wait_for(event);
      self->confirm();
    });
  });
}

void NcclTransport::cancel() {
  const std::lock_guard lock(mutex_);
  if (handle_ != nullptr) nccl::functions().CommAbort(std::exchange(handle_, nullptr));
}

void NcclTransport::destroy() {
  if (!failure().empty()) return cancel();
  const std::lock_guard lock(mutex_);
  if (handle_ != nullptr) nccl::functions().CommDestroy(std::exchange(handle_, nullptr));
}

void NcclTransport::leave() noexcept {
  is_leaving_ = true;
  // Behind the watch for all that was launched.
  watcher_->push([self = shared_from_this()] { self->destroy(); });
  watcher_->close();
}

std::shared_ptr<Transport> NcclTransport::group(const std::shared_ptr<Device>& link,
                                                const std::vector<int>& ranks) {
  std::vector<int> names;
  for (const int rank : ranks) names.push_back(names_[static_cast<size_t>(rank)]);
  const auto place = std::find(ranks.begin(), ranks.end(), rank_) - ranks.begin();
  const auto id = std::make_shared<std::promise<nccl::Id>>();
  auto made = std::make_shared<NcclTransport>(fellowship_, id->get_future().share(), static_cast<int>(place),
                                              std::move(names));
  fellowship_->add(made);
  const Cuda& cuda = std::get<Cuda>(link->engine());
  cuda.queue->push([self = shared_from_this(), link, &cuda, ranks, id] {
    try {
      id->set_value(self->share_id(cuda, ranks));
    } catch (...) {
      id->set_exception(std::current_exception());
      self->fail(std::current_exception());
      throw;
    }
  });
  return made;
}

nccl::Id NcclTransport::share_id(const Cuda& cuda, const std::vector<int>& ranks) {
  const bool is_first = ranks[0] == rank_;
  nccl::Id id{};
  if (is_first) id = nccl::unique_id();
  if (ranks.size() == 1) return id;
  const Memory there = allocate(cuda, sizeof(id)), here = pinned_memory(sizeof(id));
  const auto copy = [&](void* to, const void* from, cudaMemcpyKind kind) {
    cuda_check(cudaMemcpyAsync(to, from, sizeof(id), kind, cuda.stream.get()), "a group's id");
  };
  std::memcpy(here.data, &id, sizeof(id));
  if (is_first) copy(there.data, here.data, cudaMemcpyHostToDevice);
  perform(cuda, "the making of a group with " + names_of(ranks),
          [&](const nccl::Functions& library, nccl::Handle handle) {
            if (!is_first) {
              return library.Recv(there.data, sizeof(id), nccl::DataType::Int8, ranks[0], handle,
                                  cuda.stream.get());
            }
            nccl::Status status = nccl::kSuccess;
            for (size_t i = 1; i < ranks.size() && !is_error(status); i++) {
              status = library.Send(there.data, sizeof(id), nccl::DataType::Int8, ranks[i], handle,
                                    cuda.stream.get());
            }
            return status;
          });
  if (!is_first) copy(here.data, there.data, cudaMemcpyDeviceToHost);
  wait_for(record(cuda));
  check_status(state(), "the making of a group");
  std::memcpy(&id, here.data, sizeof(id));
  return id;
}

}  // namespace

std::shared_ptr<Transport> nccl_transport(const nccl::Id& id, int rank, int size, double timeout_ms) {
  nccl::functions();
  std::promise<nccl::Id> known;
  known.set_value(id);
  std::vector<int> names(static_cast<size_t>(size));
  for (int i = 0; i < size; i++) names[static_cast<size_t>(i)] = i;
  const auto fellowship = std::make_shared<Fellowship>(timeout_ms);
  auto made = std::make_shared<NcclTransport>(fellowship, known.get_future().share(), rank, std::move(names));
  fellowship->add(made);
  return made;
}

}  // namespace longseq
