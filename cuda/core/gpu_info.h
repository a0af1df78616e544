#pragma once
// The GPUs that this process sees, for info() and for choosing a device.
#include <cstdint>
#include <string>
#include <vector>

namespace longseq {

struct GpuInfo {
  std::string name;
  int compute_capability;  // 10 major + minor
  int multiprocessors;
  int64_t memory_bytes;
};

/** The compute capability that the kernels need: Ampere's. */
inline constexpr int kOldestGpu = 80;

/** None where there is no driver. */
std::vector<GpuInfo> gpu_infos();

}  // namespace longseq
