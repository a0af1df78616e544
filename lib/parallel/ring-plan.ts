// Who needs whose keys: what travels how far around the ring.
import type { AttentionMask } from "../mask.ts";
import type { AttentionOptions, Piece } from "../ops/attention-options.ts";
import type { ShardedAttentionOptions } from "./strategy.ts";
import { sees, type VisibilityOptions, visiblePairs } from "./visibility.ts";

/** Neighbouring ones of a shard's pieces, and where their rows are among all rows of the shard, or of what came of it. */
export interface Run {
  pieces: readonly Piece[];
  /** The first row. */
  start: number;
  /** Rows. */
  length: number;
}

/** What a rank has at a step, and what becomes of it. */
export interface RingStep {
  /** How far the keys that are here have come: `held` are those of the owner's pieces that are needed so far away. */
  distance: number;
  /** Of `held`, what the next rank or one after it needs. */
  onward: Run;
  /** Of `held`, the pieces that nobody further on needs: their gradients go back to the owner. */
  returning: readonly Run[];
  /** Rows that come from the rank before: `onward` of its step. */
  incoming: number;
  /** Of this rank's own pieces, those whose gradients come back from the rank that is `distance` ahead. */
  returned: readonly Run[];
  /** What of this rank's queries sees any of the keys, and what of `held` is seen; at distance 0 that is all of it. */
  queries: Run;
  keys: Run;
  /** Where these stand. */
  places: { queryPositions: readonly Piece[]; keyPositions: readonly Piece[] };
  /** Each of the queries sees all of the keys. */
  isWhole: boolean;
}

export interface RingPlan {
  rank: number;
  size: number;
  steps: readonly RingStep[];
}

/** `pieces` are those of each rank. The same on every rank, but for whose steps they are. */
export function ringPlan(
  pieces: readonly (readonly Piece[])[],
  rank: number,
  options: ShardedAttentionOptions,
): RingPlan {
  const size = pieces.length;
  const indexOf = (place: number) => ((place % size) + size) % size;
  const at = (place: number) => pieces[indexOf(place)] ?? [];
  /** How far each piece is needed, or goes with one before it and one behind it: what goes on is one run. */
  const reaches = pieces.map((own, owner) => {
    const needed = own.map((piece) => {
      let distance = size - 1;
      while (distance > 0 && !isNeeded(at(owner + distance), piece, options)) distance--;
      return distance;
    });
    return needed.map((_, i) => Math.min(Math.max(...needed.slice(0, i + 1)), Math.max(...needed.slice(i))));
  });
  const reachOf = (owner: number) => {
    const of = new Map(at(owner).map((piece, i) => [piece, reaches[indexOf(owner)]?.[i] ?? 0]));
    return (piece: Piece) => of.get(piece) ?? 0;
  };
  const last = Math.max(0, ...reaches.flat());
  const steps = Array.from({ length: last + 1 }, (_, distance): RingStep => {
    const owner = rank - distance;
    const [reach, ownReach, reachBefore] = [reachOf(owner), reachOf(rank), reachOf(owner - 1)];
    const held = at(owner).filter((piece) => reach(piece) >= distance);
    const isOwn = distance === 0;
    const keys = runOf(held, (piece) => isOwn || isNeeded(at(rank), piece, options));
    const queries = runOf(at(rank), (piece) => isOwn || sees([piece], keys.pieces, ruleOf(options)));
    return {
      distance,
      onward: runOf(held, (piece) => reach(piece) > distance),
      returning: singlesOf(held, (piece) => reach(piece) === distance),
      incoming: rowsIn(at(owner - 1).filter((piece) => reachBefore(piece) > distance)),
      returned: singlesOf(at(rank), (piece) => ownReach(piece) === distance),
      queries,
      keys,
      places: placesOf(queries.pieces, keys.pieces, options),
      isWhole: isWhole(queries, keys, options),
    };
  });
  return { rank, size, steps };
}

