// Runs of neighbouring positions, as shards have them: what a caller may give.
import { failure, wrongKind } from "./errors.ts";
import type { Piece } from "./ops/attention-options.ts";

/** As the addon takes them: start and length, one after the other. */
export function flatPieces(what: string, given: readonly Piece[]): readonly number[] {
  if (!Array.isArray(given)) throw wrongKind(what, "an array of { start, length }", given);
  const flat = (given as readonly Partial<Piece>[]).flatMap((piece) => [piece?.start, piece?.length]);
  if (!flat.every(Number.isSafeInteger)) {
    throw failure("ERR_OPTION", `${what} holds a piece that is not { start, length } in integers`);
  }
  return flat as readonly number[];
}

/** Ascending ones: those that touch or overlap as one, and none that is empty. */
export function joined(ascending: readonly Piece[]): Piece[] {
  const made: Piece[] = [];
  for (const { start, length } of ascending) {
    const before = made.at(-1);
    if (length === 0) continue;
    if (before && before.start + before.length >= start)
      before.length = Math.max(before.length, start + length - before.start);
    else made.push({ start, length });
  }
  return made;
}

export function rowsIn(pieces: readonly Piece[]): number {
  return pieces.reduce((rows, { length }) => rows + length, 0);
}

/** That they are ascending and disjoint; copies, so that they stay what was checked. */
export function checkedPieces(what: string, given: readonly Piece[]): Piece[] {
  const flat = flatPieces(what, given);
  let behind = 0;
  return given.map((_, at) => {
    const [start = 0, length = 0] = flat.slice(2 * at, 2 * at + 2);
    if (start < behind || length < 0 || start + length >= 2 ** 31) {
      throw failure("ERR_OPTION", `${what} must be ascending, disjoint and within 0 to 2^31 - 1`);
    }
    behind = start + length;
    return { start, length };
  });
}
