// How a sequence is cut for its ranks.
import { type ErrorCode, failure, wrongKind } from "../errors.ts";
import type { Piece } from "../ops/attention-options.ts";

export interface Split {
  layout: "contiguous" | "zigzag";
  length: number;
  ranks: number;
}

/** So many ranks times so many rows are still exact in a double. */
const most = { length: 2 ** 31 - 1, ranks: 2 ** 20 };

export function checkedSplit(
  what: string,
  layout: Split["layout"],
  length: number,
  ranks: number,
  rank: number,
): Split {
  integer("ERR_SHAPE", `${what}: length`, length, 0, most.length);
  integer("ERR_OPTION", `${what}: ranks`, ranks, 1, most.ranks);
  integer("ERR_OPTION", `${what}: rank`, rank, 0, ranks - 1);
  return { layout, length, ranks };
}

function integer(code: ErrorCode, what: string, value: number, least: number, last: number): void {
  if (typeof value !== "number") throw wrongKind(what, "an integer", value);
  if (!Number.isInteger(value) || value < least || value > last) {
    throw failure(code, `${what} is ${value}, expected an integer of ${least} to ${last}`);
  }
}

/** Stretch s of n is [floor(s length / n), floor((s + 1) length / n)). */
export function piecesOf({ layout, length, ranks }: Split, rank: number): Piece[] {
  const count = layout === "zigzag" ? 2 * ranks : ranks;
  const held = layout === "zigzag" ? [rank, count - 1 - rank] : [rank];
  const pieces: Piece[] = [];
  for (const stretch of held) {
    const start = Math.floor((stretch * length) / count);
    const piece = { start, length: Math.floor(((stretch + 1) * length) / count) - start };
    const before = pieces.at(-1);
    if (before !== undefined && before.start + before.length === start) before.length += piece.length;
    else if (piece.length > 0) pieces.push(piece);
  }
  return pieces;
}
