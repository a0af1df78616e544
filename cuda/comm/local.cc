// Ranks of one process: each copies what it receives from where the sender has it.
#include "comm/local.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <numeric>
#include <utility>

#include "comm/communicator.h"
#include "core/task_queue.h"

namespace longseq {

std::shared_ptr<LocalGroup::Step> LocalGroup::meet(int rank, Place place) {
  const TaskQueue::Held held;
  std::unique_lock lock(mutex_);
  const auto step = current_;
  if (failure_.empty()) {
    step->places[static_cast<size_t>(rank)] = std::move(place);
    if (++step->come == size()) {
      current_ = std::make_shared<Step>(size());
      changed_.notify_all();
    }
    const auto timeout = std::chrono::duration<double, std::milli>(timeout_ms_);
    const bool in_time =
        changed_.wait_for(lock, timeout, [&] { return step->come == size() || !failure_.empty(); });
    if (step->come == size()) return step;  // a failure from here on is the next step's
    if (!in_time) {
      failure_ = text("communicator: ", absent(*step), " did not come within ", timeout_ms_ / 1000, " s");
      changed_.notify_all();
    }
  }
  throw Error(Code::Comm, failure_);
}

void LocalGroup::depart(int rank, Step& step, std::shared_ptr<void> taken) {
  std::unique_lock lock(mutex_);
  step.places[static_cast<size_t>(rank)].taken = std::move(taken);
  if (++step.gone == size()) changed_.notify_all();
  changed_.wait(lock, [&] { return step.gone == size(); });
}

void LocalGroup::fail(const std::string& why) {
  const std::lock_guard lock(mutex_);
  if (failure_.empty()) failure_ = "communicator: " + why;
  changed_.notify_all();
}

std::string LocalGroup::absent(const Step& step) const {
  std::string names;
  int count = 0;
  for (int rank = 0; rank < size(); rank++) {
    if (step.places[static_cast<size_t>(rank)].exchange) continue;
    names += (count++ ? ", " : "") + std::to_string(name(rank));
  }
  return (count == 1 ? "rank " : "ranks ") + names;
}

std::shared_ptr<LocalGroup> LocalGroup::part(const std::vector<int>& ranks, int call) {
  const std::lock_guard lock(mutex_);
  std::erase_if(parts_, [](const auto& part) { return part.second.expired(); });
  auto& known = parts_[{ranks, call}];
  auto group = known.lock();
  if (!group) {
    std::vector<int> names;
    for (const int rank : ranks) names.push_back(name(rank));
    group = std::make_shared<LocalGroup>(std::move(names), timeout_ms_, shares_memory);
    known = group;
  }
  return group;
}

void LocalGroup::close() {
  const std::lock_guard lock(mutex_);
  closed_++;
}

bool LocalGroup::is_over() {
  const std::lock_guard lock(mutex_);
  return closed_ == size();
}

void LocalGroup::give_back(int rank) {
  const std::lock_guard lock(mutex_);
  taken_[static_cast<size_t>(rank)] = false;
}

bool LocalGroup::take(int rank) {
  const std::lock_guard lock(mutex_);
  return !std::exchange(taken_[static_cast<size_t>(rank)], true);
}

namespace {

class LocalTransport : public Transport {
 public:
  LocalTransport(std::shared_ptr<LocalGroup> group, int rank) : group_(std::move(group)), rank_(rank) {}

  void exchange(const Engine& link, const Exchange& own) override {
    std::visit([&](const auto& queue) { local_exchange(queue, *group_, rank_, own); }, link);
  }

  void fail(std::exception_ptr why) noexcept override {
    group_->fail(text("rank ", group_->name(rank_), " failed: ", message_of(why)));
  }
  void leave() noexcept override { group_->fail(text("rank ", group_->name(rank_), " has left")); }

  void close() override { group_->close(); }
  bool shares_memory() const override { return group_->shares_memory; }
  void end(const std::string& why) override { group_->fail(why); }

  std::shared_ptr<Transport> group(const std::shared_ptr<Device>&, const std::vector<int>& ranks) override {
    const auto place = std::find(ranks.begin(), ranks.end(), rank_) - ranks.begin();
    return std::make_shared<LocalTransport>(group_->part(ranks, calls_[ranks]++), static_cast<int>(place));
  }

