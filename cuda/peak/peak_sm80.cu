// How fast the tensor cores multiply with Ampere's instructions, from register to register; float32 counts
// the ordinary multiply-adds.
#include <algorithm>

#include "core/cuda.h"
#include "peak/peak.h"
#include "tile/sm80.h"

namespace longseq {
namespace {

using namespace sm80;

constexpr int kThreads = 256, kBlocksEach = 4, kAccumulators = 8, kRounds = 4096, kRepetitions = 5;

template <class T>
__global__ void tensor_core_kernel(float* sum, uint32_t operand) {
  float c[kAccumulators][4];
  // All different, or one would do for all.
  for (int i = 0; i < 4 * kAccumulators; i++) c[i / 4][i % 4] = static_cast<float>(threadIdx.x + i);
  const uint32_t a[4] = {operand, operand, operand, operand};
  for (int round = 0; round < kRounds; round++) {
#pragma unroll
    for (int i = 0; i < kAccumulators; i++) multiply_add<T>(c[i], a, operand, operand);
  }
  float total = 0;
  for (int i = 0; i < kAccumulators; i++) total += c[i][0] + c[i][1] + c[i][2] + c[i][3];
  if (total == 1) *sum = total;  // never: so that the compiler must compute it
}

__global__ void multiply_add_kernel(float* sum, float operand) {
  float c[2 * kAccumulators];
  for (int i = 0; i < 2 * kAccumulators; i++) c[i] = static_cast<float>(threadIdx.x + i);
  for (int round = 0; round < kRounds; round++) {
#pragma unroll
    for (float& value : c) value = fmaf(value, operand, operand);
  }
  float total = 0;
  for (const float value : c) total += value;
  if (total == 1) *sum = total;
}

/** 10^12 operations a second of `work`, which is `operations` in all. */
template <class Work>
float best_rate(const Cuda& cuda, double operations, Work work) {
  float best = 0;
  for (int repetition = 0; repetition < kRepetitions; repetition++) {
    const Event start = record(cuda, cudaEventDefault);
    work();
    const Event end = record(cuda, cudaEventDefault);
    cuda_check(cudaEventSynchronize(end.get()), "measuring the peak");
    float milliseconds;
    cuda_check(cudaEventElapsedTime(&milliseconds, start.get(), end.get()), "measuring the peak");
    best = std::max(best, static_cast<float>(operations / milliseconds / 1e9));
  }
  return best;
}

}  // namespace

void run(const Cuda& cuda, const MeasurePeak& op) {
  float* const y = op.y.data<float>();
  const dim3 grid(static_cast<unsigned>(kBlocksEach * cuda.gpu->multiprocessors));
  const double warps = grid.x * kThreads / 32.0;
  float rate;
  if (op.dtype == DType::Float32) {
    const double operations = 32 * warps * kRounds * 2 * kAccumulators * 2;
    rate =
        best_rate(cuda, operations, [&] { launch<multiply_add_kernel>(cuda, grid, kThreads, 0, y, 0.5f); });
  } else {
    const double operations = warps * kRounds * kAccumulators * 2 * 16 * 8 * 16;
    rate = best_rate(cuda, operations, [&] {
      if (op.dtype == DType::BFloat16) {
        launch<tensor_core_kernel<Bf16>>(cuda, grid, kThreads, 0, y, 0x3f003f00u);
      } else {
        launch<tensor_core_kernel<Half>>(cuda, grid, kThreads, 0, y, 0x38003800u);
      }
    });
  }
  cuda_check(cudaMemcpyAsync(y, &rate, sizeof rate, cudaMemcpyHostToDevice, cuda.stream.get()), "a copy");
  cuda_check(cudaStreamSynchronize(cuda.stream.get()), "a copy");
}

}  // namespace longseq
