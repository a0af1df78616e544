// Boundaries of documents that lie one behind the other: 0, then the end of each.
import { failure, wrongKind } from "../errors.ts";
import type { Piece } from "../ops/attention-options.ts";

export type Boundaries = Int32Array | readonly number[];

/** That they are boundaries, and the documents hold the positions up to before `length`. */
export function checkedBoundaries(what: string, given: Boundaries, length: number): Boundaries {
  if (!(given instanceof Int32Array)) {
    if (!Array.isArray(given)) throw wrongKind(what, "an Int32Array or an array of integers", given);
    if (!given.every(Number.isSafeInteger)) {
      throw failure("ERR_OPTION", `${what} holds a number that is no integer`);
    }
  }
  if (given.length < 2 || given[0] !== 0) {
    throw failure("ERR_OPTION", `${what} must start with 0 and have an entry behind each document`);
  }
  let last = 0;
  for (const end of given) {
    if (end < last) throw failure("ERR_OPTION", `${what} falls from ${last} to ${end}`);
    last = end;
  }
  if (last < length) {
    throw failure("ERR_OPTION", `${what} ends at ${last}, expected ${length} or more (the last position)`);
  }
  return given;
}

/** The number of the document that holds a position, which lies before the last boundary. */
export function documentAt(boundaries: Boundaries, position: number): number {
  let [low, high] = [0, boundaries.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if ((boundaries[middle] ?? 0) <= position) low = middle;
    else high = middle;
  }
  return low;
}

/** Neighbouring rows of one document: they stand at [start, end) of the document [documentStart, documentEnd). */
interface Stretch {
  /** The first one's row. */
  row: number;
  start: number;
  end: number;
  documentStart: number;
  documentEnd: number;
}

/** The rows of pieces, which lie before the last boundary, by document. */
export function* stretchesOf(pieces: readonly Piece[], boundaries: Boundaries): Generator<Stretch> {
  let row = 0;
  for (const piece of pieces) {
    const behind = piece.start + piece.length;
    let document = documentAt(boundaries, piece.start);
    for (let start = piece.start; start < behind; document++) {
      const [documentStart = 0, documentEnd = 0] = [boundaries[document], boundaries[document + 1]];
      const end = Math.min(documentEnd, behind);
      if (end > start) yield { row, start, end, documentStart, documentEnd };
      row += end - start;
      start = end;
    }
  }
}
