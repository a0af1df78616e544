// The forward and backward passes of norms alone, for those who keep what is between them themselves.
import { checkOptions, type OptionNames, wrongKind } from "../errors.ts";
import { native } from "../native.ts";
import { handleOf, type Tensor } from "../tensor.ts";
import { queued } from "./queued.ts";
import { emptyLike, emptyStatistic } from "./rows.ts";

/** How rows are made regular. */
export interface NormOptions {
  /** Added to the mean square, 0 or more. Default: 1e-5 for layer norm, 1e-6 for RMS norm. */
  eps?: number;
}

/** What is made regular. */
export interface NormForwardOptions extends NormOptions {
  /** Of x's shape and dtype: the norm is of x + residual. */
  residual?: Tensor;
}

export const normOptionNames: OptionNames<NormOptions> = { eps: true };
const normForwardOptionNames: OptionNames<NormForwardOptions> = { ...normOptionNames, residual: true };

/** What `rmsNormForward` gives. */
export interface RmsNormResult {
  /** Of x's shape and dtype. */
  out: Tensor;
  /** x + residual, rounded to x's dtype; where there is a residual. */
  sum?: Tensor;
  /** [...] float32, one a row: 1 / sqrt(mean square + eps). */
  reciprocalDeviation: Tensor;
}

/** What `layerNormForward` gives. */
export interface LayerNormResult extends RmsNormResult {
  /** [...] float32, one a row. */
  mean: Tensor;
}

/** What a norm's backward pass needs. */
export interface NormBackwardTensors {
  /** What the norm was of: x, or the sum. */
  x: Tensor;
  weight: Tensor;
  reciprocalDeviation: Tensor;
  /** The gradient of out. */
  dout: Tensor;
  /** The gradient of the sum, which is added to dx. */
  dsum?: Tensor;
}

/**
 * The forward pass of `layerNorm`, or with a residual of `addLayerNorm`: their arguments and errors. A tape does not
 * note it.
 *
 * @example
 * const [x, weight] = [Tensor.normal([4, 128]), Tensor.normal([128])];
 * const { out, mean, reciprocalDeviation } = layerNormForward(x, weight, null);
 */
export function layerNormForward(
  x: Tensor,
  weight: Tensor,
  bias: Tensor | null,
  options: NormForwardOptions = {},
): LayerNormResult {
  const residual = checkedResidual("layerNorm", options);
  return normForward("layerNorm", x, residual, weight, bias, options) as LayerNormResult;
}

/**
 * The forward pass of `rmsNorm`, or with a residual of `addRmsNorm`: their arguments and errors. A tape does not note
 * it.
 *
 * @example
 * const [x, weight] = [Tensor.normal([4, 128]), Tensor.normal([128])];
 * const { out, reciprocalDeviation } = rmsNormForward(x, weight, { eps: 1e-5 });
 */
export function rmsNormForward(x: Tensor, weight: Tensor, options: NormForwardOptions = {}): RmsNormResult {
  return normForward("rmsNorm", x, checkedResidual("rmsNorm", options), weight, null, options);
}

/**
 * The gradients of sum(out * dout) + sum(sum * dsum). Deterministic: sums over rows are made in a fixed order, in
 * float32.
 *
 *     n = (x - mean) r      g = dout weight      dx = r (g - mean(g) - n mean(g n)) + dsum
 *     dweight = the sum of dout n over the rows, dbias that of dout
 *
 * @param tensors x (with a residual: the sum) and weight as they went into `layerNorm`, what `layerNormForward` gave for
 * them, and the gradients of its results, each of that result's shape and dtype.
 * @returns dx of x's shape and dtype, which is the residual's gradient too; dweight and dbias of weight's.
 * @throws the errors of `layerNorm`.
 *
 * @example
 * const [x, weight] = [Tensor.normal([4, 128]), Tensor.normal([128])];
 * const { out, mean, reciprocalDeviation } = layerNormForward(x, weight, null);
 * const dout = Tensor.normal(out.shape);
 * const { dx, dweight, dbias } = layerNormBackward({ x, weight, mean, reciprocalDeviation, dout });
 */