 private:
  const std::shared_ptr<LocalGroup> group_;
  const int rank_;
  std::map<std::vector<int>, int> calls_;
};

/** Tells memories apart: the host's, and each GPU's. */
const void* memory_of(const Device& device) {
  return std::visit(
      [](const auto& engine) -> const void* {
        if constexpr (requires { engine.gpu; }) return engine.gpu;
        return nullptr;
      },
      device.engine());
}

/** Another rank's tensor has the memory from now on. It stays until that one's queue has run what uses it. */
void lend(const Tensor& from, const Tensor& to) {
  const auto give_back = [lender = from.storage, borrower = to.device()](void*) {
    try {
      std::visit([&](const auto& engine) { hold(engine, lender); }, borrower->engine());
    } catch (...) {  // the GPU is lost: nothing uses it any more
    }
  };
  char* const data = from.data<char>();
  to.storage->borrow({data, static_cast<size_t>(from.bytes()), std::shared_ptr<void>(data, give_back)});
}

std::vector<int> ranks_to(int size) {
  std::vector<int> ranks(static_cast<size_t>(size));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

std::mutex named_mutex;
std::map<std::string, std::weak_ptr<LocalGroup>> named;

}  // namespace

std::vector<std::shared_ptr<Communicator>> local_communicators(
    const std::vector<std::shared_ptr<Device>>& devices, double timeout_ms) {
  const int size = static_cast<int>(devices.size());
  check(size > 0, Code::Option, "Communicator.local: there are no devices");
  const auto is_neighbour = [&](const auto& device) { return memory_of(*device) == memory_of(*devices[0]); };
  const auto group = std::make_shared<LocalGroup>(ranks_to(size), timeout_ms,
                                                  std::all_of(devices.begin(), devices.end(), is_neighbour));
  std::vector<std::shared_ptr<Communicator>> ranks;
  for (int rank = 0; rank < size; rank++) {
    const auto& device = devices[static_cast<size_t>(rank)];
    check(!device->closed(), Code::Disposed, "Communicator.local: the device of rank ", rank,
          " was disposed");
    check(device->is_cpu() == devices[0]->is_cpu(), Code::Device, "Communicator.local: the devices are ",
          devices[0]->name(), " and ", device->name(), ", expected one kind");
    for (int other = 0; other < rank; other++) {
      check(device != devices[static_cast<size_t>(other)], Code::Device, "Communicator.local: ranks ", other,
            " and ", rank, " have one Device, expected one each");
    }
  }
  for (int rank = 0; rank < size; rank++) {
    ranks.push_back(std::make_shared<Communicator>(
        devices[static_cast<size_t>(rank)], std::make_shared<LocalTransport>(group, rank), rank, size));
  }
  return ranks;
}

std::shared_ptr<Communicator> join_local(const std::string& name, int rank, int size,
                                         const std::shared_ptr<Device>& device, double timeout_ms) {
  check(size > 0 && rank >= 0 && rank < size, Code::Option, "Communicator.join: rank is ", rank, " of ",
        size);
  check(!device->closed(), Code::Disposed, "Communicator.join: the device was disposed");
  const std::lock_guard lock(named_mutex);
  std::erase_if(named, [](const auto& group) { return group.second.expired(); });
  auto group = named[name].lock();
  // Who the others are nobody knows yet. Those whom V8 has not collected yet may all be gone.
  if (!group || group->is_over())
    named[name] = group = std::make_shared<LocalGroup>(ranks_to(size), timeout_ms, false);
  check(group->size() == size, Code::Option, "Communicator.join: size is ", size, ", others of \"", name,
        "\" gave ", group->size());
  check(group->take(rank), Code::Option, "Communicator.join: rank ", rank, " of \"", name, "\" is taken");
  try {
    return std::make_shared<Communicator>(device, std::make_shared<LocalTransport>(group, rank), rank, size);
  } catch (...) {
    group->give_back(rank);
    throw;
  }
}

std::vector<Pair> pairs_of(LocalGroup& group, const LocalGroup::Step& step, int peer, int rank) {
  const Exchange& sender = *step.places[static_cast<size_t>(peer)].exchange;
  const Exchange& receiver = *step.places[static_cast<size_t>(rank)].exchange;
  std::vector<const Tensor*> sent, received;
  for (size_t i = 0; i < sender.sent.size(); i++) {
    if (sender.to[i] == rank) sent.push_back(&sender.sent[i]);
  }
  for (size_t i = 0; i < receiver.received.size(); i++) {
    if (receiver.from[i] == peer) received.push_back(&receiver.received[i]);
  }
  const int from_name = group.name(peer), to_name = group.name(rank);
  std::string mismatch;
  if (sent.size() != received.size()) {
    mismatch = text("rank ", from_name, " sends ", sent.size(), " tensors to rank ", to_name,
                    ", which receives ", received.size());
  }
  std::vector<Pair> pairs;
  for (size_t i = 0; i < sent.size() && mismatch.empty(); i++) {
    const Tensor &from = *sent[i], &to = *received[i];
    if (from.dtype != to.dtype || from.elements() != to.elements()) {
      mismatch = text("rank ", from_name, " sends ", shape_text(from), " ", name_of(from.dtype), " to rank ",
                      to_name, ", which receives ", shape_text(to), " ", name_of(to.dtype));
    }
    pairs.push_back({&from, &to});
  }
  if (mismatch.empty()) return pairs;
  group.fail(mismatch);
  throw Error(Code::Comm, "communicator: " + mismatch);
}

bool needs_copy(const Pair& pair) {
  if (pair.from->bytes() == 0) return false;
  if (pair.to->storage->awaits_loan()) lend(*pair.from, *pair.to);
  return pair.from->data<char>() != pair.to->data<char>();
}

void local_exchange(const Cpu&, LocalGroup& group, int rank, const Exchange& own) {
  const auto step = group.meet(rank, {.exchange = &own, .ready = nullptr, .taken = nullptr});
  std::exception_ptr error;
  for (int peer = 0; peer < group.size(); peer++) {
    try {
      for (const Pair& pair : pairs_of(group, *step, peer, rank)) {
        if (!needs_copy(pair)) continue;
        std::memcpy(pair.to->data<char>(), pair.from->data<char>(), static_cast<size_t>(pair.from->bytes()));
      }
    } catch (...) {
      error = std::current_exception();
    }
  }
  group.depart(rank, *step);
  if (error) std::rethrow_exception(error);
}

}  // namespace longseq
