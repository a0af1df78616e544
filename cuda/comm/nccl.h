#pragma once
// The part of NCCL's interface that ranks exchange tensors through, opened at run time. The values are the
// library's own (docs.nvidia.com/deeplearning/nccl, "NCCL API"), the same in its versions from 2.14 on.
#include <cstddef>
#include <memory>
#include <string>

#include "comm/communicator.h"

struct CUstream_st;

namespace longseq {
namespace nccl {

using Status = int;
inline constexpr Status kSuccess = 0, kInProgress = 7;
inline constexpr bool is_error(Status status) { return status != kSuccess && status != kInProgress; }

enum class DataType : int { Int8 = 0 };
enum class Reduction : int { Sum = 0 };

/** By which the ranks of a communicator find each other. */
struct Id {
  char bytes[128];
};

/** As version 2.14 had it: later ones take what is missing for unset. */
struct Config {
  size_t size = sizeof(Config);
  unsigned magic = 0xcafebeef, version = 21400;
  int blocking = 0;
  int end = 0;
};
static_assert(sizeof(Config) == 24);

using Handle = struct NcclCommunicator*;

/** The library's functions, under their names without the prefix. */
struct Functions {
  Status (*GetVersion)(int*);
  Status (*GetUniqueId)(Id*);
  const char* (*GetErrorString)(Status);
  const char* (*GetLastError)(Handle);
  Status (*CommInitRankConfig)(Handle*, int size, Id, int rank, Config*);
  Status (*CommGetAsyncError)(Handle, Status*);
  Status (*CommDestroy)(Handle);
  Status (*CommAbort)(Handle);
  Status (*GroupStart)();
  Status (*GroupEnd)();
  Status (*Send)(const void*, size_t count, DataType, int peer, Handle, CUstream_st*);
  Status (*Recv)(void*, size_t count, DataType, int peer, Handle, CUstream_st*);
  Status (*AllReduce)(const void*, void*, size_t count, DataType, Reduction, Handle, CUstream_st*);

  std::string version, path;
};

/**
 * Opens the library at the first call, after which the environment holds NCCL_NVLS_ENABLE=0 (no NVLink
 * multicast) unless it held another value. Throws Error(NoNccl) that says what was tried and what to install.
 */
const Functions& functions();

/** Before the library is opened: NVLink multicast as NCCL itself decides. */
void allow_multicast();

Id unique_id();

}  // namespace nccl

/** A rank whose others are in other processes, or in this one. All of them were given one id. */
std::shared_ptr<Communicator> nccl_communicator(const std::shared_ptr<Device>& device, const nccl::Id& id,
                                                int rank, int size, double timeout_ms);
/** Of a CUDA device. It meets the others as the first task of its link. */
std::shared_ptr<Transport> nccl_transport(const nccl::Id& id, int rank, int size, double timeout_ms);

}  // namespace longseq
