// Communicators for JavaScript.
#include "addon/bind.h"
#include "addon/bindings.h"
#include "comm/communicator.h"

namespace longseq {

template <>
struct From<std::vector<DeviceHandle>> {
  static std::vector<DeviceHandle> of(Napi::Value value, size_t index) {
    check_kind(value.IsArray(), index, "an array of devices");
    const auto array = value.As<Napi::Array>();
    std::vector<DeviceHandle> devices(array.Length());
    for (uint32_t i = 0; i < devices.size(); i++) devices[i] = From<DeviceHandle>::of(array[i], index);
    return devices;
  }
};

namespace {

std::vector<int> ranks_of(const std::vector<int64_t>& given) {
  std::vector<int> ranks;
  for (const int64_t rank : given)
    ranks.push_back(static_cast<int>(std::clamp<int64_t>(rank, -1, INT32_MAX)));
  return ranks;
}

Napi::Value communicators_local(Napi::Env env, std::vector<DeviceHandle> devices, double timeout_ms) {
  const auto ranks = local_communicators(devices, timeout_ms);
  auto out = Napi::Array::New(env, ranks.size());
  for (uint32_t i = 0; i < ranks.size(); i++) out.Set(i, wrap(env, ranks[i]));
  return out;
}

CommunicatorHandle communicator_join_local(std::string name, int64_t rank, int64_t size, DeviceHandle device,
                                           double timeout_ms) {
  check(size >= 1 && size <= 1 << 20, Code::Option, "Communicator.join: size is ", size,
        ", expected 1 to 2^20");
  check(rank >= 0 && rank < size, Code::Option, "Communicator.join: rank is ", rank, ", expected 0 to ",
        size - 1);
  return join_local(name, static_cast<int>(rank), static_cast<int>(size), device, timeout_ms);
}

CommunicatorHandle communicator_group(CommunicatorHandle communicator, std::vector<int64_t> ranks) {
  return communicator->group(ranks_of(ranks));
}

void communicator_follow(CommunicatorHandle communicator) { communicator->follow(); }

void communicator_exchange(CommunicatorHandle communicator, std::vector<Tensor> sent, std::vector<int64_t> to,
                           std::vector<Tensor> received, std::vector<int64_t> from) {
  communicator->exchange({std::move(sent), std::move(received), ranks_of(to), ranks_of(from)});
}

void communicator_sum(CommunicatorHandle communicator, std::vector<Tensor> terms, Tensor y) {
  communicator->sum(std::move(terms), std::move(y));
}

FenceHandle communicator_fence(CommunicatorHandle communicator) { return communicator->fence(); }

void communicator_join(CommunicatorHandle communicator, FenceHandle fence) { communicator->join(fence); }

void communicator_close(CommunicatorHandle communicator) { communicator->close(); }

}  // namespace

void bind_communicators(Napi::Object exports) {
  bind<communicators_local>(exports, "communicatorsLocal");
  bind<communicator_join_local>(exports, "communicatorJoinLocal");
  bind<communicator_group>(exports, "communicatorGroup");
  bind<communicator_follow>(exports, "communicatorFollow");
  bind<communicator_exchange>(exports, "communicatorExchange");
  bind<communicator_sum>(exports, "communicatorSum");
  bind<communicator_fence>(exports, "communicatorFence");
  bind<communicator_join>(exports, "communicatorJoin");
  bind<communicator_close>(exports, "communicatorClose");
}

}  // namespace longseq
