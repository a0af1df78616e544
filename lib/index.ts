/**
 * Attention over long sequences: tiled kernels for the CPU and for NVIDIA GPUs behind a typed API.
 * @packageDocumentation
 */

export { type FastaRecord, readFasta } from "./data/fasta.ts";
export { loadSafetensors, type SafetensorsFile, saveSafetensors } from "./data/safetensors.ts";
export { Device, type Mark } from "./device.ts";
export type { ErrorCode } from "./errors.ts";
export { type Gpu, type Info, info } from "./info.ts";
export { type Rank, rankFromEnvironment } from "./launch/rank.ts";
export { broadcast, type ExchangeOptions, exchange } from "./launch/rendezvous.ts";
export { AttentionMask } from "./mask.ts";
export {
  type GeluOptions,
  gelu,
  geluBackward,
  swiglu,
  swigluBackward,
} from "./ops/activation.ts";
export {
  type AttentionResult,
  attention,
  attentionBackward,
  attentionForward,
  mergeAttention,
} from "./ops/attention.ts";
export type { AttentionOptions, Piece } from "./ops/attention-options.ts";
export { add } from "./ops/elementwise.ts";
export { clipByGlobalNorm, globalNorm } from "./ops/gradient-norm.ts";
export { type LinearGradients, type LinearOptions, linear, linearBackward } from "./ops/linear.ts";
export {
  type CrossEntropyOptions,
  type CrossEntropyPlace,
  type CrossEntropyResult,
  crossEntropy,
  crossEntropyBackward,
  crossEntropyForward,
} from "./ops/loss.ts";
export { type MatmulOptions, matmul } from "./ops/matmul.ts";
export { type AddNormResult, addLayerNorm, addRmsNorm, layerNorm, rmsNorm } from "./ops/norm.ts";
export {
  type LayerNormResult,
  layerNormBackward,
  layerNormForward,
  type NormBackwardTensors,
  type NormForwardOptions,
  type NormOptions,
  type RmsNormResult,
  rmsNormBackward,
  rmsNormForward,
} from "./ops/norm-passes.ts";
export {
  type RotaryFrequencyOptions,
  type RotaryOptions,
  type RotaryScaling,
  rotaryEmbedding,
  rotaryEmbeddingBackward,
  rotaryFrequencies,
} from "./ops/position.ts";
export { type SoftmaxOptions, softmax, softmaxBackward } from "./ops/softmax.ts";
export { AdamW, type AdamWOptions } from "./optimizer.ts";
export { Communicator, type LocalOptions, type Parcel } from "./parallel/communicator.ts";
export { type HybridOptions, hybrid } from "./parallel/hybrid.ts";
export { megatron } from "./parallel/megatron.ts";
export type { Pending } from "./parallel/pending.ts";
export { ring, zigzag } from "./parallel/ring.ts";
export { SequenceShard } from "./parallel/shard.ts";
export { type Range, type ShardedAttentionOptions, type Strategy, serial } from "./parallel/strategy.ts";
export type { LabelOptions } from "./parallel/tokens.ts";
export { ulysses } from "./parallel/ulysses.ts";
export { sees, type VisibilityOptions, visiblePairs } from "./parallel/visibility.ts";
export { Scope } from "./scope.ts";
export { Tape } from "./tape.ts";
export { Tensor, type TensorOptions } from "./tensor.ts";
export type { DType, TensorValues } from "./values.ts";
