// Arbitrary splits of sequences, and documents in them.
import fc from "fast-check";
import { type Piece, SequenceShard } from "longseq";

/** All ranks' shards, also of sequences with fewer rows than ranks. */
export const splits = fc
  .tuple(
    fc.constantFrom("contiguous" as const, "zigzag" as const),
    fc.oneof(fc.integer({ min: 0, max: 12 }), fc.integer({ min: 0, max: 300 })),
    fc.integer({ min: 1, max: 9 }),
  )
  .map(([layout, length, ranks]) => {
    const shards = Array.from({ length: ranks }, (_, rank) => SequenceShard[layout](length, ranks, rank));
    return shards as [SequenceShard, ...SequenceShard[]];
  });

/** Of documents in so many rows, empty ones too; at times they reach beyond the rows. */
export function boundariesOf(length: number): fc.Arbitrary<readonly number[]> {
  return fc
    .tuple(fc.array(fc.integer({ min: 0, max: length }), { maxLength: 8 }), fc.integer({ min: 0, max: 3 }))
    .map(([cuts, beyond]) => [0, ...cuts.sort((a, b) => a - b), length + beyond]);
}

/** The document that holds a position; behind the last, one of its own. */
export function documentOf(cuSeqlens: readonly number[], position: number): number {
  const next = cuSeqlens.findIndex((end) => end > position);
  return next < 0 ? cuSeqlens.length : next - 1;
}

/** Ascending and disjoint within so many rows; some touch, and some are empty. */
export const pieces = (rows: number): fc.Arbitrary<Piece[]> =>
  fc
    .array(fc.integer({ min: 0, max: rows }), { maxLength: 8 })
    .map((cuts) => cuts.sort((a, b) => a - b))
    .map((cuts) =>
      cuts.slice(1).flatMap((end, at) => {
        const start = cuts[at] ?? 0;
        return at % 2 === 0 || end - start < 3 ? [{ start, length: end - start }] : [];
      }),
    );
