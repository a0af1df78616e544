// Rows in portions, one for each rank.
import { failure } from "../errors.ts";
import { handleOf, type Tensor } from "../tensor.ts";
import { referenceTo } from "../view.ts";

export function rowsOf(what: string, x: Tensor): number {
  handleOf(x, `${what}: x`);
  const [rows] = x.shape;
  if (rows === undefined) throw failure("ERR_SHAPE", `${what}: x has no axis, expected [n, ..]`);
  return rows;
}

export function wrongRows(what: string, rows: number, expected: number | undefined): Error {
  return failure("ERR_SHAPE", `${what}: x has ${rows} rows, expected ${expected} (its counts)`);
}

/** x in row-major order, on no tape; it belongs to the scope here. */
export function untracked(x: Tensor): Tensor {
  const same = referenceTo(x);
  if (same.isContiguous) return same;
  const copy = same.contiguous();
  same.dispose();
  return copy;
}

/** `x` itself where it is in row-major order, else a copy, and x is let go. */
export function inRowMajor(x: Tensor): Tensor {
  if (x.isContiguous) return x;
  const copy = x.contiguous();
  x.dispose();
  return copy;
}

export function sum(counts: readonly number[]): number {
  return counts.reduce((a, b) => a + b, 0);
}

/** Views of so many rows each, one behind the other. */
export function splitRows(x: Tensor, counts: readonly number[], axis = 0): Tensor[] {
  let begin = 0;
  return counts.map((count) => {
    const view = x.slice(axis, begin, begin + count);
    begin += count;
    return view;
  });
}

export function portions(elements: number, parts: number): number[] {
  const at = (part: number) => Math.floor((part * elements) / parts);
  return Array.from({ length: parts }, (_, part) => at(part + 1) - at(part));
}

/** What is queued holds its tensors' memory itself. */
export function release(...lists: readonly (readonly Tensor[])[]): void {
  for (const tensor of lists.flat()) tensor.dispose();
}
