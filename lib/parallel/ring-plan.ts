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
