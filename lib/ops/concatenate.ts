import { failure, shown, wrongKind } from "../errors.ts";
import { native } from "../native.ts";
import { record } from "../tape.ts";
import { handleOf, Tensor } from "../tensor.ts";
import { queued } from "./queued.ts";

/**
 * Tensors one behind the other along an axis. Differentiable on a `Tape`: each part's gradient is its part of the
 * result's, a view of that.
 *
 * @param parts at least one; of one dtype and device, and one shape but for `axis`, where a part may be empty. Any
 * strides.
 * @returns a new tensor of their dtype, contiguous: also where there is one part only.
 * @throws `ERR_SHAPE`, also where there is no such axis; `ERR_DTYPE`, `ERR_DEVICE` (tensors of two devices),
 * `ERR_OPTION`, `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`.
 *
 * @example
 * const [left, right] = [Tensor.from([1, 2, 3, 4], [2, 2]), Tensor.from([5, 6], [2, 1])];
 * await concatenate([left, right], 1).data(); // [1, 2, 5, 3, 4, 6]
 */
export function concatenate(parts: readonly Tensor[], axis: number): Tensor {
  if (!Array.isArray(parts)) throw wrongKind("concatenate: parts", "an array of Tensors", parts);
  const given: readonly Tensor[] = [...parts];
  const handles = given.map((part, at) => handleOf(part, `concatenate: part ${at}`));
  const [first] = given;
  if (first === undefined)
    throw failure("ERR_OPTION", "concatenate: parts has no tensor, expected one at least");
  for (const [at, part] of given.entries()) checkPart(part, at, first, axis);
  const ends = given.map(() => 0);
  let size = 0;
  for (const [at, part] of given.entries()) {
    size += part.shape[axis] ?? 0;
    ends[at] = size;
  }
  const partOf = (whole: Tensor, at: number) => whole.slice(axis, ends[at - 1] ?? 0, ends[at] ?? 0);
  const y = Tensor.empty(first.shape.with(axis, size), { dtype: first.dtype, device: first.device });
  queued([y], () => {
    for (const [at, handle] of handles.entries()) {
      using place = partOf(y, at);
      native.copy(handle, handleOf(place, "y"));
    }
  });
  return record(
    "concatenate",
    [y],
    given,
    () =>
      ([dy]) =>
        given.map((_, at) => partOf(dy, at)),
  );
}

function checkPart({ shape, dtype, device }: Tensor, at: number, first: Tensor, axis: number): void {
  const what = `concatenate: part ${at}`;
  if (!Number.isInteger(axis) || first.shape[axis] === undefined) {
    const axes = first.shape.length;
    const expected = axes === 0 ? "tensors that have axes" : `0 to ${axes - 1}`;
    throw failure("ERR_SHAPE", `concatenate: axis is ${shown(axis)}, expected ${expected}`);
  }
  if (device !== first.device) throw failure("ERR_DEVICE", `${what} is on another device than part 0`);
  if (dtype !== first.dtype)
    throw failure("ERR_DTYPE", `${what} is ${dtype}, expected ${first.dtype} (that of part 0)`);
  if (
    shape.length !== first.shape.length ||
    !shape.every((size, i) => i === axis || size === first.shape[i])
  ) {
    throw failure(
      "ERR_SHAPE",
      `${what} has the shape [${shape.join(", ")}], expected that of part 0, [${first.shape.join(", ")}], but for axis ${axis}`,
    );
  }
}
