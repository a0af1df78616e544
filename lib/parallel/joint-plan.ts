// Ranks that share memory, and kernels that take rows of several tensors: which of all ranks' keys one rank's queries
// see, and which queries see its keys, in whole tiles.
import type { Piece } from "../ops/attention-options.ts";
import { rowsIn } from "../pieces.ts";
import { type Meeting, meetingOf, type Rows, wholeTiles } from "./ring-meeting.ts";
import { isNeeded, keysSeen, queriesSeeing } from "./ring-plan.ts";
import type { ShardedAttentionOptions } from "./strategy.ts";

/** As cuda/attention/attention.h has them: parts begin and end at multiples of so many rows, */
const tileRows = 128;
/** and there are so many of so many tensors. */
const mostParts = 16;
const mostSources = 8;

/** Rows of this rank that meet those of several, its own among them: a call of attention. */
export interface JointMeeting {
  meeting: Meeting;
  /** Of the several ranks' rows, ascending by position: source, first row of it, rows. */
  parts: readonly number[];
  /** Whose the sources are; this rank is the first. */
  peers: readonly number[];
}

export interface JointPlan {
  /** Any rank sees what another has; the same on all of them. */
  isShared: boolean;
  /** This rank's queries, and all keys that they see. */
  forward: JointMeeting;
  /** Its keys, and all queries that see them. */
  backward: JointMeeting;
}

/** Whether tiles are of one rank each, of which all have the same, and parts are few enough; so it is on all ranks. */
export function isJoint(pieces: readonly (readonly Piece[])[]): boolean {
  return (
    pieces.length <= mostSources &&
    pieces.flat().length <= mostParts &&
    pieces.every((held) => rowsIn(held) > 0 && rowsIn(held) === rowsIn(pieces[0] ?? [])) &&
    pieces.flat().every(({ length }) => length % tileRows === 0)
  );
}

/** `pieces` are those of each rank, for which `isJoint` holds. */
export function jointPlan(
  pieces: readonly (readonly Piece[])[],
  rank: number,
  options: ShardedAttentionOptions,
): JointPlan {
  const own = pieces[rank] ?? [];
  const ownFirst = [rank, ...pieces.map((_, other) => other).filter((other) => other !== rank)];
  const joint = (find: (piece: Piece) => Rows, meet: (others: readonly Piece[]) => Meeting): JointMeeting => {
    const met = ownFirst
      .map((peer) => ({
        peer,
        found: placed(pieces[peer] ?? [])
          .map((piece) => tilesOf(piece, find))
          .filter(isAny),
      }))
      .filter(({ peer, found }) => peer === rank || found.length > 0);
    const parts = met
      .flatMap(({ found }, source) => found.map((part) => ({ source, ...part })))
      .toSorted((a, b) => a.at - b.at);
    return {
      meeting: meet(parts.map(({ at, length }) => ({ start: at, length }))),
      parts: parts.flatMap(({ source, start, length }) => [source, start, length]),
      peers: met.map(({ peer }) => peer),
    };
  };
  const isSeen = (queries: readonly Piece[], keys: readonly Piece[]) =>
    keys.some((piece) => isNeeded(queries, piece, options));
  return {
    isShared: pieces.some((queries, by) =>
      pieces.some((keys, owner) => owner !== by && isSeen(queries, keys)),
    ),
    forward: joint(
      (piece) => keysSeen(own, [piece], options),
      (keys) => meetingOf(runOf(own), runOf(keys), options),
    ),
    backward: joint(
      (piece) => queriesSeeing([piece], own, options),
      (queries) => meetingOf(runOf(queries), runOf(own), options),
    ),
  };
}

const runOf = (pieces: readonly Piece[]) => ({ pieces, start: 0, length: rowsIn(pieces) });

/** A shard's rows, and where the first one stands. */
interface Placed extends Rows {
  at: number;
}

function placed(pieces: readonly Piece[]): Placed[] {
  return pieces.map(({ start, length }, i) => ({ at: start, start: rowsIn(pieces.slice(0, i)), length }));
}

const isAny = ({ length }: Rows) => length > 0;

/** What is found of a piece, and the rows that share tiles with it. */
function tilesOf(piece: Placed, find: (piece: Piece) => Rows): Placed {
  const { start, length } = wholeTiles(
    find({ start: piece.at, length: piece.length }),
    tileRows,
    piece.length,
  );
  return { at: piece.at + start, start: piece.start + start, length };
}
