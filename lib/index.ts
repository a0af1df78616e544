/**
 * Attention over long sequences: tiled kernels for the CPU and for NVIDIA GPUs behind a typed API.
 * @packageDocumentation
 */

export { checkpoint, type Recomputed } from "./checkpoint.ts";
export { type FastaRecord, readFasta } from "./data/fasta.ts";
export { loadSafetensors, type SafetensorsFile, saveSafetensors } from "./data/safetensors.ts";
export { Device, type Mark } from "./device.ts";
export type { ErrorCode } from "./errors.ts";
export { type Gpu, type Info, info, type NcclLibrary, ncclLibrary } from "./info.ts";
export { type Rank, rankFromEnvironment } from "./launch/rank.ts";
export { broadcast, type ExchangeOptions, exchange } from "./launch/rendezvous.ts";
export { AttentionMask } from "./mask.ts";
export type {
  GptConfiguration,
  GptOptions,
  LayerConfiguration,
  LayerOptions,
  LayerRotaryOptions,
} from "./model/configuration.ts";
export { GPT, type GptLossOptions } from "./model/gpt.ts";
export { TransformerLayer } from "./model/layer.ts";
export type { LayerForwardOptions, ModuleOptions } from "./model/layer-options.ts";
export { loadParameters } from "./model/load-parameters.ts";
export {
  gptParameters,
  layerParameters,
  type ParameterSpecification,
  type Placement,
  parameterCount,
} from "./model/parameters.ts";
export { presets } from "./model/presets.ts";
export type { Recompute, RecomputeOptions } from "./model/recompute.ts";
export { SharedParameters } from "./model/shared-parameters.ts";
export { initialParameters, shareParameters } from "./model/shares.ts";
export { type RankTensors, wholeGradients, wholeParameters } from "./model/wholes.ts";
export type { ActivatedLinearOptions } from "./ops/activated-linear.ts";
export {
  type Activation,
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
export { attentionKernels } from "./ops/attention-kernels.ts";
export type { AttentionOptions, KeepAttention, Piece } from "./ops/attention-options.ts";
export { concatenate } from "./ops/concatenate.ts";
export { add } from "./ops/elementwise.ts";
export { type EmbeddingOptions, embedding, embeddingBackward } from "./ops/embedding.ts";
export { clipByGlobalNorm, globalNorm } from "./ops/gradient-norm.ts";
export { type LinearGradients, type LinearOptions, linear, linearBackward } from "./ops/linear.ts";
export { linearCrossEntropy } from "./ops/linear-cross-entropy.ts";
export type { LinearCrossEntropyOptions } from "./ops/linear-cross-entropy-options.ts";
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
export { split } from "./ops/split.ts";
export { AdamW, type AdamWOptions } from "./optimizer.ts";
export type { SumOptions } from "./parallel/collectives.ts";
export { Communicator } from "./parallel/communicator.ts";
export { type HybridOptions, hybrid } from "./parallel/hybrid.ts";
export type { Parcel } from "./parallel/link.ts";
export type { LocalOptions, LocalPlace } from "./parallel/local.ts";
export { megatron } from "./parallel/megatron.ts";
export type { NcclOptions } from "./parallel/nccl.ts";
export type { Pending } from "./parallel/pending.ts";
export { PartitionedPositionEmbedding, partitionPositions } from "./parallel/position-embedding.ts";
export type { PositionRowsOptions } from "./parallel/position-rows.ts";
export { ring, zigzag } from "./parallel/ring.ts";
export { SequenceShard } from "./parallel/shard.ts";
export {
  type PositionEmbedding,
  type Range,
  type ShardedAttentionOptions,
  type Strategy,
  serial,
} from "./parallel/strategy.ts";
export type { LabelOptions } from "./parallel/tokens.ts";
export { type UlyssesOptions, ulysses } from "./parallel/ulysses.ts";
export { sees, type VisibilityOptions, visiblePairs } from "./parallel/visibility.ts";
export { Scope } from "./scope.ts";
export { Tape } from "./tape.ts";
export { Tensor } from "./tensor.ts";
export type { Alike, TensorGroup, Tensors } from "./tensor-group.ts";
export type { TensorOptions } from "./tensor-options.ts";
export { tiled } from "./tiled.ts";
export type { DType, TensorValues } from "./values.ts";
