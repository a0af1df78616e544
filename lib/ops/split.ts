import { failure, shown, wrongKind } from "../errors.ts";
import { record } from "../tape.ts";
import { handleOf, type Tensor } from "../tensor.ts";
import { alias } from "../view.ts";
import { concatenate } from "./concatenate.ts";
import { joined } from "./joined.ts";

/**
 * A tensor in parts along an axis, as the queries, keys and values of one product: views. Differentiable on a `Tape`: the
 * gradient is that of the parts, put together once, where that of as many slices is as many whole tensors and their sum.
 *
 * @param x any dtype and strides.
 * @param axis which one is divided.
 * @param sizes of the parts along it; 0 is a size.
 * @throws `ERR_SHAPE` where the sizes are not those of the axis together, or there is no such axis; `ERR_OPTION` where
 * there are none; `ERR_DISPOSED`.
 *
 * @example
 * const [q, k, v] = split(Tensor.normal([1, 128, 12, 64]), 2, [8, 2, 2]) as [Tensor, Tensor, Tensor];
 * q.shape; // [1, 128, 8, 64]
 * const out = attention(q, k, v, { causal: true });
 */
export function split(x: Tensor, axis: number, sizes: readonly number[]): Tensor[] {
  handleOf(x, "split: x");
  if (!Array.isArray(sizes)) throw wrongKind("split: sizes", "an array of sizes", sizes);
  const given = [...(sizes as readonly number[])];
  if (given.length === 0) throw failure("ERR_OPTION", "split: sizes is empty, expected one at least");
  const size = Number.isInteger(axis) ? x.shape[axis] : undefined;
  if (size === undefined) {
    throw failure("ERR_SHAPE", `split: axis is ${shown(axis)}, expected 0 to ${x.shape.length - 1}`);
  }
  if (
    !given.every((part) => Number.isInteger(part) && part >= 0) ||
    given.reduce((sum, part) => sum + part, 0) !== size
  ) {
    throw failure("ERR_SHAPE", `split: sizes are ${shown(given)}, expected ${size} together (axis ${axis})`);
  }
  // The parts are this operation's own: noted as slices, each would have a gradient of x's size.
  using untracked = alias(x);
  let begin = 0;
  const parts = given.map((part) => {
    begin += part;
    return untracked.slice(axis, begin - part, begin);
  });
  record("split", parts as [Tensor, ...Tensor[]], [x], () => (gradients) => [
    // As attention's backward pass makes them.
    joined(gradients, axis) ?? concatenate(gradients, axis),
  ]);
  return parts;
}
