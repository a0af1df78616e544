// The table of attention's kernels.
#include "attention/kernels.h"

#include <variant>

#include "core/error.h"
#include "core/memory.h"

namespace longseq {
namespace {

/** What compute capability, 10 major + minor, runs the code of forward_sm90.cu: no later one does. */
constexpr int kHopper = 90;
constexpr int64_t kHopperSharedBytes = 227 << 10;

/** | kernels | compute capability             | dtypes            | D         |
 *  | sm90    | 9.0, with its shared memory    | bfloat16, float16 | up to 256 |
 *  | sm80    | 8.0 and later                  | all               | up to 256 | */
bool has_sm90(int capability, DType dtype) {
  return capability == kHopper && dtype != DType::Float32 && wanted_shared_bytes() >= kHopperSharedBytes;
}

}  // namespace

Kernels gpu_kernels(int capability, DType dtype) {
  return has_sm90(capability, dtype) ? Kernels::Sm90 : Kernels::Sm80;
}

const char* name_of(Kernels kernels) {
  switch (kernels) {
    case Kernels::Cpu:
      return "cpu";
    case Kernels::Sm80:
      return "sm80";
    case Kernels::Sm90:
      return "sm90";
  }
  return "";
}

Kernels choose_kernels(const Device& device, DType dtype, const std::optional<std::string>& implementation) {
  const int capability =
      std::visit([](const auto& engine) { return compute_capability(engine); }, device.engine());
  const Kernels own = device.is_cpu() ? Kernels::Cpu : Kernels::Sm80;
  const bool is_able = has_sm90(capability, dtype);
  if (!implementation) return device.is_cpu() ? own : gpu_kernels(capability, dtype);
  if (*implementation == name_of(own)) return own;
  if (is_able && *implementation == name_of(Kernels::Sm90)) return Kernels::Sm90;
  throw Error(Code::Option,
              text("attention: implementation \"", *implementation, "\" is not there on ", device.name(),
                   " for ", name_of(dtype), ", expected one of \"reference\", \"", name_of(own),
                   is_able ? "\", \"sm90\"" : "\""));
}

bool takes_parts(const std::shared_ptr<Device>& device, DType dtype, int64_t head_dim,
                 const std::optional<std::string>& implementation) {
  return implementation != "reference" && head_dim <= kMostSummedSm90 &&
         choose_kernels(*device, dtype, implementation) == Kernels::Sm90;
}

std::string attention_kernels(const std::shared_ptr<Device>& device, DType dtype,
                              const std::optional<std::string>& implementation) {
  return name_of(choose_kernels(*device, dtype, implementation));
}

}  // namespace longseq
