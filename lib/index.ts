/**
 * Attention over long sequences: tiled kernels for the CPU (and later for NVIDIA GPUs) behind a typed API.
 * @packageDocumentation
 */
export { loadSafetensors, type SafetensorsFile, saveSafetensors } from "./data/safetensors.ts";
export { type FastaRecord, readFasta } from "./data/fasta.ts";
export { Device } from "./device.ts";
export type { ErrorCode } from "./errors.ts";
export { type Info, info } from "./info.ts";
export { AttentionMask } from "./mask.ts";
export {
  type AttentionOptions,
  type AttentionResult,
  attention,
  attentionBackward,
  attentionForward,
  mergeAttention,
  type Piece,
} from "./ops/attention.ts";
export { Scope } from "./scope.ts";
export { Tape } from "./tape.ts";
export { type DType, Tensor, type TensorOptions, type TensorValues } from "./tensor.ts";
