#pragma once
// What a call of attention gives to the kernels: its operands in a form that they take, its results in one
// that they can write, and who sees what. Included by .cu files alone.
#include "attention/attention.h"
#include "attention/attention_sm80.h"
#include "attention/gpu_mask.h"
#include "core/cuda.h"

namespace longseq {

/** Queries that keys in parts and packed heads are reckoned by, and what padded rows are rounded up to. */
inline constexpr int64_t kGpuTileRows = 128;

/** There are no queries. */
inline bool is_empty(const AttentionForward& op) { return op.q.size(0) * op.q.size(1) * op.q.size(2) == 0; }

/** Whether every row begins at 16 bytes, as the kernels' copies need it. */
bool rows_aligned(const Tensor& x);
/** x, or a copy of it, in a form that the kernels read. */
Tensor as_input(const Cuda& cuda, const Tensor& x, DType dtype);
/** The kernels take scores times a positive scale: of another, the sign goes to the queries and to dq. */
float positive_scale(float scale);
/** q as they take it. */
Tensor query_input(const Cuda& cuda, const Tensor& q, float scale);
/** 1, -1 or 0. */
float sign_of(float scale);

/** So many heads share a tile. */
inline void pack_heads(ForwardSm80& kernel, int heads) {
  kernel.packed = heads;
  kernel.packed_inverse = ((1 << 16) + heads - 1) / heads;
}

inline GpuRows rows_of(const Tensor& x) { return {x.data<char>(), x.stride(0), x.stride(1), x.stride(2)}; }
inline GpuStatistics statistics_of(const Tensor& x) { return {x.data<float>(), x.stride(0), x.stride(1)}; }

/** A result that the kernels can write, or add to; copied to its place when this ends. */
class GpuResult {
 public:
  GpuResult(const Cuda& cuda, const Tensor& y, bool is_read = false);
  const Tensor& written() const { return written_; }
  void finish() const;

 private:
  const Cuda& cuda_;
  Tensor y_, written_;
};

/** The rule's arrays, in memory that the GPU reads. */
struct DeviceRule {
  Memory memory;
  RuleView view;
};

/** Both directions' view of a call. */
class GpuCall {
 public:
  GpuCall(const Cuda& cuda, const AttentionForward& op);

  ForwardSm80 kernel{};
  std::shared_ptr<const GpuMaskCopy> mask;  // of kind Blocks, or none

 private:
  void score(const ScoreRule& rule);
  void see(const Cuda& cuda, const VisibilityRule& rule);
  void place(const Cuda& cuda, const AttentionForward& op);
  RuleView rule_on_gpu(const Cuda& cuda, const VisibilityRule& rule);
  /** Of each query, begin and end of the keys that it sees, all begins first: kept with the device. */
  std::shared_ptr<void> intervals_of_rule(const Cuda& cuda, const VisibilityRule& rule);
  /** The same within those of a mask of kind Intervals. */
  std::shared_ptr<void> intervals(const Cuda& cuda, const VisibilityRule& rule);
  void find_intervals(const Cuda& cuda, const VisibilityRule& rule, const int32_t* of_mask, int32_t* to);

  Tensor q_, k_, v_, slopes_;
  DeviceRule device_{};
  std::shared_ptr<void> intervals_;
  Memory positions_;
};

}  // namespace longseq
