// Who needs whose keys: what travels how far around the ring.
import type { AttentionMask } from "../mask.ts";
import type { Piece } from "../ops/attention-options.ts";
import type { ShardedAttentionOptions } from "./strategy.ts";
import { sees } from "./visibility.ts";

/** What a rank has at a step, and what becomes of it. */
export interface RingStep {
  /** How far the keys that are here have come. */
  distance: number;
  /** Of whom they are. */
  owner: number;
  /** Those of the owner's pieces that have come so far. */
  held: readonly Piece[];
  /** Of `held`, what the next rank or one after it needs. */
  onward: readonly Piece[];
  /** Of `held`, what nobody further on needs: its gradient goes back to the owner. */
  returning: readonly Piece[];
  /** What comes from the rank before: `onward` of its step. */
  incoming: readonly Piece[];
  /** Of this rank's own pieces, those whose gradient comes back from the rank that is `distance` ahead. */
  returned: readonly Piece[];
  /** Whether this rank's queries see any of it; its own keys count as seen. */
  isSeen: boolean;
}

export interface RingPlan {
  rank: number;
  size: number;
  /** This rank's. */
  queries: readonly Piece[];
  steps: readonly RingStep[];
}

/** `pieces` are those of each rank. The same on every rank, but for whose steps they are. */
export function ringPlan(
  pieces: readonly (readonly Piece[])[],
  rank: number,
  options: ShardedAttentionOptions,
): RingPlan {
  const size = pieces.length;
  const at = (index: number) => pieces[((index % size) + size) % size] ?? [];
  /** How far each piece is needed. */
  const reaches = pieces.map((own, owner) =>
    own.map((piece) => {
      let distance = size - 1;
      while (distance > 0 && !isNeeded(at(owner + distance), piece, options)) distance--;
      return distance;
    }),
  );
  const reaching = (owner: number, test: (reach: number) => boolean) => {
    const index = ((owner % size) + size) % size;
    return at(index).filter((_, i) => test(reaches[index]?.[i] ?? 0));
  };
  const last = Math.max(0, ...reaches.flat());
  const steps = Array.from({ length: last + 1 }, (_, distance): RingStep => {
    const owner = (rank - distance + size) % size;
    const held = reaching(owner, (reach) => reach >= distance);
    return {
      distance,
      owner,
      held,
      onward: reaching(owner, (reach) => reach > distance),
      returning: reaching(owner, (reach) => reach === distance),
      incoming: reaching(rank - 1 - distance, (reach) => reach > distance),
      returned: reaching(rank, (reach) => reach === distance),
      isSeen: distance === 0 || held.some((piece) => isNeeded(at(rank), piece, options)),
    };
  });
  return { rank, size, queries: at(rank), steps };
}

/** Whether any of the queries sees any key of the piece. */
export function isNeeded(queries: readonly Piece[], piece: Piece, options: ShardedAttentionOptions): boolean {
  const { causal, window, cuSeqlens, mask } = options;
  if (queries.length === 0) return false;
  const rule = {
    ...(causal !== undefined && { causal }),
    ...(window && { window }),
    ...(cuSeqlens && { cuSeqlens }),
  };
  if (!sees(queries, [piece], rule)) return false;
  return mask === undefined || partOfMask(mask, queries, [piece]).visible > 0;
}

const parts = new WeakMap<AttentionMask, Map<string, AttentionMask>>();

/** A mask's rows and columns; made once, since all layers and both passes ask for the same. */
function partOfMask(mask: AttentionMask, queries: readonly Piece[], keys: readonly Piece[]): AttentionMask {
  const known = parts.get(mask) ?? new Map<string, AttentionMask>();
  parts.set(mask, known);
  const key = [queries, keys].map((side) => side.map(({ start, length }) => `${start}+${length}`)).join(";");
  const part = known.get(key) ?? mask.select(queries, keys);
  known.set(key, part);
  return part;
}

/** Where the rows of queries and keys stand, and what of the mask is theirs. */
export function placesOf(queries: readonly Piece[], keys: readonly Piece[], mask: AttentionMask | undefined) {
  return {
    queryPositions: queries,
    keyPositions: keys,
    ...(mask && { mask: partOfMask(mask, queries, keys) }),
  };
}
