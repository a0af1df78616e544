#include "comm/communicator.h"

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>

#include "core/task_queue.h"
#include "elementwise/elementwise.h"

namespace longseq {

std::string message_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& known) {
    return known.what();
  } catch (...) {
    return "unknown";
  }
}

void queue_signal(const Cpu& queue, const std::shared_ptr<Fence>& fence, Owner owner) {
  queue.queue->push_watcher([fence, owner = std::move(owner)](std::exception_ptr error) {
    fence->signal({error, nullptr});
  });
}

void queue_wait(const Cpu& queue, const std::shared_ptr<Fence>& fence, Owner owner, Failed failed) {
  push(queue, [fence, owner = std::move(owner), failed = std::move(failed)] {
    try {
      fence->wait();
    } catch (...) {
      failed(std::current_exception());
      throw;
    }
    fence->let_go();
  });
}

Communicator::Communicator(std::shared_ptr<Device> device, std::shared_ptr<Transport> transport, int rank,
                           int size)
    : device_(std::move(device)),
      link_(Device::open(device_->name(), true)),  // messages travel while kernels fill the GPU
      transport_(std::move(transport)),
      rank_(rank),
      size_(size) {
  const auto begin = [transport = transport_, link = link_] {
    try {
      transport->begin(link->engine());
    } catch (...) {
      transport->fail(std::current_exception());
      throw;
    }
  };
  std::visit([&](const auto& engine) { engine.queue->push(begin); }, link_->engine());
}

Communicator::~Communicator() { close(); }

void Communicator::check_open() const {
  check(!closed_, Code::Disposed, "communicator: it was disposed");
  check(!device_->closed(), Code::Disposed, "communicator: its device was disposed");
}

void Communicator::check_tensor(const Tensor& tensor, const char* what) const {
  check(tensor.device() == device_, Code::Device, "exchange: ", what, " is of another device than rank ",
        rank_, "'s");
  check(tensor.contiguous(), Code::Shape, "exchange: ", what, " is not contiguous");
}

void Communicator::follow() {
  check_open();
  follows_ = true;
}

template <class Operation>
void Communicator::submit(std::vector<Tensor> tensors, Operation operation) {
  std::vector<Tensor> waiting;
  std::copy_if(tensors.begin(), tensors.end(), std::back_inserter(waiting),
               [](const Tensor& tensor) { return tensor.storage->awaits_queue(); });
  const bool takes = !waiting.empty();
  if (takes) {
    const auto take = [waiting = std::move(waiting)] {
      for (const Tensor& tensor : waiting) tensor.storage->memory();
    };
    std::visit([&](const auto& queue) { push(queue, take); }, device_->engine());
  }
  if (std::exchange(follows_, false) || takes) queue_follow();
  in_use_.push_back(std::make_shared<StepTensors>(std::move(tensors)));
  link_->submit(LinkStep<Operation>{link_, in_use_.back(), std::move(operation)});
}

void Communicator::queue_follow() {
  const auto fence = std::make_shared<Fence>();
  std::visit([&](const auto& queue) { queue_signal(queue, fence, device_); }, device_->engine());
  const auto failed = [transport = transport_](std::exception_ptr why) { transport->fail(why); };
  std::visit([&](const auto& queue) { queue_wait(queue, fence, link_, failed); }, link_->engine());
}

void Communicator::exchange(Exchange step) {
  check_open();
  check(step.sent.size() == step.to.size() && step.received.size() == step.from.size(), Code::Shape,
        "exchange: got ", step.sent.size(), " and ", step.received.size(), " tensors for ", step.to.size(),
        " and ", step.from.size(), " peers");
  for (const auto* const peers : {&step.to, &step.from}) {
    for (const int peer : *peers) {
      check(peer >= 0 && peer < size_, Code::Option, "exchange: peer is ", peer, ", expected 0 to ",
            size_ - 1);
    }
  }
  for (const Tensor& tensor : step.sent) check_tensor(tensor, "a tensor to send");
  for (const Tensor& tensor : step.received) {
    check_tensor(tensor, "a tensor to receive");
    check(!tensor.storage->awaits_loan() || transport_->shares_memory(), Code::Device,
          "exchange: the ranks share no memory that could be lent");
  }
  std::vector<Tensor> tensors = step.sent;
  tensors.insert(tensors.end(), step.received.begin(), step.received.end());
  submit(std::move(tensors), ExchangeStep{transport_, std::move(step)});
}

void Communicator::barrier() {
  check_open();
  submit({}, BarrierStep{transport_});
}

void Communicator::sum(std::vector<Tensor> parts, Tensor y) {
  check_open();
  for (const Tensor& part : parts) check_tensor(part, "a term");
  check_tensor(y, "the sum");
  check_sum(parts, y);
  std::vector<Tensor> tensors = parts;
  tensors.push_back(y);
  submit(std::move(tensors), Sum{std::move(parts), std::move(y)});
}

std::shared_ptr<Fence> Communicator::fence() {
  auto fence = std::make_shared<Fence>();
  fence->on_let_go = [steps = std::exchange(in_use_, {})] {
    for (const auto& tensors : steps) tensors->let_go();
  };
  std::visit([&](const auto& queue) { queue_signal(queue, fence, link_); }, link_->engine());
  return fence;
}

void Communicator::join(const std::shared_ptr<Fence>& fence) {
  check(!device_->closed(), Code::Disposed, "communicator: its device was disposed");
  std::visit([&](const auto& queue) { queue_wait(queue, fence, device_, [](std::exception_ptr) {}); },
             device_->engine());
  transport_->guard(device_);
}

std::shared_ptr<Communicator> Communicator::group(const std::vector<int>& ranks) {
  check_open();
  int place = -1;
  std::vector<bool> named(static_cast<size_t>(size_));
  for (size_t i = 0; i < ranks.size(); i++) {
    check(ranks[i] >= 0 && ranks[i] < size_, Code::Option, "group: a rank is ", ranks[i], ", expected 0 to ",
          size_ - 1);
    check(!named[static_cast<size_t>(ranks[i])], Code::Option, "group: rank ", ranks[i], " is named twice");
    named[static_cast<size_t>(ranks[i])] = true;
    if (ranks[i] == rank_) place = static_cast<int>(i);
  }
  check(place >= 0, Code::Option, "group: rank ", rank_, " itself is not among the ranks");
  return std::make_shared<Communicator>(device_, transport_->group(link_, ranks), place,
                                        static_cast<int>(ranks.size()));
}

void Communicator::close() {
  if (std::exchange(closed_, true)) return;
  transport_->close();
  std::visit([&](const auto& queue) { push(queue, [transport = transport_] { transport->leave(); }); },
             link_->engine());
  link_->close();
}

}  // namespace longseq
