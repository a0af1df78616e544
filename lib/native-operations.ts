// The addon's operations, which cuda/addon/operation_binding.cc exports.
import type { DeviceHandle, QueryGradientHandle, TensorHandle, TensorPlace } from "./native.ts";
import type { NativeAttentionOptions } from "./ops/attention-options.ts";

export interface NativeOperations {
  copy(x: TensorPlace, y: TensorPlace): void;
  add(a: TensorHandle, b: TensorHandle, y: TensorHandle): void;
  sum(terms: readonly TensorHandle[], y: TensorHandle): void;
  scale(
    x: TensorHandle,
    factor: TensorHandle | null,
    divisor: TensorHandle | null,
    y: TensorHandle,
    accumulate: boolean,
  ): void;
  fill(y: TensorHandle, value: number): void;
  fillNormal(y: TensorHandle, seed: number, first: number, mean: number, std: number): void;
  attentionKernels(device: DeviceHandle, dtype: number, implementation: string | null): string;
  attentionForward(
    q: TensorPlace,
    k: TensorPlace,
    v: TensorPlace,
    out: TensorPlace,
    logSumExp: TensorPlace,
    options: NativeAttentionOptions,
  ): void;
  /** Merged with `before`, of float32, whose log-sum-exp logSumExp holds; it may be `out`. */
  attentionForwardMerged(
    q: TensorPlace,
    k: TensorPlace,
    v: TensorPlace,
    before: TensorPlace,
    out: TensorPlace,
    logSumExp: TensorPlace,
    options: NativeAttentionOptions,
  ): void;
  /** Whether there are kernels for rows that lie in several tensors. */
  attentionTakesParts(
    device: DeviceHandle,
    dtype: number,
    headDim: number,
    implementation: string | null,
  ): boolean;
  /** `parts` are source, first row of it, rows, source, ...: in multiples of 128, those of an earlier one before. */
  attentionForwardOfParts(
    q: TensorHandle,
    k: readonly TensorHandle[],
    v: readonly TensorHandle[],
    parts: readonly number[],
    out: TensorHandle,
    logSumExp: TensorHandle,
    options: NativeAttentionOptions,
  ): void;
  /** How many floats a row of dq is added up in. */
  querySumColumns(headDim: number): number;
  /** Makes statistics [B, Hq, Sq, 2], and sums [B, Hq, Sq, columns] of zero. */
  querySumsBegin(
    q: TensorHandle,
    out: TensorHandle,
    logSumExp: TensorHandle,
    dout: TensorHandle,
    statistics: TensorHandle,
    sums: TensorHandle,
    options: NativeAttentionOptions,
  ): void;
  /** dk and dv by the queries of several tensors, to whose sums dq is added, maybe beside other calls. */
  attentionBackwardOfParts(
    q: readonly TensorHandle[],
    dout: readonly TensorHandle[],
    statistics: readonly TensorHandle[],
    sums: readonly TensorHandle[],
    parts: readonly number[],
    k: TensorHandle,
    v: TensorHandle,
    dk: TensorHandle,
    dv: TensorHandle,
    options: NativeAttentionOptions,
  ): void;
  querySumsFinish(sums: TensorHandle, dq: TensorHandle, options: NativeAttentionOptions): void;
  attentionBackward(
    q: TensorHandle,
    k: TensorHandle,
    v: TensorHandle,
    out: TensorHandle,
    logSumExp: TensorHandle,
    dout: TensorHandle,
    dlogSumExp: TensorHandle | null,
    dq: TensorHandle,
    dk: TensorHandle,
    dv: TensorHandle,
    addsToDq: boolean,
    addsToDk: boolean,
    addsToDv: boolean,
    options: NativeAttentionOptions,
  ): void;
  attentionMerge(
    outs: readonly TensorHandle[],
    logSumExps: readonly TensorHandle[],
    out: TensorHandle,
    logSumExp: TensorHandle,
  ): void;
  queryGradientBegin(
    q: TensorHandle,
    out: TensorHandle,
    logSumExp: TensorHandle,
    dout: TensorHandle,
    options: NativeAttentionOptions,
  ): QueryGradientHandle;
  queryGradientAdd(
    gradient: QueryGradientHandle,
    first: number,
    queries: number,
    k: TensorPlace,
    v: TensorPlace,
    dk: TensorPlace,
    dv: TensorPlace,
    addsToDk: boolean,
    addsToDv: boolean,
    options: NativeAttentionOptions,
  ): void;
  queryGradientFinish(gradient: QueryGradientHandle, dq: TensorHandle): void;
  queryGradientDispose(gradient: QueryGradientHandle): void;
  matmul(
    a: TensorHandle,
    b: TensorHandle,
    bias: TensorHandle | null,
    out: TensorHandle,
    transposeA: boolean,
    transposeB: boolean,
    accumulate: boolean,
  ): void;
  linear(x: TensorHandle, weight: TensorHandle, bias: TensorHandle | null, y: TensorHandle): void;
  /** Each of the results where it is given; x is needed for dweight. */
  linearBackward(
    dy: TensorHandle,
    x: TensorHandle | null,
    weight: TensorHandle,
    dx: TensorHandle | null,
    dweight: TensorHandle | null,
    dbias: TensorHandle | null,
    addsToDweight: boolean,
    addsToDbias: boolean,
  ): void;
  columnSum(x: TensorHandle, y: TensorHandle): void;
  normForward(
    x: TensorHandle,
    residual: TensorHandle | null,
    weight: TensorHandle,
    bias: TensorHandle | null,
    eps: number,
    out: TensorHandle,
    sum: TensorHandle | null,
    mean: TensorHandle | null,
    reciprocalDeviation: TensorHandle,
  ): void;
  normBackward(
    sum: TensorHandle,
    weight: TensorHandle,
    mean: TensorHandle | null,
    reciprocalDeviation: TensorHandle,
    dout: TensorHandle,
    dsum: TensorHandle | null,
    dx: TensorHandle,
    dweight: TensorHandle,
    dbias: TensorHandle | null,
  ): void;
  embedding(table: TensorHandle, indices: TensorHandle, y: TensorHandle): void;
  embeddingBackward(dy: TensorHandle, indices: TensorHandle, dtable: TensorHandle, accumulate: boolean): void;
  softmaxForward(
    x: TensorHandle,
    mask: TensorHandle | null,
    scale: number,
    causal: boolean,
    out: TensorHandle,
  ): void;
  softmaxBackward(out: TensorHandle, dout: TensorHandle, scale: number, dx: TensorHandle): void;
  crossEntropyForward(
    logits: TensorHandle,
    targets: TensorHandle,
    ignoreIndex: number,
    reduction: string,
    loss: TensorHandle,
    logSumExp: TensorHandle,
    count: TensorHandle,
  ): void;
  crossEntropyBackward(
    logits: TensorHandle,
    targets: TensorHandle,
    logSumExp: TensorHandle,
    count: TensorHandle,
    dloss: TensorHandle,
    ignoreIndex: number,
    reduction: string,
    dlogits: TensorHandle,
  ): void;
  geluForward(x: TensorHandle, bias: TensorHandle | null, isTanh: boolean, y: TensorHandle): void;
  geluBackward(
    x: TensorHandle,
    bias: TensorHandle | null,
    isTanh: boolean,
    dy: TensorHandle,
    dx: TensorHandle,
    dbias: TensorHandle | null,
  ): void;
  swigluForward(gate: TensorHandle, up: TensorHandle, y: TensorHandle): void;
  swigluBackward(
    gate: TensorHandle,
    up: TensorHandle,
    dy: TensorHandle,
    dgate: TensorHandle,
    dup: TensorHandle,
  ): void;
  rope(
    x: TensorHandle,
    frequencies: Float64Array,
    factor: number,
    interleaved: boolean,
    isInverse: boolean,
    pieces: readonly number[] | null,
    positions: TensorHandle | null,
    y: TensorHandle,
  ): void;
  adamW(
    parameters: readonly TensorHandle[],
    gradients: readonly TensorHandle[],
    firstMoments: readonly TensorHandle[],
    secondMoments: readonly TensorHandle[],
    copies: readonly (TensorHandle | null)[],
    step: number,
    learningRate: number,
    beta1: number,
    beta2: number,
    epsilon: number,
    weightDecay: number,
    gradientScale: TensorHandle | null,
  ): void;
  globalNorm(
    tensors: readonly TensorHandle[],
    norm: TensorHandle,
    maxNorm: number,
    factor: TensorHandle | null,
  ): void;
  measurePeak(y: TensorHandle, dtype: number): void;
}
