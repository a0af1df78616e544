// Which rows of a table that ranks share go from whom to whom: known from all ranks' positions, on every one of them.
import { failure, wrongKind } from "../errors.ts";
import { newArray } from "../values.ts";
import { portionOf } from "./heads.ts";
import type { Range } from "./strategy.ts";

/** A rank's part of an exchange of rows. */
export interface PositionPlan {
  /** Of the rows that this rank holds, those that each rank asks for: ascending for a rank, the ranks in order. */
  given: Int32Array;
  givenCounts: readonly number[];
  /** Positions that this rank asks each of the others for, each once; they come in ascending order. */
  takenCounts: readonly number[];
  /** Which of what came each row of a sequence is. */
  places: Int32Array;
  /** It is row after row. */
  isInOrder: boolean;
  /** So it is on every rank: none asks for a position for two rows. */
  isInOrderEverywhere: boolean;
}

/** Of a table of so many positions, a portion for each rank; `positionsOf` is called once a rank. */
export function positionPlan(
  what: string,
  { rank, size }: { rank: number; size: number },
  count: number,
  positionsOf: (rank: number) => Int32Array,
): PositionPlan {
  const ranges = Array.from({ length: size }, (_, peer) => portionOf(count, size, peer));
  const given: Int32Array[] = [];
  let own: Int32Array = new Int32Array(0);
  let isInOrderEverywhere = true;
  for (let peer = 0; peer < size; peer++) {
    const positions = checkedPositions(what, peer, positionsOf(peer), count);
    given.push(distinct(positions, ranges[rank] as Range));
    isInOrderEverywhere &&= ascends(positions);
    // A copy: the caller may give one array again and again.
    if (peer === rank) own = positions.slice();
  }
  const taken = distinct(own, { begin: 0, end: count });
  return {
    given: joined(given),
    givenCounts: given.map(({ length }) => length),
    takenCounts: ranges.map(({ begin, end }) => before(taken, end) - before(taken, begin)),
    places: placesOf(own, taken, count),
    isInOrder: ascends(own),
    isInOrderEverywhere,
  };
}

function checkedPositions(what: string, peer: number, positions: Int32Array, count: number): Int32Array {
  if (!(positions instanceof Int32Array))
    throw wrongKind(`${what}: the positions of rank ${peer}`, "an Int32Array", positions);
  for (const position of positions) {
    if (position < 0 || position >= count)
      throw failure(
        "ERR_OPTION",
        `${what}: rank ${peer} has a row at position ${position}, expected 0 to ${count - 1}`,
      );
  }
  return positions;
}

function ascends(positions: Int32Array): boolean {
  for (let row = 1; row < positions.length; row++) {
    if ((positions[row] ?? 0) <= (positions[row - 1] ?? 0)) return false;
  }
  return true;
}

/** The positions in [begin, end), counted from begin: each once, ascending. */
function distinct(positions: Int32Array, { begin, end }: Range): Int32Array {
  const isAsked = newArray(Uint8Array, end - begin);
  let asked = 0;
  for (const position of positions) {
    if (position < begin || position >= end || isAsked[position - begin] === 1) continue;
    isAsked[position - begin] = 1;
    asked++;
  }
  const found = new Int32Array(asked);
  let next = 0;
  for (let row = 0; next < asked; row++) {
    if (isAsked[row] === 1) found[next++] = row;
  }
  return found;
}

/** How many of the ascending values are less than `limit`. */
function before(values: Int32Array, limit: number): number {
  let [low, high] = [0, values.length];
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((values[middle] ?? 0) < limit) low = middle + 1;
    else high = middle;
  }
  return low;
}

function placesOf(own: Int32Array, taken: Int32Array, count: number): Int32Array {
  const placeOf = newArray(Int32Array, count);
  for (const [place, position] of taken.entries()) placeOf[position] = place;
  return own.map((position) => placeOf[position] ?? 0);
}

function joined(parts: readonly Int32Array[]): Int32Array {
  const whole = new Int32Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
