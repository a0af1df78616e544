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

/** Of what the process does at its end, this then comes first: libraries that were opened later than the
 * first GPU would be taken down under the threads that call them. To be called when the process is about to
 * end. */
void stop_threads_at_exit();

}  // namespace longseq