/** From the first that passes the test to the last. */
function runOf(all: readonly Piece[], test: (piece: Piece) => boolean): Run {
  const begin = all.findIndex(test);
  const end = all.findLastIndex(test) + 1;
  const pieces = begin < 0 ? [] : all.slice(begin, end);
  return { pieces, start: rowsIn(all.slice(0, Math.max(0, begin))), length: rowsIn(pieces) };
}

/** Each that passes the test and has rows. */
function singlesOf(all: readonly Piece[], test: (piece: Piece) => boolean): Run[] {
  return all
    .filter((piece) => piece.length > 0 && test(piece))
    .map((one) => runOf(all, (piece) => piece === one));
}

const rowsIn = (pieces: readonly Piece[]) => pieces.reduce((rows, { length }) => rows + length, 0);

/** What `make` gives, kept for as long as the rule stays the same: a plan takes longer than to queue what it says, and
 * all layers ask for the same. */
export function keptByRule<T>(
  make: (options: ShardedAttentionOptions) => T,
): (options: ShardedAttentionOptions) => T {
  let kept: { rule: string; mask: WeakRef<AttentionMask> | undefined; made: T } | undefined;
  return (options) => {
    const { causal = false, window = [], cuSeqlens = [], mask } = options;
    const rule = `${causal};${window};${cuSeqlens}`;
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

function ruleOf({ causal, window, cuSeqlens }: ShardedAttentionOptions): VisibilityOptions {
  return {
    ...(causal !== undefined && { causal }),
    ...(window && { window }),
    ...(cuSeqlens && { cuSeqlens }),
  };
}

const parts = new WeakMap<AttentionMask, Map<string, AttentionMask>>();

/** A mask's rows and columns; made once, since all layers and both passes ask for the same. */
export function partOfMask(
  mask: AttentionMask,
  queries: readonly Piece[],
  keys: readonly Piece[],
): AttentionMask {
  const known = parts.get(mask) ?? new Map<string, AttentionMask>();
  parts.set(mask, known);
  const key = [queries, keys].map((side) => side.map(({ start, length }) => `${start}+${length}`)).join(";");
  const part = known.get(key) ?? mask.select(queries, keys);
  known.set(key, part);
  return part;
}

function isWhole(queries: Run, keys: Run, options: ShardedAttentionOptions): boolean {
  const [{ pieces: queryPieces }, { pieces: keyPieces }] = [queries, keys];
  const pairs = queries.length * keys.length;
  if (visiblePairs(queryPieces, keyPieces, ruleOf(options)) !== pairs) return false;
  return options.mask === undefined || partOfMask(options.mask, queryPieces, keyPieces).visible === pairs;
}

/**
 * Neighbouring pieces as one, and counted from the first row where no boundaries of documents count: for one piece of
 * queries and one of keys from 0 on, a GPU needs no list of what each row sees.
 */
function placesOf(
  queries: readonly Piece[],
  keys: readonly Piece[],
  { cuSeqlens }: ShardedAttentionOptions,
): RingStep["places"] {
  const first = cuSeqlens ? 0 : Math.min(...[...queries, ...keys].map(({ start }) => start));
  const joined = (pieces: readonly Piece[]) => {
    const all: Piece[] = [];
    for (const { start, length } of pieces) {
      const before = all.at(-1);
      if (before && before.start + before.length === start - first) before.length += length;
      else all.push({ start: start - first, length });
    }
    return all;
  };
  return { queryPositions: joined(queries), keyPositions: joined(keys) };
}

/** Attention's options for what a step sees of what. */
export function optionsAt(
  { queries, keys, places, isWhole }: Pick<RingStep, "queries" | "keys" | "places" | "isWhole">,
  options: ShardedAttentionOptions,
): AttentionOptions {
  const { causal, window, cuSeqlens, mask, ...others } = options;
  // Slopes count distances.
  if (isWhole && others.alibiSlopes === undefined) return others;
  return { ...options, ...places, ...(mask && { mask: partOfMask(mask, queries.pieces, keys.pieces) }) };
}
