// Communicators for JavaScript.
#include <cstring>

#include "addon/bind.h"
#include "addon/bindings.h"
#include "addon/completions.h"
#include "comm/communicator.h"
#include "comm/nccl.h"

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

Napi::Value nccl_library(Napi::Env env) {
  const nccl::Functions& library = nccl::functions();
  auto out = Napi::Object::New(env);
  out.Set("version", library.version);
  out.Set("path", library.path);
  return out;
}

void nccl_allow_multicast() { nccl::allow_multicast(); }

Napi::Value nccl_id(Napi::Env env) {
  const nccl::Id id = nccl::unique_id();
  auto out = Napi::Uint8Array::New(env, sizeof(id));
  std::memcpy(out.Data(), id.bytes, sizeof(id));
  return out;
}

CommunicatorHandle communicator_nccl(DeviceHandle device, ArrayView given, int64_t rank, int64_t size,
                                     double timeout_ms) {
  nccl::Id id;
  check(given.bytes == sizeof(id), Code::Option, "Communicator.nccl: the id has ", given.bytes,
        " bytes, expected ", sizeof(id));
  check(size >= 1 && size <= 1 << 20 && rank >= 0 && rank < size, Code::Option, "Communicator.nccl: rank is ",
        rank, " of ", size);
  std::memcpy(id.bytes, given.data, sizeof(id));
  return nccl_communicator(device, id, static_cast<int>(rank), static_cast<int>(size), timeout_ms);
}

/** Resolves once all that is queued on the link so far has run. */
Napi::Value communicator_synchronize(Napi::Env env, CommunicatorHandle communicator) {
  return Completions::when_done(env, *communicator->link(), [](Napi::Env env) { return env.Undefined(); });
}

double communicator_steps(CommunicatorHandle communicator) {
  return static_cast<double>(communicator->transport().steps());
}

std::string communicator_failure(CommunicatorHandle communicator) {
  return communicator->transport().failure();
}

void communicator_end(CommunicatorHandle communicator, std::string why) {
  communicator->transport().end(why);
}

void communicator_left(CommunicatorHandle communicator, int64_t rank, int64_t steps) {
  check(rank >= 0 && rank < communicator->size(), Code::Option, "communicator: rank is ", rank);
  communicator->transport().left(static_cast<int>(rank), steps);
}

CommunicatorHandle communicator_group(CommunicatorHandle communicator, std::vector<int64_t> ranks) {
  return communicator->group(ranks_of(ranks));
}

bool communicator_shares_memory(CommunicatorHandle communicator) {
  return communicator->transport().shares_memory();
}

void communicator_follow(CommunicatorHandle communicator) { communicator->follow(); }

void communicator_exchange(CommunicatorHandle communicator, std::vector<Tensor> sent, std::vector<int64_t> to,
                           std::vector<Tensor> received, std::vector<int64_t> from) {
  communicator->exchange({std::move(sent), std::move(received), ranks_of(to), ranks_of(from)});
}

void communicator_barrier(CommunicatorHandle communicator) { communicator->barrier(); }

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
  bind<nccl_library>(exports, "ncclLibrary");
  bind<nccl_allow_multicast>(exports, "ncclAllowMulticast");
  bind<nccl_id>(exports, "ncclId");
  bind<communicator_nccl>(exports, "communicatorNccl");
  bind<communicator_synchronize>(exports, "communicatorSynchronize");
  bind<communicator_steps>(exports, "communicatorSteps");
  bind<communicator_failure>(exports, "communicatorFailure");
  bind<communicator_end>(exports, "communicatorEnd");
  bind<communicator_left>(exports, "communicatorLeft");
  bind<communicator_group>(exports, "communicatorGroup");
  bind<communicator_shares_memory>(exports, "communicatorSharesMemory");
  bind<communicator_follow>(exports, "communicatorFollow");
  bind<communicator_exchange>(exports, "communicatorExchange");
  bind<communicator_barrier>(exports, "communicatorBarrier");
  bind<communicator_sum>(exports, "communicatorSum");
  bind<communicator_fence>(exports, "communicatorFence");
  bind<communicator_join>(exports, "communicatorJoin");
  bind<communicator_close>(exports, "communicatorClose");
}

}  // namespace longseq
