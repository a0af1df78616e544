// How a layer's heads and columns are divided over ranks.
import type { Range } from "./strategy.ts";

/** Of `count` things, those of a rank: portions that differ by one at most. */
export function portionOf(count: number, ranks: number, rank: number): Range {
  return { begin: Math.floor((rank * count) / ranks), end: Math.floor(((rank + 1) * count) / ranks) };
}

/** The heads of a rank: of the queries, and of the keys and values that those read. */
export interface HeadRange {
  query: Range;
  keyValue: Range;
}

/**
 * Each rank's heads. A rank has whole groups of query heads and their key heads; where there are fewer key heads than
 * ranks, several have the same key head, and a part of its query heads each. A rank may have none.
 */
export function divideHeads(queryHeads: number, keyValueHeads: number, ranks: number): HeadRange[] {
  const group = queryHeads / keyValueHeads;
  return Array.from({ length: ranks }, (_, rank) => {
    if (keyValueHeads >= ranks) {
      const keyValue = portionOf(keyValueHeads, ranks, rank);
      return { query: { begin: keyValue.begin * group, end: keyValue.end * group }, keyValue };
    }
    const head = Math.floor((rank * keyValueHeads) / ranks);
    const first = Math.ceil((head * ranks) / keyValueHeads);
    const sharers = Math.ceil(((head + 1) * ranks) / keyValueHeads) - first;
    const { begin, end } = portionOf(group, sharers, rank - first);
    const isEmpty = begin === end;
    return {
      query: { begin: head * group + begin, end: head * group + end },
      keyValue: { begin: head, end: isEmpty ? head : head + 1 },
    };
  });
}

/**
 * Each rank's heads in so many chunks of whole groups, by chunk and rank. Each rank has as many key heads as there are
 * chunks, or more; one chunk is all of them.
 */
export function chunksOf(divided: readonly HeadRange[], chunks: number): HeadRange[][] {
  if (chunks === 1) return [[...divided]];
  return Array.from({ length: chunks }, (_, chunk) =>
    divided.map(({ query, keyValue }) => {
      const heads = keyValue.end - keyValue.begin;
      const group = (query.end - query.begin) / heads;
      const { begin, end } = portionOf(heads, chunks, chunk);
      return {
        query: { begin: query.begin + begin * group, end: query.begin + end * group },
        keyValue: { begin: keyValue.begin + begin, end: keyValue.begin + end },
      };
    }),
  );
}
