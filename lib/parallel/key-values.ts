// Keys and values on their way.
import { native } from "../native.ts";
import { type AttentionResult, mergeAttention } from "../ops/attention.ts";
import type { Piece } from "../ops/attention-options.ts";
import { handleOf, Tensor } from "../tensor.ts";
import { copyRows } from "./rows.ts";

/** Keys and values in one tensor, [2, B, n, H, D], so that a piece is one parcel. */
export function packed(k: Tensor, v: Tensor): Tensor {
  const both = Tensor.empty([2, ...k.shape], { dtype: k.dtype, device: k.device });
  for (const [i, part] of [k, v].entries()) {
    using place = both.select(0, i);
    copyInto(place, part);
  }
  return both;
}

export function copyInto(place: Tensor, values: Tensor): void {
  native.copy(handleOf(values, "values"), handleOf(place, "place"));
}

export const rowsIn = (pieces: readonly Piece[]) => pieces.reduce((rows, { length }) => rows + length, 0);

/** Where some of the pieces lie among the rows of all of them. */
export function spansOf(some: readonly Piece[], all: readonly Piece[]): Piece[] {
  const spans = new Map<Piece, Piece>();
  let start = 0;
  for (const piece of all) {
    spans.set(piece, { start, length: piece.length });
    start += piece.length;
  }
  return some.map((piece) => spans.get(piece) as Piece);
}

/** The rows of some of the pieces, in one tensor: `x` itself where it has no others. */
export function rowsOfPieces(x: Tensor, some: readonly Piece[], all: readonly Piece[]): Tensor {
  if (some.length === all.length) return x;
  const taken = Tensor.empty(x.shape.with(2, rowsIn(some)), { dtype: x.dtype, device: x.device });
  copyRows("fromWhole", x, taken, spansOf(some, all), 2);
  return taken;
}

/** In place. */
export function addInto(sum: Tensor, term: Tensor): void {
  const into = handleOf(sum, "sum");
  native.add(into, handleOf(term, "term"), into);
}

/** Both are let go. */
export function merged(a: AttentionResult, b: AttentionResult): AttentionResult {
  const both = mergeAttention([a, b]);
  for (const { out, logSumExp } of [a, b]) for (const tensor of [out, logSumExp]) tensor.dispose();
  return both;
}
