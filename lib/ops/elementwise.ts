import { native } from "../native.ts";
import { record } from "../tape.ts";
import { handleOf, Tensor } from "../tensor.ts";
import { queued } from "./queued.ts";

/**
 * a + b, as a residual connection adds: one rounding of the float32 sum; integers saturate. Differentiable on a `Tape`.
 *
 * @param b of a's shape and dtype; both may be views of any strides.
 * @returns of a's shape and dtype, contiguous.
 * @throws `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DEVICE` (tensors of two devices), `ERR_OPTION`, `ERR_DISPOSED`,
 * `ERR_OUT_OF_MEMORY`.
 *
 * @example
 * await add(Tensor.from([1, 2], [2]), Tensor.from([10, 20], [2])).data(); // [11, 22]
 */
export function add(a: Tensor, b: Tensor): Tensor {
  const handles = [handleOf(a, "add: a"), handleOf(b, "add: b")] as const;
  const y = Tensor.empty(a.shape, { dtype: a.dtype, device: a.device });
  queued([y], () => native.add(...handles, handleOf(y, "y")));
  return record("add", [y], [a, b], () => ([dy]) => [dy, dy]);
}
