#include "comm/nccl.h"

#include <stdlib.h>

#include <type_traits>

#include "core/library.h"

namespace longseq {
namespace nccl {
namespace {

constexpr int kOldest = 21400;  // of ncclCommInitRankConfig

bool multicast = false;

std::string version_text(int code) {
  const int major = code < 10000 ? 1000 : 10000;
  return text(code / major, ".", code % major / 100, ".", code % 100);
}

Functions open() {
  if (!multicast) setenv("NCCL_NVLS_ENABLE", "0", 0);
  const Library library(
      {"libnccl.so.2"}, "LONGSEQ_NCCL", Code::NoNccl,
      "nccl: NCCL, through which GPUs of several processes exchange tensors, could not be opened. Install "
      "libnccl2, or `pip install nvidia-nccl-cu13` and let LONGSEQ_NCCL name the folder of libnccl.so.2.",
      "nccl: NCCL of version 2.14 or later is needed; the one that was found");
  Functions functions;
  library.find(functions.GetVersion, "ncclGetVersion");
  functions.path = path_of(reinterpret_cast<const void*>(functions.GetVersion));
  int version = 0;
  functions.GetVersion(&version);
  functions.version = version_text(version);
  check(version >= kOldest, Code::NoNccl, "nccl: ", functions.path, " has version ", functions.version,
        ", expected 2.14 or later");
  library.find(functions.GetUniqueId, "ncclGetUniqueId");
  library.find(functions.GetErrorString, "ncclGetErrorString");
  library.find(functions.GetLastError, "ncclGetLastError");
  library.find(functions.CommInitRankConfig, "ncclCommInitRankConfig");
  library.find(functions.CommGetAsyncError, "ncclCommGetAsyncError");
  library.find(functions.CommDestroy, "ncclCommDestroy");
  library.find(functions.CommAbort, "ncclCommAbort");
  library.find(functions.GroupStart, "ncclGroupStart");
  library.find(functions.GroupEnd, "ncclGroupEnd");
  library.find(functions.Send, "ncclSend");
  library.find(functions.Recv, "ncclRecv");
  library.find(functions.AllReduce, "ncclAllReduce");
  return functions;
}

}  // namespace

const Functions& functions() {
  static const Functions opened = open();  // tried again after a failure
  return opened;
}

void allow_multicast() { multicast = true; }

Id unique_id() {
  Id id{};
  const Status status = functions().GetUniqueId(&id);
  check(status == kSuccess, Code::Comm, "nccl: an id could not be made: ", functions().GetErrorString(status),
        " (", functions().GetLastError(nullptr), ")");
  return id;
}

}  // namespace nccl

namespace {

/** A template, so that a build without CUDA does not ask the linker for nccl_transport. */
template <class AnyEngine>
std::shared_ptr<Transport> open_transport(const Device& device, const nccl::Id& id, int rank, int size,
                                          double timeout_ms) {
  if constexpr (std::is_constructible_v<AnyEngine, Cuda>) {
    check(!device.is_cpu(), Code::Device, "Communicator.nccl: the device is cpu, expected a GPU");
    return nccl_transport(id, rank, size, timeout_ms);
  } else {
    throw Error(Code::NoCuda,
                "Communicator.nccl: this build of longseq has no CUDA engine; Communicator.local joins CPUs");
  }
}

}  // namespace

std::shared_ptr<Communicator> nccl_communicator(const std::shared_ptr<Device>& device, const nccl::Id& id,
                                                int rank, int size, double timeout_ms) {
  check(!device->closed(), Code::Disposed, "Communicator.nccl: the device was disposed");
  auto transport = open_transport<Engine>(*device, id, rank, size, timeout_ms);
  return std::make_shared<Communicator>(device, std::move(transport), rank, size);
}

}  // namespace longseq
