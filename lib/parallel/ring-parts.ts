// What a rank does with its own keys, in parts: rows that have to do with other ranks' are summed in float32, and are
// rounded when all have been; the others are in their dtype at once.
import type { Piece } from "../ops/attention-options.ts";
import { queryRows } from "../ops/query-gradient.ts";
import { joined } from "../pieces.ts";
import { type Meeting, meetingOf, type Rows, type Run, wholeTiles } from "./ring-meeting.ts";
import { keysSeen, overlap, queriesSeeing, type RingStep, ringPlan } from "./ring-plan.ts";
import type { ShardedAttentionOptions } from "./strategy.ts";

export interface RingParts {
  /** The first is this rank's own. */
  steps: readonly RingStep[];
  /** Of its queries, those that see other ranks' keys: ascending, apart, each step's among one of them. */
  merged: readonly MergedRows[];
  /** Its own keys by parts of the queries: each of the merged ones, and what lies around them. */
  byQueries: readonly Meeting[];
  /** By parts of the keys: those before, of and behind the shared ones. */
  byKeys: readonly Meeting[];
  /** Each step's queries as the sums of their gradients take them. */
  aligned: readonly Meeting[];
}

/** Rows whose results are summed over several steps. */
export interface MergedRows extends Rows {
  /** The step that rounds their sums: it takes all of them, and none behind it takes any. -1: there is none. */
  roundedBy: number;
}

/** `pieces` are those of each rank. */
export function ringParts(
  pieces: readonly (readonly Piece[])[],
  rank: number,
  options: ShardedAttentionOptions,
): RingParts {
  const own = pieces[rank] ?? [];
  const steps = ringPlan(pieces, rank, options);
  const [first, ...others] = steps as [RingStep, ...RingStep[]];
  const merged = joined(others.map(({ queries }) => queries).toSorted((a, b) => a.start - b.start)).map(
    (rows) => ({ ...rows, roundedBy: roundingStep(rows, steps) }),
  );
  const meet = (queries: Run, keys: Run) =>
    meetingOf(aligned(own, queries, first.queries.length), keys, options);
  const parts = (apart: readonly Rows[], meet: (rows: Run) => Meeting) => {
    const all = cuts(first.queries.length, apart);
    return all.length > 1 ? all.map((rows) => meet(runAt(own, rows))) : [first];
  };
  return {
    steps,
    merged,
    byQueries: parts(merged, (queries) =>
      meetingOf(queries, keysSeen(queries.pieces, own, options), options),
    ),
    byKeys: parts([first.shared], (keys) => meet(queriesSeeing(own, keys.pieces, options), keys)),
    aligned: steps.map(({ queries, keys }) => meet(queries, keys)),
  };
}

function roundingStep(rows: Rows, steps: readonly RingStep[]): number {
  const last = steps.findLastIndex(({ queries }) => isAmong(queries, rows));
  return steps[last]?.queries.length === rows.length ? last : -1;
}

/** Whether rows are among others; none are among none. */
export function isAmong({ start, length }: Rows, others: Rows): boolean {
  return start >= others.start && length > 0 && start + length <= others.start + others.length;
}

/** All rows, cut where some begin and where they end; ascending. */
function cuts(length: number, some: readonly Rows[]): Rows[] {
  const ends = some.flatMap((rows) => [rows.start, rows.start + rows.length]);
  const bounds = [...new Set([0, ...ends, length])];
  return bounds.slice(1).map((end, i) => ({ start: bounds[i] ?? 0, length: end - (bounds[i] ?? 0) }));
}

function runAt(all: readonly Piece[], { start, length }: Rows): Run {
  let before = 0;
  const pieces = all.flatMap((piece) => {
    const begin = piece.start + start - before;
    before += piece.length;
    return overlap(piece, begin, begin + length);
  });
  return { pieces, start, length };
}

/** With the rows around that share tiles with the first and the last. */
function aligned(all: readonly Piece[], some: Rows, rows: number): Run {
  return runAt(all, wholeTiles(some, queryRows, rows));
}
