// dk and dv of flash attention for compute capability 9.0 (wgmma, TMA) and head dimensions above 128, whose
// sums take half of a multiprocessor's registers for 64 keys. dq is query_gradient_sm90.cu's.
//
// A block keeps 64 keys and values of one head in shared memory and streams the queries that see them, 64 at
// a time, for each query head of the group. Its first warpgroup copies. The second has the sums of dv, the
// third those of dk, and gets the weights from the second through shared memory, by threads: both hold their
// products transposed, in the same order, so that weights and gradients of scores are operands as they stand.
//
//   S^T = k q^T     P^T = exp2(c S^T - lse)             dv += P^T dout
//   dP^T = v dout^T                 dS^T = P^T * (dP^T - delta)      dk += dS^T q
#include "attention/attention_sm90.h"
#include "attention/key_stream_sm90.h"
#include "attention/visit_kernel.h"
#include "core/cuda.h"
#include "tile/sm90.h"

namespace longseq {
namespace {

using namespace sm90;
using sm80::pack;
using sm80::shared_address;

template <class Element>
struct Shape {
  using T = Element;
  static constexpr int kHeadDim = 256, kRows = 64, kKeys = 64, kStages = 2;
  static constexpr int kConsumers = 2, kOtherReaders = 0, kThreads = 128 * (kConsumers + 1);
  static constexpr int kPages = kHeadDim / 64, kDepthSteps = kHeadDim / 16;
  static constexpr int kKeyPage = kKeys * 128, kRowPage = kRows * 128;
  static constexpr int kKeyBytes = kPages * kKeyPage, kRowBytes = kPages * kRowPage;
  static constexpr int kStatisticBytes = kRows * 8, kWeightBytes = kRows * kKeys * 4;
  // k, v, then for each stage: q, dout, weights, statistics, and what tile it is.
  static constexpr int kValuesAt = kKeyBytes, kQueriesAt = kValuesAt + kKeyBytes,
                       kGradientsAt = kQueriesAt + kStages * kRowBytes,
                       kWeightsAt = kGradientsAt + kStages * kRowBytes,
                       kStatisticsAt = kWeightsAt + kStages * kWeightBytes,
                       kTilesAt = kStatisticsAt + kStages * kStatisticBytes, kBarriersAt = kTilesAt + 64;
  static constexpr int kSharedBytes = kBarriersAt + 128;
  static_assert(kSharedBytes <= 227 << 10);
};

template <class S>
class Channels : public KeyChannels<S> {
 public:
  using KeyChannels<S>::KeyChannels;
  __device__ Barrier weights_full(int stage) const { return this->at(KeyChannels<S>::kCount, stage); }
  __device__ Barrier weights_empty(int stage) const { return this->at(KeyChannels<S>::kCount + 2, stage); }

  __device__ void init() const {
    for (int stage = 0; stage < S::kStages; stage++) {
      weights_full(stage).init(4);
      weights_empty(stage).init(4);
    }
    KeyChannels<S>::init();
  }
};

/** What both warpgroups that compute are made of. */
template <class S, bool kHasMask>
class Consumer {
 protected:
  using T = typename S::T;
  using OfKeys = KeyScores<S, kHasMask>;
  using Scores = typename OfKeys::Scores;
  using Weights = uint32_t[S::kRows / 4];
  using Gradient = float[S::kHeadDim / 2];

  __device__ explicit Consumer(const BackwardSm90& launch)
      : launch_(launch),
        op_(launch.op),
        base_(shared_address(aligned_memory())),
        channels_(base_),
        of_keys_(op_, KeyTile<S>(launch).first_key + static_cast<int>(threadIdx.x) / 32 % 4 * 16) {}

