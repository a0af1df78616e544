// How much arithmetic a layer or a model is, by two counts: what it must compute, and what published tables counted.
import type { GptConfiguration, LayerConfiguration } from "../../model/configuration.ts";

/** Whole passes: "both" is a forward pass and its backward. */
export type ModelPass = "forward" | "backward" | "both";

/** What is counted: a layer is a model of one, without a vocabulary. */
export type ModelShape = LayerConfiguration & Pick<GptConfiguration, "layers" | "vocabulary">;

export interface Tokens {
  readonly batch: number;
  readonly seqLen: number;
}

/** Of the forward pass: backward there are two products for each of its own. */
const modelPasses: Readonly<Record<ModelPass, number>> = { forward: 1, backward: 2, both: 3 };

/**
 * Two operations for each multiply-add of the products and of attention, the latter for the pairs of a query and a key
 * that are visible, `share` of S²; backward twice that. What is recomputed is not counted. For a GPT layer in causal
 * order, half of all pairs, 3 (24 S h² + 2 S² h) for both passes; in Megatron-LM's count the same, by its name model
 * FLOPs.
 */
export function modelOperations(
  shape: ModelShape,
  { batch, seqLen }: Tokens,
  share: number,
  pass: ModelPass,
): number {
  const { hidden, heads, keyValueHeads, headDim, feedForward, activation, layers, vocabulary } = shape;
  const attentionParameters = 2 * hidden * (heads + keyValueHeads) * headDim;
  const mlpParameters = (activation === "swiglu" ? 3 : 2) * hidden * feedForward;
  const layer =
    2 * seqLen * (attentionParameters + mlpParameters) + 4 * share * seqLen ** 2 * heads * headDim;
  const head = 2 * seqLen * hidden * vocabulary;
  return modelPasses[pass] * batch * (layers * layer + head);
}

/**
 * As the tables of 2023 count it (`throughput_calculator` of Megatron-DeepSpeed), which knows one shape: products of
 * 12 h² parameters, attention over all pairs, and a recomputation as work, a forward pass of the whole for any part.
 * 24 c B S L h² (1 + S / (6 h) + V / (16 L h)), c being the passes: 3, or 4 with a recomputation.
 */
export function originalOperations(
  { hidden, layers, vocabulary }: Pick<ModelShape, "hidden" | "layers" | "vocabulary">,
  { batch, seqLen }: Tokens,
  pass: ModelPass,
  isRecomputed: boolean,
): number {
  const passes = modelPasses[pass] + (isRecomputed && pass !== "forward" ? 1 : 0);
  const relative = 1 + seqLen / (6 * hidden) + vocabulary / (16 * layers * hidden);
  return 24 * passes * batch * seqLen * layers * hidden ** 2 * relative;
}
