// What the queries of one shard see of the keys of another, by position: without looking at single rows.
import { checkOptions, failure, shown, wrongKind } from "../errors.ts";
import { type AttentionOptions, isWindowSide, type Piece } from "../ops/attention-options.ts";
import { checkedPieces } from "../pieces.ts";
import { type Boundaries, checkedBoundaries, documentAt } from "./documents.ts";

/** Those of attention's options that tell by position alone what a query sees. */
export type VisibilityOptions = Pick<AttentionOptions, "causal" | "window" | "cuSeqlens">;

/**
 * Whether any query sees any key, as `attention` has it with these options and the pieces as its positions. For ring
 * steps: what is not seen need neither be sent nor computed. Exact, and cheap: O(log documents) for two pieces that do
 * not overlap.
 *
 * @param queries where the queries stand in the whole sequence, ascending and disjoint: a `SequenceShard`'s pieces.
 * @param keys the same of the keys.
 * @param options `cuSeqlens` are those of the whole sequence.
 * @throws `ERR_OPTION` for what these cannot be.
 * @example
 * const [front, back] = [[{ start: 0, length: 4 }], [{ start: 4, length: 4 }]];
 * sees(front, back, { causal: true }); // false
 *
 * @example
 * sees([{ start: 4, length: 4 }], [{ start: 0, length: 4 }], { causal: true, cuSeqlens: [0, 4, 8] }); // false
 */
export function sees(
  queries: readonly Piece[],
  keys: readonly Piece[],
  options: VisibilityOptions = {},
): boolean {
  const { distances, overlaps } = resolved("sees", queries, keys, options);
  for (const overlap of overlaps) if (pairsOf(overlap, distances) > 0) return true;
  return false;
}

/**
 * How many pairs of a query and a key are visible, as `sees` has it: attention's work. Closed forms, O(documents) for
 * two pieces. Exact where queries times keys are below 2^53.
 *
 * @param queries as for `sees`.
 * @param keys as for `sees`.
 * @param options as for `sees`.
 * @throws `ERR_OPTION` for what these cannot be.
 * @example
 * const whole = [{ start: 0, length: 4 }];
 * visiblePairs(whole, whole, { causal: true }); // 10
 */
export function visiblePairs(
  queries: readonly Piece[],
  keys: readonly Piece[],
  options: VisibilityOptions = {},
): number {
  const { distances, overlaps } = resolved("visiblePairs", queries, keys, options);
  let sum = 0;
  for (const overlap of overlaps) sum += pairsOf(overlap, distances);
  return sum;
}

/** Queries and keys of which each may see each, as far as documents tell. */
interface Overlap {
  queries: Piece;
  keys: Piece;
}

/** The key's position less the query's, where it is seen. */
interface Distances {
  least: number;
  most: number;
}

/** Further than any two positions are apart. */
const unbounded = 2 ** 32;

function resolved(
  what: string,
  queries: readonly Piece[],
  keys: readonly Piece[],
  options: VisibilityOptions,
): { distances: Distances; overlaps: Iterable<Overlap> } {
  checkOptions(what, options, { causal: true, window: true, cuSeqlens: true });
  const { causal = false, window = [-1, -1], cuSeqlens } = options;
  if (typeof causal !== "boolean") throw wrongKind(`${what}: causal`, "a boolean", causal);
  if (!Array.isArray(window)) throw wrongKind(`${what}: window`, "[left, right]", window);
  const [left, right] = window as unknown[];
  if (window.length !== 2 || !isWindowSide(left) || !isWindowSide(right)) {
    throw failure(
      "ERR_OPTION",
      `${what}: window is ${shown(window)}, expected two integers of 0 to 2^31 - 1, or -1 for unbounded`,
    );
  }
  const distances = {
    least: left < 0 ? -unbounded : -left,
    most: Math.min(causal ? 0 : unbounded, right < 0 ? unbounded : right),
  };
  const given = {
    queries: checkedPieces(`${what}: queries`, queries),
    keys: checkedPieces(`${what}: keys`, keys),
  };
  const last = Math.max(
    0,
    ...[given.queries.at(-1), given.keys.at(-1)].map((piece) => (piece ? endOf(piece) : 0)),
  );
  const boundaries =
    cuSeqlens === undefined ? [0, last] : checkedBoundaries(`${what}: cuSeqlens`, cuSeqlens, last);
  return { distances, overlaps: overlapsOf(given.queries, given.keys, boundaries) };
}

/** Of two pieces that do not overlap, at most one document has a part of both. */
function* overlapsOf(
  queries: readonly Piece[],
  keys: readonly Piece[],
  boundaries: Boundaries,
): Generator<Overlap> {
  for (const query of queries.filter(({ length }) => length > 0)) {
    for (const key of keys.filter(({ length }) => length > 0)) {
      const first = documentAt(boundaries, Math.max(query.start, key.start));
      const last = documentAt(boundaries, Math.min(endOf(query), endOf(key)) - 1);
      for (let document = first; document <= last; document++) {
        const [begin = 0, end = 0] = [boundaries[document], boundaries[document + 1]];
        yield { queries: within(query, begin, end), keys: within(key, begin, end) };
      }
    }
  }
}

function endOf({ start, length }: Piece): number {
  return start + length;
}

/** What of a piece lies in [begin, end). */
function within(piece: Piece, begin: number, end: number): Piece {
  const start = Math.max(piece.start, begin);
  return { start, length: Math.max(0, Math.min(endOf(piece), end) - start) };
}

function pairsOf(overlap: Overlap, { least, most }: Distances): number {
  return pairsUpTo(overlap, most) - pairsUpTo(overlap, least - 1);
}

/** Pairs whose key is at most so far behind the query: of key counts that grow by one from query to query, the sum. */
function pairsUpTo({ queries, keys }: Overlap, distance: number): number {
  const clamp = (row: number, least: number) => Math.min(Math.max(row, least), queries.length);
  const count = queries.start + distance + 1 - keys.start; // the first query's, were there keys everywhere
  const some = clamp(1 - count, 0);
  const all = clamp(keys.length - count, some);
  return ((2 * count + some + all - 1) * (all - some)) / 2 + (queries.length - all) * keys.length;
}
