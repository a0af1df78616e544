#include "core/device.h"

#include "core/task_queue.h"

namespace longseq {

std::shared_ptr<Device> Device::open(const std::string& name) {
  const bool cuda = name == "cuda" || name.starts_with("cuda:");
  check(!cuda, Code::NoCuda, "device: this build of longseq has no CUDA engine; use \"cpu\"");
  check(name == "cpu", Code::Device, "device: unknown device \"", name,
        "\", expected \"cpu\", \"cuda\" or \"cuda:N\"");
  return std::shared_ptr<Device>(new Device(name));
}

Device::Device(std::string name) : name_(std::move(name)), engine_(Cpu{TaskQueue::start()}) {}

Device::~Device() {
  std::visit([](auto& engine) { engine.queue->close(); }, engine_);
}

void Device::push(Cpu& cpu, std::function<void()> task) {
  check(!closed_, Code::Disposed, "device: ", name_, " was disposed");
  cpu.queue->push(std::move(task));
}

void Device::when_done(Completion done) {
  std::visit([&](auto& engine) { engine.queue->push_completion(std::move(done)); }, engine_);
}

void Device::close() { closed_ = true; }

}  // namespace longseq
