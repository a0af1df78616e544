#include "core/device.h"

#include <charconv>
#include <chrono>

#include "core/environment.h"
#include "core/gpu_info.h"
#include "core/task_queue.h"

namespace longseq {
namespace {

/** The number of the GPU that "cuda" or "cuda:N" names; `what` is where it does. */
int ordinal_of(const std::string& name, const char* what = "device") {
  int ordinal = 0;
  const char* const end = name.data() + name.size();
  const bool names_one = name.starts_with("cuda:") && name.size() > 5;
  const auto [rest, error] = std::from_chars(names_one ? name.data() + 5 : end, end, ordinal);
  check(name == "cuda" || (names_one && error == std::errc{} && rest == end && ordinal >= 0), Code::Device,
        what, ": unknown device \"", name, "\", expected \"cpu\", \"cuda\" or \"cuda:N\"");
  return ordinal;
}

/** A template, so that a build without CUDA does not ask the linker for open_cuda. */
template <class AnyEngine>
AnyEngine open_gpu(const std::string& name, const std::shared_ptr<MemoryUse>& use, bool goes_first) {
  const int ordinal = ordinal_of(name);
  if constexpr (std::is_constructible_v<AnyEngine, Cuda>) {
    return open_cuda(ordinal, use, goes_first);
  } else {
    throw Error(Code::NoCuda, "device: this build of longseq has no CUDA engine; use \"cpu\"");
  }
}

template <class AnyEngine>
bool any_gpu() {
  if constexpr (std::is_constructible_v<AnyEngine, Cuda>) {
    const auto gpus = gpu_infos();
    return !gpus.empty() && gpus.front().compute_capability >= kOldestGpu;
  } else {
    return false;
  }
}

class CpuMark : public Mark {
 public:
  using Mark::Mark;
  double since(const Mark& earlier) const override {
    const auto& other = static_cast<const CpuMark&>(earlier);
    return std::chrono::duration<double, std::milli>(reached - other.reached).count();
  }
  std::chrono::steady_clock::time_point reached;
};

}  // namespace

Cpu open_cpu(const std::shared_ptr<MemoryUse>& use) { return {TaskQueue::start("longseq-queue"), use}; }

void close(const Cpu& cpu) { cpu.queue->close(); }

Memory allocate(const Cpu& cpu, size_t bytes) {
  auto block = std::make_shared<HostBlock>(bytes, cpu.use);
  return {block->data(), block->bytes(), block};
}

Memory allocate_staging(const Cpu& cpu, size_t bytes) { return allocate(cpu, bytes); }

void check_room(const Cpu&, size_t bytes) { check_host_room(bytes); }

void push(const Cpu& cpu, std::function<void()> task) { cpu.queue->push(std::move(task)); }

void when_done(const Cpu& cpu, Completion done) { cpu.queue->push_completion(std::move(done)); }

std::shared_ptr<Mark> mark(const Cpu& cpu) {
  const auto mark = std::make_shared<CpuMark>(cpu.queue);
  cpu.queue->push([mark] { mark->reached = std::chrono::steady_clock::now(); });
  return mark;
}

const std::string& Device::default_name() {
  static const std::string name = [] {
    const std::string wanted(text_from("LONGSEQ_DEVICE"));
    if (!wanted.empty() && wanted != "cpu") ordinal_of(wanted, "LONGSEQ_DEVICE");
    return !wanted.empty() ? wanted : any_gpu<Engine>() ? "cuda" : "cpu";
  }();
  return name;
}

std::shared_ptr<Device> Device::open(const std::string& name, bool goes_first) {
  check_environment();
  return std::shared_ptr<Device>(new Device(name, goes_first));
}

Device::Device(std::string name, bool goes_first)
    : name_(std::move(name)),
      engine_(name_ == "cpu" ? Engine(open_cpu(memory_)) : open_gpu<Engine>(name_, memory_, goes_first)) {}

Device::~Device() {
  std::visit([](const auto& engine) { longseq::close(engine); }, engine_);
}

void Device::check_open() const { check(!closed_, Code::Disposed, "device: ", name_, " was disposed"); }

void Device::check_room(size_t bytes) const {
  std::visit([&](const auto& engine) { longseq::check_room(engine, bytes); }, engine_);
}

Memory Device::allocate(size_t bytes) const {
  return std::visit([&](const auto& engine) { return longseq::allocate(engine, bytes); }, engine_);
}

Memory Device::allocate_staging(size_t bytes) const {
  return std::visit([&](const auto& engine) { return longseq::allocate_staging(engine, bytes); }, engine_);
}

void Device::when_done(Completion done) const {
  std::visit([&](const auto& engine) { longseq::when_done(engine, std::move(done)); }, engine_);
}

bool Device::owns(const Mark& mark) const {
  return std::visit([&](const auto& engine) { return engine.queue == mark.queue; }, engine_);
}

std::shared_ptr<Mark> Device::mark() const {
  check_open();
  return std::visit([](const auto& engine) { return longseq::mark(engine); }, engine_);
}

void Device::close() { closed_ = true; }

}  // namespace longseq
