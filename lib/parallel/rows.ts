// The rows of shards, in tensors of the whole sequence and in the ranks' own.
import { failure, shown, wrongKind } from "../errors.ts";
import { native } from "../native.ts";
import type { Piece } from "../ops/attention-options.ts";
import { handleOf, type Tensor } from "../tensor.ts";
import { alias } from "../view.ts";

export function checkRows(what: string, x: Tensor, axis: number, rows: number, ofWhat: string): void {
  handleOf(x, what);
  const size = Number.isInteger(axis) ? x.shape[axis] : undefined;
  if (size === undefined) {
    throw failure("ERR_SHAPE", `${what} has no axis ${shown(axis)}, expected 0 to ${x.shape.length - 1}`);
  }
  if (size !== rows) {
    throw failure("ERR_SHAPE", `${what} has ${size} rows in axis ${axis}, expected ${rows} (${ofWhat})`);
  }
}

/** That the parts are alike but for their rows, of which each must have as many as `sizes` says. */
export function checkParts(
  what: string,
  parts: readonly Tensor[],
  sizes: readonly number[],
  axis: number,
): void {
  if (!Array.isArray(parts)) throw wrongKind(what, "an array of Tensors", parts);
  if (parts.length !== sizes.length) {
    throw failure("ERR_SHAPE", `${what} has ${parts.length} tensors, expected ${sizes.length} (one a shard)`);
  }
  const [first] = parts as readonly Tensor[];
  for (const [at, part] of (parts as readonly Tensor[]).entries()) {
    const name = `${what}[${at}]`;
    checkRows(name, part, axis, sizes[at] ?? 0, "those of its shard");
    const expected = first?.shape.with(axis, sizes[at] ?? 0) ?? [];
    if (part.shape.join() !== expected.join()) {
      throw failure("ERR_SHAPE", `${name} is [${part.shape}], expected [${expected}] (as the first part)`);
    }
    if (part.dtype !== first?.dtype) {
      throw failure(
        "ERR_DTYPE",
        `${name} is ${part.dtype}, expected ${first?.dtype} (that of the first part)`,
      );
    }
    if (part.device !== first?.device) {
      throw failure("ERR_DEVICE", `${name} is on another device than the first part`);
    }
  }
}

/** Copies the rows that the pieces name between the whole sequence and the rank that holds them. On no tape. */
export function copyRows(
  way: "fromWhole" | "toWhole",
  whole: Tensor,
  held: Tensor,
  pieces: readonly Piece[],
  axis: number,
): void {
  using all = alias(whole);
  using own = alias(held);
  let row = 0;
  for (const { start, length } of pieces) {
    using there = all.slice(axis, start, start + length);
    using here = own.slice(axis, row, row + length);
    const [from, to] = way === "fromWhole" ? [there, here] : [here, there];
    native.copy(handleOf(from, "copy"), handleOf(to, "copy"));
    row += length;
  }
}
