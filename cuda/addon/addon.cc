// The addon's entry: what JavaScript sees of the native code. lib/native.ts is its typed mirror.
#include <napi.h>

#include "addon/bind.h"
#include "addon/bindings.h"
#include "addon/completions.h"
#include "attention/kernels.h"
#include "core/cpu.h"
#include "core/environment.h"
#include "core/gpu_info.h"
#include "core/thread_pool.h"

namespace longseq {
namespace {

Napi::Value info(Napi::Env env) {
  check_environment();
  auto cpu = Napi::Object::New(env);
  cpu.Set("model", cpu_model());
  cpu.Set("instructionSet", name_of(instruction_set()));
  cpu.Set("threads", thread_count().threads);
  cpu.Set("threadsFrom", thread_count().reason);
  cpu.Set("memoryLimit", static_cast<double>(memory_limit()));
  auto out = Napi::Object::New(env);
  out.Set("cpu", cpu);
#ifdef LONGSEQ_HAVE_CUDA
  const std::vector<GpuInfo> gpus = gpu_infos();
  auto list = Napi::Array::New(env, gpus.size());
  for (uint32_t i = 0; i < gpus.size(); i++) {
    auto gpu = Napi::Object::New(env);
    gpu.Set("name", gpus[i].name);
    gpu.Set("computeCapability", gpus[i].compute_capability / 10.0);
    gpu.Set("multiprocessors", gpus[i].multiprocessors);
    gpu.Set("memoryBytes", static_cast<double>(gpus[i].memory_bytes));
    gpu.Set("maskBudget", static_cast<double>(mask_budget(gpus[i].memory_bytes)));
    auto kernels = Napi::Object::New(env);
    for (const DType dtype : {DType::BFloat16, DType::Float16, DType::Float32}) {
      kernels.Set(name_of(dtype), name_of(gpu_kernels(gpus[i].compute_capability, dtype)));
    }
    gpu.Set("attentionKernels", kernels);
    list.Set(i, gpu);
  }
  out.Set("gpus", list);
#else
  out.Set("gpus", env.Null());
#endif
#ifdef __clang__
  out.Set("compiler", __VERSION__);
#else
  out.Set("compiler", "g++ " __VERSION__);
#endif
  return out;
}

void end_process() {
#ifdef LONGSEQ_HAVE_CUDA
  stop_threads_at_exit();
#endif
}

}  // namespace
}  // namespace longseq

static Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  longseq::Completions::install(env);
  longseq::bind<longseq::info>(exports, "info");
  longseq::bind<longseq::end_process>(exports, "endProcess");
  longseq::bind_tensors(exports);
  longseq::bind_masks(exports);
  longseq::bind_communicators(exports);
  longseq::bind_operations(exports);
  return exports;
}
NODE_API_MODULE(longseq, initialize)