  __device__ uint32_t queries(int stage) const { return base_ + S::kQueriesAt + stage * S::kRowBytes; }
  __device__ uint32_t gradients(int stage) const { return base_ + S::kGradientsAt + stage * S::kRowBytes; }
  /** This thread's weights of a stage; the next four are 128 further. */
  __device__ float4* weights(int stage) const {
    return reinterpret_cast<float4*>(aligned_memory() + S::kWeightsAt + stage * S::kWeightBytes) +
           threadIdx.x % 128;
  }
  __device__ static void clear(Gradient& gradient) {
#pragma unroll
    for (int i = 0; i < S::kHeadDim / 2; i++) gradient[i] = 0;
  }
  __device__ void write(const Gradient& gradient, const GpuRows& to, float factor, bool is_float32,
                        bool adds) const {
    const KeyTile<S> keys(launch_);
    write_gradient<T>(gradient, to, keys.batch, keys.key_head, of_keys_.key(), op_.forward.keys,
                      op_.forward.head_dim, factor, is_float32, adds);
  }

  const BackwardSm90& launch_;
  const BackwardSm80& op_;
  const uint32_t base_;
  const Channels<S> channels_;
  const OfKeys of_keys_;
};

template <class S, bool kHasMask>
class ValueConsumer : Consumer<S, kHasMask> {
  using Base = Consumer<S, kHasMask>;
  using Base::channels_, Base::of_keys_;
  using typename Base::OfKeys, typename Base::Scores, typename Base::T;

 public:
  __device__ explicit ValueConsumer(const BackwardSm90& launch) : Base(launch) {}

  __device__ void run() {
    typename Base::Gradient dv;
    Base::clear(dv);
    channels_.keys_full().wait(0);
    for (Ring<S::kStages> stages;; stages.advance()) {
      const int stage = stages.stage;
      channels_.queries_full(stage).wait(stages.parity);
      const StagedTile rows = staged<S>(stage);
      if (rows.first < 0) break;
      typename OfKeys::Seen seen;
      if (!rows.sees_all) of_keys_.find_seen(seen, rows);
      Scores s;
      multiply_own<S>(s, this->base_, this->queries(stage));
      channels_.weights_empty(stage).wait(stages.parity ^ 1);
      wait_products<0>();
      pin(s);
      channels_.release(channels_.queries_empty(stage));
      weigh(s, rows, seen, stage);
      __syncwarp();
      channels_.release(channels_.weights_full(stage));
      typename Base::Weights p;
#pragma unroll
      for (int i = 0; i < S::kRows / 4; i++) p[i] = pack<T>(s[2 * i], s[2 * i + 1]);
      channels_.gradients_full(stage).wait(stages.parity);
      add_rows<S>(dv, p, this->gradients(stage));
      commit_products();
      wait_products<0>();
      pin(dv);
      channels_.release(channels_.gradients_empty(stage));
    }
    this->write(dv, this->op_.dv, OfKeys::kWeightUnit, this->op_.dv_float32, this->op_.adds_to_dv);
  }

 private:
  /** s = P^T, and what dP^T - delta is to be multiplied by, for the keys' warpgroup. */
  __device__ void weigh(Scores& s, const StagedTile& rows, const typename OfKeys::Seen& seen,
                        int stage) const {
    if (!of_keys_.has_rules()) {
      of_keys_.weigh(s, stage);
      if (!rows.sees_all) of_keys_.hide(s, seen);
      pass(s, stage);
    } else {
      Scores derivatives;
#pragma unroll
      for (int i = 0; i < S::kRows / 2; i++) derivatives[i] = 1;
      of_keys_.adjust(s, rows, stage, [&](int i, float derivative, float) { derivatives[i] = derivative; });
      if (!rows.sees_all) of_keys_.hide(s, seen);
#pragma unroll
      for (int i = 0; i < S::kRows / 2; i++) derivatives[i] *= s[i];
      pass(derivatives, stage);
    }
  }
  __device__ void pass(const Scores& weights, int stage) const {
#pragma unroll
    for (int j = 0; j < S::kRows / 8; j++) {
      this->weights(stage)[128 * j] =
          make_float4(weights[4 * j], weights[4 * j + 1], weights[4 * j + 2], weights[4 * j + 3]);
    }
  }
};

template <class S, bool kHasMask>
class KeyConsumer : Consumer<S, kHasMask> {
  using Base = Consumer<S, kHasMask>;
  using Base::channels_, Base::of_keys_;
  using typename Base::OfKeys, typename Base::Scores, typename Base::T;

