// Ranks of one process on GPUs: each copies what it receives from where the sender has it, on its link's
// stream, behind the sender's event.
#include "comm/local.h"
#include "core/cuda.h"
#include "core/task_queue.h"

namespace longseq {
namespace {

void wait_on_stream(const Cuda& cuda, const std::shared_ptr<void>& event) {
  cuda_check(cudaStreamWaitEvent(cuda.stream.get(), std::static_pointer_cast<CUevent_st>(event).get()),
             "a rank's exchange");
}

void copy_from(const Cuda& cuda, const Tensor& from, const Tensor& to) {
  const auto bytes = static_cast<size_t>(from.bytes());
  const Gpu* const source = std::get<Cuda>(from.device()->engine()).gpu;
  cuda_check(source == cuda.gpu ? cudaMemcpyAsync(to.data<char>(), from.data<char>(), bytes,
                                                  cudaMemcpyDeviceToDevice, cuda.stream.get())
                                : cudaMemcpyPeerAsync(to.data<char>(), cuda.gpu->ordinal, from.data<char>(),
                                                      source->ordinal, bytes, cuda.stream.get()),
             "a rank's exchange");
}

}  // namespace

void hold(const Cuda& queue, std::shared_ptr<const void> what) {
  use_gpu(*queue.gpu);  // also on a thread that has called for another one last
  keep(queue, std::const_pointer_cast<void>(std::move(what)));
}

void queue_signal(const Cuda& queue, const std::shared_ptr<Fence>& fence, Owner owner) {
  queue.queue->push_watcher([fence, owner = std::move(owner), &queue](std::exception_ptr error) {
    std::shared_ptr<void> event;
    try {
      if (!error) event = record(queue);
    } catch (...) {
      error = std::current_exception();
    }
    fence->signal({error, event});
  });
}

void queue_wait(const Cuda& queue, const std::shared_ptr<Fence>& fence, Owner owner, Failed failed) {
  push(queue, [fence, owner = std::move(owner), failed = std::move(failed), &queue] {
    try {
      wait_on_stream(queue, fence->wait());
    } catch (...) {
      failed(std::current_exception());
      throw;
    }
    fence->let_go();
  });
}

void local_exchange(const Cuda& cuda, LocalGroup& group, int rank, const Exchange& own) {
  const auto step = group.meet(rank, {.exchange = &own, .ready = record(cuda), .taken = nullptr});
  // Nothing may keep a rank from departing, and from waiting for those who copy from it, who may be well: the
  // others would wait, or copy what is no more.
  std::exception_ptr error;
  const auto attempt = [&](auto&& work) {
    try {
      work();
    } catch (...) {
      if (!error) error = std::current_exception();
    }
  };
  bool has_copied = false;
  for (int peer = 0; peer < group.size(); peer++) {
    attempt([&] {
      const std::vector<Pair> pairs = pairs_of(group, *step, peer, rank);
      if (!pairs.empty() && peer != rank) {
        wait_on_stream(cuda, step->places[static_cast<size_t>(peer)].ready);
      }
      for (const Pair& pair : pairs) {
        if (!needs_copy(pair)) continue;
        copy_from(cuda, *pair.from, *pair.to);
        has_copied = true;
      }
    });
  }
  // Who has lent needs not wait for what this rank waits for.
  std::shared_ptr<void> copied;
  if (has_copied) attempt([&] { copied = record(cuda); });
  group.depart(rank, *step, std::move(copied));
  for (const int peer : own.to) {
    if (const auto& taken = step->places[static_cast<size_t>(peer)].taken) {
      attempt([&] { wait_on_stream(cuda, taken); });
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace longseq
