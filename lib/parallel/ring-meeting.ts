// Queries of one rank and keys of one, and what the ones see of the others.
import { type AttentionMask, memoryOfMask } from "../mask.ts";
import { type AttentionOptions, type NativeRule, nativeRule, type Piece } from "../ops/attention-options.ts";
import { joined } from "../pieces.ts";
import type { ShardedAttentionOptions } from "./strategy.ts";
import { type VisibilityOptions, visiblePairs } from "./visibility.ts";

/** Neighbouring rows of a shard. */
export interface Rows {
  /** The first, among the shard's. */
  start: number;
  length: number;
}
/** With the rows around, of so many, that share tiles with the first and the last; none where there are none. */
export function wholeTiles({ start, length }: Rows, tileRows: number, rows: number): Rows {
  if (length === 0) return { start: 0, length: 0 };
  const first = Math.floor(start / tileRows) * tileRows;
  const end = Math.min(Math.ceil((start + length) / tileRows) * tileRows, rows);
  return { start: first, length: end - first };
}

export interface Run extends Rows {
  /** Where they stand. */
  pieces: readonly Piece[];
}

/** Which queries meet which keys. */
export interface Meeting {
  /** Of this rank's queries, those that see any of the keys. */
  queries: Run;
  /** Of the owner's keys, those that are seen. */
  keys: Run;
  /** Where these stand, for attention. */
  places: { queryPositions: readonly Piece[]; keyPositions: readonly Piece[] };
  /** Each of the queries sees all of the keys. */
  isWhole: boolean;
  /** By their places, without a mask, as the addon takes it. */
  rule: NativeRule;
}

export function meetingOf(queries: Run, keys: Run, options: ShardedAttentionOptions): Meeting {
  const places = placesOf(queries.pieces, keys.pieces, options);
  const [causal, left, right, boundaries, ...others] = nativeRule({ ...ruleOf(options), ...places });
  // A copy, since plans are kept, and an array may be written.
  const kept = boundaries && Float64Array.from(boundaries);
  const rule = [causal, left, right, kept, ...others] as const;
  return { queries, keys, places, isWhole: isWhole(queries, keys, options), rule };
}

export function ruleOf({ causal, window, cuSeqlens }: ShardedAttentionOptions): VisibilityOptions {
  return {
    ...(causal !== undefined && { causal }),
    ...(window && { window }),
    ...(cuSeqlens && { cuSeqlens }),
  };
}

/** A mask's rows and columns, which belong to it. */
export function partOfMask(
  mask: AttentionMask,
  queries: readonly Piece[],
  keys: readonly Piece[],
): AttentionMask {
  const { parts } = memoryOfMask(mask, "attention: mask");
  const key = [queries, keys].map((side) => side.map(({ start, length }) => `${start}+${length}`)).join(";");
  const part = parts.get(key) ?? mask.select(queries, keys);
  parts.set(key, part);
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
): Meeting["places"] {
  const first = cuSeqlens ? 0 : Math.min(...[...queries, ...keys].map(({ start }) => start));
  const from = (pieces: readonly Piece[]) =>
    joined(pieces.map(({ start, length }) => ({ start: start - first, length })));
  return { queryPositions: from(queries), keyPositions: from(keys) };
}

/** Attention's options for what a step sees of what. */
export function optionsAt(meeting: Meeting, options: ShardedAttentionOptions): AttentionOptions {
  const { causal, window, cuSeqlens, mask, ...others } = options;
  if (seesAll(meeting, options)) return others;
  return { ...options, ...meeting.places, ...(mask && { mask: maskOf(meeting, mask) }) };
}

/** The same of the rule alone, as the addon takes it. */
export function ruleAt(meeting: Meeting, options: ShardedAttentionOptions): NativeRule {
  const { mask } = options;
  if (seesAll(meeting, options)) return everything;
  return mask === undefined ? meeting.rule : nativeRule(optionsAt(meeting, options));
}

const everything = nativeRule({});

/** Slopes count distances, also where all is seen. */
function seesAll({ isWhole }: Meeting, { alibiSlopes }: ShardedAttentionOptions): boolean {
  return isWhole && alibiSlopes === undefined;
}

function maskOf({ queries, keys }: Meeting, mask: AttentionMask): AttentionMask {
  return partOfMask(mask, queries.pieces, keys.pieces);
}
