// Norms of rows, alone and with the residual connection that stands before them in a transformer's layer.
import { checkOptions } from "../errors.ts";
import { record } from "../tape.ts";
import { handleOf, type Tensor } from "../tensor.ts";
import {
  type NormName,
  type NormOptions,
  normBackward,
  normForward,
  normOptionNames,
} from "./norm-passes.ts";
import { withDenseRows } from "./rows.ts";

/** What a norm with a residual connection gives. */
export interface AddNormResult {
  /** The norm of the sum. */
  out: Tensor;
  /** x + residual, rounded to their dtype: the residual of the next connection. */
  sum: Tensor;
}

/**
 * Layer norm of each row (Ba, Kiros and Hinton, "Layer normalization", 2016). Differentiable on a `Tape`.
 *
 *     out = (x - mean) / sqrt(variance + eps) * weight + bias
 *
 * @param x [..., C] in float32, bfloat16 or float16; computed in float32. Any strides on the leading axes.
 * @param weight [C], float32 or of x's dtype.
 * @param bias [C], of weight's dtype; null for none.
 * @returns of x's shape and dtype.
 * @throws `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DEVICE` (tensors of two devices), `ERR_OPTION`, `ERR_DISPOSED`,
 * `ERR_OUT_OF_MEMORY`.
 *
 * @example
 * const x = Tensor.from([1, 3, 5, 5], [2, 2]);
 * const out = layerNorm(x, Tensor.from([1, 1], [2]), Tensor.from([10, 10], [2]), { eps: 0.5625 });
 * await out.data(); // [9.199999809265137, 10.800000190734863, 10, 10]
 */
export function layerNorm(x: Tensor, weight: Tensor, bias: Tensor | null, options: NormOptions = {}): Tensor {
  return recordedNorm("layerNorm", x, undefined, weight, bias, options).out;
}

/**
 * Root-mean-square norm of each row (Zhang and Sennrich, "Root mean square layer normalization", 2019). Differentiable
 * on a `Tape`.
 *
 *     out = x / sqrt(mean(x^2) + eps) * weight
 *
 * @param x [..., C], as for `layerNorm`; so are the errors.
 * @param weight [C], float32 or of x's dtype.
 * @returns of x's shape and dtype.
 *
 * @example
 * await rmsNorm(Tensor.from([1, 7], [1, 2]), Tensor.from([5, 10], [2]), { eps: 0 }).data(); // [1, 14]
 */
export function rmsNorm(x: Tensor, weight: Tensor, options: NormOptions = {}): Tensor {
  return recordedNorm("rmsNorm", x, undefined, weight, null, options).out;
}

/**
 * `layerNorm` of x + residual, and that sum, in one pass: the same bits as an addition and a norm. Differentiable on a
 * `Tape`, in both results.
 *
 * @param x [..., C], as for `layerNorm`; so are the errors.
 * @param residual of x's shape and dtype.
 * @example
 * const [x, residual, weight] = [Tensor.normal([4, 128]), Tensor.normal([4, 128]), Tensor.normal([128])];
 * const { out, sum } = addLayerNorm(x, residual, weight, Tensor.zeros([128]));
 */
export function addLayerNorm(
  x: Tensor,
  residual: Tensor,
  weight: Tensor,
  bias: Tensor | null,
  options: NormOptions = {},
): AddNormResult {
  handleOf(residual, "layerNorm: residual");
  const { out, sum } = recordedNorm("layerNorm", x, residual, weight, bias, options);
  return { out, sum: sum as Tensor };
}

/**
 * `rmsNorm` of x + residual, and that sum, in one pass: the same bits as an addition and a norm. Differentiable on a
 * `Tape`, in both results.
 *
 * @param x [..., C], as for `layerNorm`; so are the errors.
 * @param residual of x's shape and dtype.
 * @example
 * const [x, residual, weight] = [Tensor.normal([4, 128]), Tensor.normal([4, 128]), Tensor.normal([128])];
 * const { out, sum } = addRmsNorm(x, residual, weight);
 */
export function addRmsNorm(
  x: Tensor,
  residual: Tensor,
  weight: Tensor,
  options: NormOptions = {},
): AddNormResult {
  handleOf(residual, "rmsNorm: residual");
  const { out, sum } = recordedNorm("rmsNorm", x, residual, weight, null, options);
  return { out, sum: sum as Tensor };
}

function recordedNorm(
  name: NormName,
  x: Tensor,
  residual: Tensor | undefined,
  weight: Tensor,
  bias: Tensor | null,
  options: NormOptions,
): { out: Tensor; sum?: Tensor } {
  checkOptions(name, options, normOptionNames);
  const { out, sum, ...statistics } = normForward(name, x, residual, weight, bias, options);
  using mean = statistics.mean;
  using reciprocalDeviation = statistics.reciprocalDeviation;
  const inputs = [x, ...(residual ? [residual] : []), weight, ...(bias ? [bias] : [])];
  record(name, sum ? [out, sum] : [out], inputs, (save) => {
    const saved = {
      x: save(sum ?? x),
      weight: save(weight),
      reciprocalDeviation: save(reciprocalDeviation),
      ...(mean && { mean: save(mean) }),
    };
    return ([dout, dsum]) => {
      const given = { ...saved, dout: withDenseRows(dout), ...(dsum && { dsum: withDenseRows(dsum) }) };
      const { dx, dweight, dbias } = normBackward(name, given, bias !== null);
      return [dx, ...(residual ? [dx] : []), dweight, ...(dbias ? [dbias] : [])];
    };
  });
  return { out, ...(sum && { sum }) };
}
