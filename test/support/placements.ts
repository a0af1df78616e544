// Where queries and keys stand, in each way that attention's options can say it, and beside it row by row.
import fc from "fast-check";
import type { AttentionOptions, Piece } from "longseq";
import type { Rule, Shape } from "./definition.ts";

type Placement = Pick<Rule, "queryPositions" | "keyPositions" | "documents"> & {
  options: Pick<AttentionOptions, "cuSeqlens" | "cuSeqlensKeys" | "queryPositions" | "keyPositions">;
};

export const range = (start: number, length: number) => Array.from({ length }, (_, i) => start + i);
/** Boundaries of `documents` runs that cover 0 to `end`, of which some are empty. */
const boundaries = (end: number, documents: number) =>
  fc
    .array(fc.integer({ min: 0, max: end }), { minLength: documents - 1, maxLength: documents - 1 })
    .map((cuts) => [0, ...cuts.sort((a, b) => a - b), end]);
const documentOf = (cuts: readonly number[]) => (position: number) =>
  position < 0 ? -1 : cuts.findIndex((cut) => position < cut);

/** Pieces of a longer sequence, as a zigzag or ragged shard holds them. */
const shard = (length: number): fc.Arbitrary<Piece[]> =>
  fc
    .tuple(boundaries(length, 3), fc.array(fc.integer({ min: 0, max: 90 }), { minLength: 3, maxLength: 3 }))
    .map(([cuts, gaps]) => {
      let end = 0;
      return gaps.map((gap, piece) => {
        const start = end + gap;
        const count = (cuts[piece + 1] ?? 0) - (cuts[piece] ?? 0);
        end = start + count;
        return { start, length: count };
      });
    });
const positionsOf = (pieces: readonly Piece[]) => pieces.flatMap(({ start, length }) => range(start, length));

/** Where the rows stand, in each way that the options can say it. */
export function placements({ queries, keys }: Shape): fc.Arbitrary<Placement> {
  const aligned = { queryPositions: range(keys - queries, queries), keyPositions: range(0, keys) };
  const documentCount = fc.integer({ min: 1, max: 6 });
  const inDocuments = documentCount
    .chain((count) => boundaries(keys, count))
    .map((cuSeqlens): Placement => {
      const number = documentOf(cuSeqlens);
      const documents = {
        queries: aligned.queryPositions.map(number),
        keys: aligned.keyPositions.map(number),
      };
      return { ...aligned, documents, options: { cuSeqlens: Int32Array.from(cuSeqlens) } };
    });
  const inDocumentsOfTwoLengths = documentCount
    .chain((count) => fc.tuple(boundaries(queries, count), boundaries(keys, count)))
    .map(([cuSeqlens, cuSeqlensKeys]): Placement => {
      const documents = {
        queries: range(0, queries).map(documentOf(cuSeqlens)),
        keys: range(0, keys).map(documentOf(cuSeqlensKeys)),
      };
      const shift = (row: number) => {
        const end = documents.queries[row] ?? 0;
        return (cuSeqlensKeys[end] ?? 0) - (cuSeqlens[end] ?? 0);
      };
      return {
        queryPositions: range(0, queries).map((row) => row + shift(row)),
        keyPositions: aligned.keyPositions,
        documents,
        options: { cuSeqlens, cuSeqlensKeys },
      };
    });
  const ofShards = fc
    .record({
      own: shard(queries),
      others: fc.option(shard(keys)),
      cuts: fc.option(boundaries(Math.max(queries, keys) + 300, 4)),
    })
    .map(({ own, others, cuts }): Placement => {
      const queryPositions = positionsOf(own);
      const keyPositions = others ? positionsOf(others) : aligned.keyPositions;
      const documents = cuts && {
        queries: queryPositions.map(documentOf(cuts)),
        keys: keyPositions.map(documentOf(cuts)),
      };
      return {
        queryPositions,
        keyPositions,
        documents: documents ?? undefined,
        options: {
          queryPositions: own,
          ...(others && { keyPositions: others }),
          ...(cuts && { cuSeqlens: cuts }),
        },
      };
    });
  return fc.oneof(
    fc.constant({ ...aligned, documents: undefined, options: {} }),
    inDocuments,
    inDocumentsOfTwoLengths,
    ofShards,
  );
}
