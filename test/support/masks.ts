// Arbitrary masks for properties, each with its definition in plain JavaScript.
import fc from "fast-check";
import { AttentionMask } from "longseq";

/** Whether a query sees a key. */
export type Predicate = (query: number, key: number) => boolean;
/** A mask and its definition in plain JavaScript. */
export interface Pair {
  mask: AttentionMask;
  sees: Predicate;
}

const size = fc.oneof(
  fc.integer({ min: 0, max: 20 }),
  fc.integer({ min: 0, max: 300 }),
  fc.constantFrom(1, 63, 64, 65, 127, 128, 129, 256, 257),
);
/** [queries, keys] */
export const shape = fc.oneof(
  fc.tuple(size, size),
  size.map((n): [number, number] => [n, n]),
);
const reach = fc.oneof(fc.constant(-1), fc.integer({ min: 0, max: 200 }));

function windowPair(queries: number, keys: number, left: number, right: number): Pair {
  const mask = AttentionMask.window(queries, keys, left, right);
  const distance = (query: number, key: number) => key - (query + keys - queries);
  const sees: Predicate = (query, key) =>
    (left < 0 || distance(query, key) >= -left) && (right < 0 || distance(query, key) <= right);
  return { mask, sees };
}

function documentsPair(tokens: number, cuts: readonly number[]): Pair {
  const cuSeqlens = [0, ...cuts.map((cut) => Math.min(cut, tokens)), tokens].sort((a, b) => a - b);
  const documentOf = (token: number) => cuSeqlens.findIndex((end) => token < end);
  return {
    mask: AttentionMask.documents(cuSeqlens),
    sees: (query, key) => documentOf(query) === documentOf(key),
  };
}

/** Scattered bits: a hash of the pair is below the threshold. */
export function scatter(seed: number, threshold: number): Predicate {
  return (query, key) => {
    const mixed = Math.imul(Math.imul(query + 1, 0x9e3779b1) ^ Math.imul(key + seed, 0x85ebca6b), 0xc2b2ae35);
    return ((mixed ^ (mixed >>> 15)) & 0xff) < threshold;
  };
}

/** Any mask of a shape: a rule, values or a function, and what `and`, `or` and `not` make of them. */
export function pairOf(queries: number, keys: number): fc.Arbitrary<Pair> {
  const causal = fc.constant(0).map(
    (): Pair => ({
      mask: AttentionMask.causal(queries, keys),
      sees: (query, key) => key <= query + keys - queries,
    }),
  );
  const window = fc.tuple(reach, reach).map(([left, right]) => windowPair(queries, keys, left, right));
  const scattered = fc
    .tuple(fc.integer({ min: 0, max: 1000 }), fc.integer({ min: 0, max: 256 }), fc.boolean())
    .map(([seed, threshold, dense]): Pair => {
      const sees = scatter(seed, threshold);
      const mask = dense
        ? AttentionMask.dense(denseOf(queries, keys, sees), queries, keys)
        : AttentionMask.from(queries, keys, sees);
      return { mask, sees };
    });
  const square = [
    fc.array(size, { maxLength: 6 }).map((cuts) => documentsPair(queries, cuts)),
    fc.integer({ min: 0, max: queries }).map(
      (prefix): Pair => ({
        mask: AttentionMask.prefix(queries, prefix),
        sees: (query, key) => key < prefix || key <= query,
      }),
    ),
  ];
  const leaf = fc.oneof(causal, window, scattered, ...(queries === keys ? square : []));
  const tree: fc.Memo<Pair> = fc.memo((depth) => {
    if (depth <= 1) return leaf;
    const both = fc.tuple(tree(), tree());
    return fc.oneof(
      leaf,
      both.map(
        ([a, b]): Pair => ({ mask: a.mask.and(b.mask), sees: (i, j) => a.sees(i, j) && b.sees(i, j) }),
      ),
      both.map(([a, b]): Pair => ({ mask: a.mask.or(b.mask), sees: (i, j) => a.sees(i, j) || b.sees(i, j) })),
      tree().map((a): Pair => ({ mask: a.mask.not(), sees: (i, j) => !a.sees(i, j) })),
    );
  });
  return tree(3);
}

/** The definition, written out [queries, keys]. */
export function denseOf(queries: number, keys: number, sees: Predicate): Uint8Array {
  const values = new Uint8Array(queries * keys);
  for (let at = 0; at < values.length; at++) values[at] = sees(Math.floor(at / keys), at % keys) ? 1 : 0;
  return values;
}