export function layerNormBackward(tensors: NormBackwardTensors & { mean: Tensor }): {
  dx: Tensor;
  dweight: Tensor;
  dbias: Tensor;
} {
  const { dx, dweight, dbias } = normBackward("layerNorm", tensors, true);
  return { dx, dweight, dbias: dbias as Tensor };
}

/**
 * The gradients of sum(out * dout) + sum(sum * dsum), as `layerNormBackward` gives them: without a mean, and no bias.
 *
 * @throws the errors of `rmsNorm`.
 *
 * @example
 * const [x, weight] = [Tensor.normal([4, 128]), Tensor.normal([128])];
 * const { out, reciprocalDeviation } = rmsNormForward(x, weight);
 * const { dx, dweight } = rmsNormBackward({ x, weight, reciprocalDeviation, dout: Tensor.normal(out.shape) });
 */
export function rmsNormBackward(tensors: NormBackwardTensors): { dx: Tensor; dweight: Tensor } {
  return normBackward("rmsNorm", tensors, false);
}

function checkedResidual(name: NormName, options: NormForwardOptions): Tensor | undefined {
  checkOptions(name, options, normForwardOptionNames);
  return options.residual;
}

export type NormName = "layerNorm" | "rmsNorm";
const defaultEps: Readonly<Record<NormName, number>> = { layerNorm: 1e-5, rmsNorm: 1e-6 };

/** With a mean for layerNorm, and a sum where there is a residual. The names of the options were checked. */
export function normForward(
  name: NormName,
  x: Tensor,
  residual: Tensor | undefined,
  weight: Tensor,
  bias: Tensor | null,
  options: NormOptions,
): RmsNormResult & { mean?: Tensor } {
  const inputs = [
    handleOf(x, `${name}: x`),
    residual === undefined ? null : handleOf(residual, `${name}: residual`),
    handleOf(weight, `${name}: weight`),
    bias === null ? null : handleOf(bias, `${name}: bias`),
  ] as const;
  const { eps = defaultEps[name] } = options;
  if (typeof eps !== "number") throw wrongKind(`${name}: eps`, "a number", eps);
  const results: RmsNormResult & { mean?: Tensor } = {
    out: emptyLike(x),
    reciprocalDeviation: emptyStatistic(x),
    ...(residual !== undefined && { sum: emptyLike(x) }),
    ...(name === "layerNorm" && { mean: emptyStatistic(x) }),
  };
  return queued(Object.values(results), () => {
    const { out, sum, mean, reciprocalDeviation } = results;
    native.normForward(
      ...inputs,
      eps,
      handleOf(out, "out"),
      sum === undefined ? null : handleOf(sum, "sum"),
      mean === undefined ? null : handleOf(mean, "mean"),
      handleOf(reciprocalDeviation, "reciprocalDeviation"),
    );
    return results;
  });
}

/** With dbias where it is asked for. */
export function normBackward(
  name: NormName,
  tensors: NormBackwardTensors & { mean?: Tensor },
  hasBias: boolean,
): { dx: Tensor; dweight: Tensor; dbias?: Tensor } {
  if (typeof tensors !== "object" || tensors === null) {
    throw wrongKind(`${name}Backward: tensors`, "an object of Tensors", tensors);
  }
  const { x, weight, mean, reciprocalDeviation, dout, dsum } = tensors;
  const inputs = [
    handleOf(x, `${name}: x`),
    handleOf(weight, `${name}: weight`),
    name === "rmsNorm" ? null : handleOf(mean as Tensor, `${name}: mean`),
    handleOf(reciprocalDeviation, `${name}: reciprocalDeviation`),
    handleOf(dout, `${name}: dout`),
    dsum === undefined ? null : handleOf(dsum, `${name}: dsum`),
  ] as const;
  const gradients: { dx: Tensor; dweight: Tensor; dbias?: Tensor } = {
    dx: emptyLike(x),
    dweight: emptyLike(weight),
    ...(hasBias && { dbias: emptyLike(weight) }),
  };
  return queued(Object.values(gradients), () => {
    const { dx, dweight, dbias } = gradients;
    native.normBackward(
      ...inputs,
      handleOf(dx, "dx"),
      handleOf(dweight, "dweight"),
      dbias === undefined ? null : handleOf(dbias, "dbias"),
    );
    return gradients;
  });
}
