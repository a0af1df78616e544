import { native } from "../native.ts";
import { handleOf, type Tensor } from "../tensor.ts";
import { viewAs } from "../view.ts";

/**
 * The tensor that these are neighbouring parts of along an axis, in memory too: a view. Undefined where they are not, or
 * it would not be contiguous.
 */
export function joined(parts: readonly Tensor[], axis: number): Tensor | undefined {
  const [first] = parts;
  if (first === undefined) return undefined;
  const { strides, device } = first;
  const handle = handleOf(first, "the tensor");
  let size = 0;
  for (const part of parts) {
    const distance = size * (strides[axis] ?? 0);
    const isLike = part.shape.with(axis, 0).join() === first.shape.with(axis, 0).join();
    const isNext = isLike && part.device === device && part.strides.join() === strides.join();
    if (!isNext || !native.tensorIsBehind(handle, handleOf(part, "the tensor"), distance)) return undefined;
    size += part.shape[axis] ?? 0;
  }
  const whole = viewAs(first, first.shape.with(axis, size));
  return whole.isContiguous ? whole : undefined;
}
