#include "peak/peak.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "core/thread_pool.h"

namespace longseq {
namespace {

/** A task takes about a millisecond, so that threads that start late or are interrupted share what is left.
 */
constexpr int64_t kRounds = 1 << 18, kTasksPerThread = 8;
/** The best of these: other programs only ever slow it down. */
constexpr int kRepetitions = 5;
constexpr uint32_t kHalf = 0x3f003f00;  // 0.5, in float32 to three digits and as two of bfloat16

}  // namespace

void run(const Cpu& cpu, const MeasurePeak& op) {
  const int64_t tasks = kTasksPerThread * thread_count().threads;
  std::vector<float> sums(static_cast<size_t>(tasks));
  std::vector<double> operations(static_cast<size_t>(tasks));
  double best = 0;
  for (int repetition = 0; repetition < kRepetitions; repetition++) {
    const auto start = std::chrono::steady_clock::now();
    parallel_for(tasks, [&](int64_t task, int) {
      const auto at = static_cast<size_t>(task);
      run(cpu, MultiplyAddLoop{kRounds, op.dtype, kHalf, &sums[at], &operations[at]});
    });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    double total = 0;
    for (const double count : operations) total += count;
    best = std::max(best, total / seconds.count());
  }
  *op.y.data<float>() = static_cast<float>(best / 1e12);
}

void measure_peak(Tensor y, DType dtype) {
  check(y.dtype == DType::Float32 && y.elements() == 1, Code::Shape, "measurePeak: y has ", y.elements(),
        " elements of ", name_of(y.dtype), ", expected 1 of float32");
  const auto device = y.device();
  device->submit(MeasurePeak{std::move(y), dtype});
}

}  // namespace longseq
