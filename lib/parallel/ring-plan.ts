// Who needs whose keys, and which queries they meet: the steps of a ring.
import { memoryOfMask } from "../mask.ts";
import type { Piece } from "../ops/attention-options.ts";
import { rowsIn } from "../pieces.ts";
import { documentAt } from "./documents.ts";
import { type Meeting, meetingOf, partOfMask, type Rows, type Run, ruleOf } from "./ring-meeting.ts";
import type { ShardedAttentionOptions } from "./strategy.ts";
import { sees } from "./visibility.ts";

/** What a rank computes with the keys of the rank so far behind, all of its own at distance 0. */
export interface RingStep extends Meeting {
  distance: number;
  /** Of this rank's keys, those that the rank so far ahead sees. */
  sent: Run;
  /** Of the owner's keys, from the first to the last that other ranks see. */
  shared: Rows;
}

/**
 * `pieces` are those of each rank. Every rank has the same steps: those at which any rank sees anything. Keys go from
 * their owner to whoever sees them: handed on from neighbour to neighbour, what is seen far away would burden all between.
 */
export function ringPlan(
  pieces: readonly (readonly Piece[])[],
  rank: number,
  options: ShardedAttentionOptions,
): RingStep[] {
  const size = pieces.length;
  const place = (rank: number) => ((rank % size) + size) % size;
  const table = pieces.map((own, owner) =>
    pieces.map((by, other) => (owner === other ? runOf(own, own) : keysSeen(by, own, options))),
  );
  const seen = (owner: number, by: number) => table[place(owner)]?.[place(by)] as Run;
  const distances = pieces
    .map((_, distance) => distance)
    .filter(
      (distance) => distance === 0 || pieces.some((_, owner) => seen(owner, owner + distance).length > 0),
    );
  // From the farthest on: under zigzag the nearest has to do with all queries, and rounds their results.
  return [0, ...distances.slice(1).reverse()].map((distance) => {
    const owner = place(rank - distance);
    const keys = seen(owner, rank);
    const queries = distance === 0 ? keys : queriesSeeing(pieces[rank] ?? [], keys.pieces, options);
    return {
      distance,
      sent: seen(rank, rank + distance),
      shared: hullOf((table[owner] ?? []).filter((_, by) => by !== owner)),
      ...meetingOf(queries, keys, options),
    };
  });
}

/** From the first row of any to the last. */
function hullOf(all: readonly Rows[]): Rows {
  const filled = all.filter(({ length }) => length > 0);
  if (filled.length === 0) return { start: 0, length: 0 };
  const start = Math.min(...filled.map((rows) => rows.start));
  return { start, length: Math.max(...filled.map((rows) => rows.start + rows.length)) - start };
}

/** From the first row of the parts, which are of some of the pieces and ascending, to the last. */
function runOf(all: readonly Piece[], parts: readonly Piece[]): Run {
  const [first, last] = [parts[0], parts.at(-1)];
  if (first === undefined || last === undefined) return { pieces: [], start: 0, length: 0 };
  const end = last.start + last.length;
  const pieces = all.flatMap((piece) => overlap(piece, first.start, end));
  const before = all.flatMap((piece) => overlap(piece, 0, first.start));
  return { pieces, start: rowsIn(before), length: rowsIn(pieces) };
}

/** What of a piece lies in [begin, end), if anything does. */
export function overlap(piece: Piece, begin: number, end: number): Piece[] {
  const start = Math.max(piece.start, begin);
  const length = Math.min(piece.start + piece.length, end) - start;
  return length > 0 ? [{ start, length }] : [];
}

export function keysSeen(
  queries: readonly Piece[],
  keys: readonly Piece[],
  options: ShardedAttentionOptions,
): Run {
  const needed = keys.filter((piece) => isNeeded(queries, piece, options));
  const { before, after } = reachOf(options);
  return runOf(keys, within(needed, queries, before, after, options));
}

export function queriesSeeing(
  queries: readonly Piece[],
  keys: readonly Piece[],
  options: ShardedAttentionOptions,
): Run {
  const { before, after } = reachOf(options);
  return runOf(queries, within(queries, keys, after, before, options));
}

/** How far before and behind its own position a query sees keys at most. */
function reachOf({ causal = false, window = [-1, -1] }: ShardedAttentionOptions) {
  const [before, after] = window.map((side) => (side < 0 ? Number.POSITIVE_INFINITY : side)) as [
    number,
    number,
  ];
  return { before, after: causal ? 0 : after };
}

/** Of each piece, the rows from the first to the last that rows of others reach, within their documents. */
function within(
  pieces: readonly Piece[],
  others: readonly Piece[],
  before: number,
  after: number,
  { cuSeqlens }: ShardedAttentionOptions,
): Piece[] {
  const document = (position: number) => {
    if (cuSeqlens === undefined) return [0, Number.POSITIVE_INFINITY] as const;
    const index = documentAt(cuSeqlens, position);
    return [cuSeqlens[index] ?? 0, cuSeqlens[index + 1] ?? 0] as const;
  };
  const reached = others
    .filter(({ length }) => length > 0)
    .map(({ start, length }) => {
      const last = start + length - 1;
      return [
        Math.max(start - before, document(start)[0]),
        Math.min(last + after + 1, document(last)[1]),
      ] as const;
    });
  return pieces.flatMap((piece) => {
    const parts = reached.flatMap(([begin, end]) => overlap(piece, begin, end));
    const begin = Math.min(...parts.map(({ start }) => start));
    const end = Math.max(...parts.map(({ start, length }) => start + length));
    return overlap(piece, begin, end);
  });
}

/** What `make` gives, kept for as long as the rule stays the same: a plan takes longer than to queue what it says, and
 * all layers ask for the same. */
export function keptByRule<T>(
  make: (options: ShardedAttentionOptions) => T,
): (options: ShardedAttentionOptions) => T {
  let kept: { rule: string; mask: WeakRef<object> | undefined; made: T } | undefined;
  return (options) => {
    const { causal = false, window = [], cuSeqlens = [] } = options;
    // Aliases are one mask, and one that was collected is not none.
    const mask = options.mask && memoryOfMask(options.mask, "attention: mask");
    const rule = `${causal};${window};${cuSeqlens};${mask !== undefined}`;
    if (kept?.rule !== rule || kept.mask?.deref() !== mask)
      kept = { rule, mask: mask && new WeakRef(mask), made: make(options) };
    return kept.made;
  };
}

/** Whether any of the queries sees any key of the piece. */
export function isNeeded(queries: readonly Piece[], piece: Piece, options: ShardedAttentionOptions): boolean {
  const { mask } = options;
  if (queries.length === 0) return false;
  if (!sees(queries, [piece], ruleOf(options))) return false;
  return mask === undefined || partOfMask(mask, queries, [piece]).visible > 0;
}
