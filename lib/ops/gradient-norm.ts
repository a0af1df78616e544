import { Device } from "../device.ts";
import { failure, wrongKind } from "../errors.ts";
import { native } from "../native.ts";
import { handleOf, Tensor } from "../tensor.ts";
import { type TensorGroup, tensorsOf } from "../tensor-group.ts";
import { queued } from "./queued.ts";

/**
 * The Euclidean norm of all elements of the tensors that are given, as one vector: of what this rank holds, where ranks
 * share a model ({@link SharedParameters}). Deterministic: the same bits at any thread count.
 *
 * @param tensors in an array or by name: contiguous, on one device; float32, bfloat16 or float16. None at all have the
 * norm 0.
 * @returns [] float32; not finite where an element is not, or the sum of squares outgrows float32.
 * @throws `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DEVICE`, `ERR_OPTION`, `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`.
 *
 * @example
 * await globalNorm([Tensor.from([3, 0], [2]), Tensor.from([4], [1])]).data(); // [5]
 */
export function globalNorm(tensors: TensorGroup): Tensor {
  const { handles, scalar } = checked("globalNorm", tensors);
  const norm = scalar();
  return queued([norm], () => {
    native.globalNorm(handles, handleOf(norm, "norm"), Number.POSITIVE_INFINITY, null);
    return norm;
  });
}

/**
 * What gradients are to be multiplied by for their global norm to be at most `maxNorm` (Pascanu et al., 2013):
 * computed on the device, with nothing waited for. The gradients stay as they are; `AdamW.step` takes the factor.
 * Only those that are given count. Ranks that hold shares or replicas of one model must use one factor for all, or the
 * replicas drift apart: `clipByGlobalNorm` of {@link SharedParameters} makes it.
 *
 *     factor = min(1, maxNorm / norm), and NaN where norm is not finite: a step with that changes nothing
 *
 * @param gradients as the tensors of `globalNorm`.
 * @param maxNorm above 0.
 * @returns norm, to be looked at whenever it suits (it says which step was left out), and factor: [] float32.
 * @throws the errors of `globalNorm`.
 *
 * @example
 * const gradients = [Tensor.from([3, 0], [2]), Tensor.from([4], [1])];
 * const { norm, factor } = clipByGlobalNorm(gradients, 1);
 * await norm.data(); // [5]
 */
export function clipByGlobalNorm(gradients: TensorGroup, maxNorm: number): { norm: Tensor; factor: Tensor } {
  const { handles, scalar } = checked("clipByGlobalNorm", gradients);
  checkMaxNorm(maxNorm);
  const [norm, factor] = [scalar(), scalar()];
  return queued([norm, factor], () => {
    native.globalNorm(handles, handleOf(norm, "norm"), maxNorm, handleOf(factor, "factor"));
    return { norm, factor };
  });
}

export function checkMaxNorm(maxNorm: number): void {
  if (typeof maxNorm !== "number") throw wrongKind("clipByGlobalNorm: maxNorm", "a number", maxNorm);
  if (!(maxNorm > 0)) {
    throw failure("ERR_OPTION", `clipByGlobalNorm: maxNorm is ${maxNorm}, expected a number above 0`);
  }
}

/** And what makes a result on their device. */
function checked(what: string, group: TensorGroup) {
  const tensors = tensorsOf(`${what}: tensors`, group);
  const handles = tensors.map((tensor) => handleOf(tensor, `${what}: a tensor`));
  const device = tensors[0]?.device ?? Device.default;
  return { handles, scalar: () => Tensor.empty([], { device }) };
}
