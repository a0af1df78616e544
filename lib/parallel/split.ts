// How a sequence is cut for its ranks.
import { type ErrorCode, failure, wrongKind } from "../errors.ts";
import type { Piece } from "../ops/attention-options.ts";
import { joined, rowsIn } from "../pieces.ts";

export interface Split {
  layout: "contiguous" | "zigzag";
  length: number;
  ranks: number;
  /** Neighbouring ranks that share a layout's place. */
  portions: number;
}

/** So many ranks times so many rows are still exact in a double. */
const most = { length: 2 ** 31 - 1, ranks: 2 ** 20 };

export function checkedSplit(
  what: string,
  layout: Split["layout"],
  length: number,
  ranks: number,
  rank: number,
  portions = 1,
): Split {
  integer("ERR_SHAPE", `${what}: length`, length, 0, most.length);
  integer("ERR_OPTION", `${what}: ranks`, ranks, 1, most.ranks);
  integer("ERR_OPTION", `${what}: rank`, rank, 0, ranks - 1);
  integer("ERR_OPTION", `${what}: portions`, portions, 1, ranks);
  if (ranks % portions !== 0)
    throw failure(
      "ERR_OPTION",
      `${what}: portions is ${portions}, expected a divisor of ${ranks} (the ranks)`,
    );
  return { layout, length, ranks, portions };
}

function integer(code: ErrorCode, what: string, value: number, least: number, last: number): void {
  if (typeof value !== "number") throw wrongKind(what, "an integer", value);
  if (!Number.isInteger(value) || value < least || value > last) {
    throw failure(code, `${what} is ${value}, expected an integer of ${least} to ${last}`);
  }
}

export function piecesOf({ layout, length, ranks, portions }: Split, rank: number): Piece[] {
  const shared = placeOf(layout, length, ranks / portions, Math.floor(rank / portions));
  const rows = rowsIn(shared);
  const [begin, end] = [rank % portions, (rank % portions) + 1].map((portion) =>
    Math.floor((portion * rows) / portions),
  ) as [number, number];
  let row = 0;
  return shared.flatMap(({ start, length }) => {
    const [first, last] = [Math.max(begin - row, 0), Math.min(end - row, length)];
    row += length;
    return last > first ? [{ start: start + first, length: last - first }] : [];
  });
}

/** Stretch s of n is [floor(s length / n), floor((s + 1) length / n)). */
function placeOf(layout: Split["layout"], length: number, places: number, place: number): Piece[] {
  const count = layout === "zigzag" ? 2 * places : places;
  const held = layout === "zigzag" ? [place, count - 1 - place] : [place];
  const bound = (stretch: number) => Math.floor((stretch * length) / count);
  return joined(held.map((at) => ({ start: bound(at), length: bound(at + 1) - bound(at) })));
}