 public:
  __device__ explicit KeyConsumer(const BackwardSm90& launch) : Base(launch) {}

  __device__ void run() {
    typename Base::Gradient dk;
    Base::clear(dk);
    channels_.keys_full().wait(0);
    for (Ring<S::kStages> stages;; stages.advance()) {
      const int stage = stages.stage;
      channels_.queries_full(stage).wait(stages.parity);
      if (staged<S>(stage).first < 0) break;
      channels_.gradients_full(stage).wait(stages.parity);
      Scores dp;
      multiply_own<S>(dp, this->base_ + S::kValuesAt, this->gradients(stage));
      channels_.weights_full(stage).wait(stages.parity);
      wait_products<0>();
      pin(dp);
      channels_.release(channels_.gradients_empty(stage));
      differentiate(dp, stage);
      channels_.release(channels_.weights_empty(stage));
      typename Base::Weights ds;
#pragma unroll
      for (int i = 0; i < S::kRows / 4; i++) ds[i] = pack<T>(dp[2 * i], dp[2 * i + 1]);
      add_rows<S>(dk, ds, this->queries(stage));
      commit_products();
      wait_products<0>();
      pin(dk);
      channels_.release(channels_.queries_empty(stage));
    }
    this->write(dk, this->op_.dk, this->op_.scale, this->op_.dk_float32, this->op_.adds_to_dk);
  }

 private:
  /** dp = dS^T. */
  __device__ void differentiate(Scores& dp, int stage) const {
#pragma unroll
    for (int j = 0; j < S::kRows / 8; j++) {
      const float4 weights = this->weights(stage)[128 * j], two = of_keys_.statistics(stage)[4 * j];
      dp[4 * j] = weights.x * OfKeys::kWeightUnit * (dp[4 * j] - two.y);
      dp[4 * j + 1] = weights.y * OfKeys::kWeightUnit * (dp[4 * j + 1] - two.w);
      dp[4 * j + 2] = weights.z * OfKeys::kWeightUnit * (dp[4 * j + 2] - two.y);
      dp[4 * j + 3] = weights.w * OfKeys::kWeightUnit * (dp[4 * j + 3] - two.w);
    }
    __syncwarp();
  }
};

template <class S, bool kHasMask>
__global__ void __launch_bounds__(S::kThreads, 1)
    key_gradients_kernel(const __grid_constant__ BackwardSm90 launch) {
  const uint32_t base = shared_address(aligned_memory());
  if (threadIdx.x == 0) Channels<S>(base).init();
  __syncthreads();
  const int group = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0);
  if (group == 0) {
    give_registers<24>();
    if (threadIdx.x < 32) produce<S, kHasMask>(launch, base);
  } else {
    take_registers<240>();
    if (group == 1) {
      ValueConsumer<S, kHasMask>(launch).run();
    } else {
      KeyConsumer<S, kHasMask>(launch).run();
    }
  }
}

}  // namespace

void launch_key_gradients_sm90(const Cuda& cuda, DType dtype, const BackwardSm80& op) {
  visit_kernel(dtype, op.forward.mask, [&]<class T, bool kHasMask>() {
    using S = Shape<T>;
    const BackwardSm90 launch =
        backward_launch<S>(op, order_key_tiles(cuda, op, S::kKeys, 1), whole_queries(op));
    longseq::launch<key_gradients_kernel<S, kHasMask>>(cuda, launch.order.grid(), S::kThreads,
                                                       S::kSharedBytes, launch);
  });
}

}  // namespace longseq
