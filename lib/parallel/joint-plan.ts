// Ranks that share memory, and a kernel that takes keys of several tensors: which of all ranks' keys one rank's queries
// see, in whole tiles.
import type { Piece } from "../ops/attention-options.ts";
import { type Meeting, meetingOf, type Rows } from "./ring-meeting.ts";
import { hullOf, keysSeen } from "./ring-plan.ts";
import type { ShardedAttentionOptions } from "./strategy.ts";

/** Parts of keys begin and end at multiples of it, as cuda/attention/attention.h has it. */
const tileRows = 128;
/** A rank's own keys are two of ten sources, and those of up to two pieces a rank are up to 20 parts. */
const mostRanks = 8;

export interface JointPlan {
  /** This rank's queries, and all keys that they see, ascending. */
  meeting: Meeting;
  /** Of those keys: source, first row of it, rows. The sources are `own`, `ownShared`, and behind these the owners. */
  parts: readonly number[];
  /** Other ranks whose keys are seen, and how many they have. */
  owners: readonly { peer: number; rows: number }[];
  /** Ranks that see this one's. */
  viewers: readonly number[];
  /** What these see of them, ascending and apart. */
  shared: readonly Rows[];
}

/** This rank's keys, of which no other rank sees any, or others do too. */
const own = 0;
const ownShared = 1;

/** Whether tiles of keys are of one rank each, and there are few enough; the same on all ranks. */
export function isJoint(pieces: readonly (readonly Piece[])[]): boolean {
  return (
    pieces.length <= mostRanks &&
    pieces.every((held) => held.length > 0 && held.every(({ length }) => length % tileRows === 0))
  );
}

/** `pieces` are those of each rank, for which `isJoint` holds. */
export function jointPlan(
  pieces: readonly (readonly Piece[])[],
  rank: number,
  options: ShardedAttentionOptions,
): JointPlan {
  const held = pieces.map(placed);
  const queries = pieces[rank] ?? [];
  const others = pieces.map((_, other) => other).filter((other) => other !== rank);
  const seen = (owner: number, by: number) =>
    (held[owner] ?? []).map((piece) => tilesSeen(pieces[by] ?? [], piece, options)).filter(isAny);
  const owners = others.filter((owner) => seen(owner, rank).length > 0);
  const shared = (held[rank] ?? [])
    .map((piece) => hullOf(others.map((by) => tilesSeen(pieces[by] ?? [], piece, options))))
    .filter(isAny);
  const parts = [
    ...(held[rank] ?? []).flatMap((piece) => cutBy(shared, piece)),
    ...owners.flatMap((owner, i) =>
      seen(owner, rank).map((rows) => ({
        ...rows,
        source: ownShared + 1 + i,
        at: positionIn(held[owner] ?? [], rows),
      })),
    ),
  ].toSorted((a, b) => a.at - b.at);
  const keys = parts.map(({ at, length }) => ({ start: at, length }));
  const runOf = (pieces: readonly Piece[]) => ({ pieces, start: 0, length: rowsIn(pieces) });
  return {
    meeting: meetingOf(runOf(queries), runOf(keys), options),
    parts: parts.flatMap(({ source, start, length }) => [source, start, length]),
    owners: owners.map((peer) => ({ peer, rows: rowsIn(pieces[peer] ?? []) })),
    viewers: others.filter((by) => seen(rank, by).length > 0),
    shared,
  };
}

/** A piece of a shard: rows, and where the first one stands. */
interface Placed extends Rows {
  at: number;
}

function placed(pieces: readonly Piece[]): Placed[] {
  return pieces.map(({ start, length }, i) => ({ at: start, start: rowsIn(pieces.slice(0, i)), length }));
}

function rowsIn(pieces: readonly Piece[]): number {
  return pieces.reduce((rows, { length }) => rows + length, 0);
}

const isAny = ({ length }: Rows) => length > 0;

/** The shard's rows of the piece that the queries see, and those that share tiles with them. */
function tilesSeen(queries: readonly Piece[], piece: Placed, options: ShardedAttentionOptions): Rows {
  const { start, length } = keysSeen(queries, [{ start: piece.at, length: piece.length }], options);
  if (length === 0) return { start: piece.start, length: 0 };
  const first = Math.floor(start / tileRows) * tileRows;
  const end = Math.ceil((start + length) / tileRows) * tileRows;
  return { start: piece.start + first, length: end - first };
}

function positionIn(held: readonly Placed[], { start }: Rows): number {
  const piece = held.findLast((piece) => piece.start <= start) as Placed;
  return piece.at + start - piece.start;
}

/** All of a piece of this rank's keys, cut where others begin and end to see it. */
function cutBy(shared: readonly Rows[], piece: Placed): (Placed & { source: number })[] {
  const end = piece.start + piece.length;
  const inside = shared.filter(({ start }) => start >= piece.start && start < end);
  const bounds = [piece.start, ...inside.flatMap(({ start, length }) => [start, start + length]), end];
  return bounds
    .slice(1)
    .map((bound, i) => {
      const start = bounds[i] ?? 0;
      return {
        start,
        length: bound - start,
        at: piece.at + start - piece.start,
        source: i % 2 ? ownShared : own,
      };
    })
    .filter(isAny);
}
