#pragma once
// Which kernels a call of attention runs.
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "core/device.h"
#include "core/dtype.h"

namespace longseq {

enum class Kernels : uint8_t { Cpu, Sm80, Sm90 };

const char* name_of(Kernels kernels);

/** The fastest on a GPU of a compute capability, 10 major + minor, as far as LONGSEQ_SHARED_BYTES lets it. */
Kernels gpu_kernels(int capability, DType dtype);

/** The fastest, or those that are named. Throws Error(Option) where the device has none of that name. */
Kernels choose_kernels(const Device& device, DType dtype, const std::optional<std::string>& implementation);

/** Whether they take keys that lie in several tensors (KeyParts), and backward queries (QueryParts). */
bool takes_parts(const std::shared_ptr<Device>& device, DType dtype, int64_t head_dim,
                 const std::optional<std::string>& implementation);
/** The largest D at which sm90's kernels sum dq by blocks of keys. */
inline constexpr int64_t kMostSummedSm90 = 128;
/** How many floats they add a row of dq up in: their own D. */
constexpr int64_t query_sum_columns(int64_t head_dim) {
  return head_dim <= 64 ? 64 : head_dim <= 96 ? 96 : kMostSummedSm90;
}

/** Their name. */
std::string attention_kernels(const std::shared_ptr<Device>& device, DType dtype,
                              const std::optional<std::string>& implementation);

inline int compute_capability(const Cpu&) { return 0; }
int compute_capability(const Cuda& cuda);  // 10 major + minor

}  // namespace longseq
