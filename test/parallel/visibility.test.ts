// What shards see of each other, against every pair of a query and a key looked at.
import fc from "fast-check";
import { type Piece, SequenceShard, sees, type VisibilityOptions, visiblePairs } from "longseq";
import t from "tap";
import { refuses } from "../support/refusals.ts";
import { boundariesOf, documentOf, pieces, positionsOf, splits } from "../support/shards.ts";

const length = 40;
const reach = fc.oneof(fc.constant(-1), fc.integer({ min: 0, max: length + 5 }));
const optionsOf = (rows: number): fc.Arbitrary<VisibilityOptions> =>
  fc.record(
    { causal: fc.boolean(), window: fc.tuple(reach, reach), cuSeqlens: boundariesOf(rows) },
    { requiredKeys: [] },
  );

function counted(queries: readonly Piece[], keys: readonly Piece[], options: VisibilityOptions): number {
  const { causal = false, window: [left, right] = [-1, -1], cuSeqlens } = options;
  const isSeen = (query: number, key: number) =>
    !(causal && key > query) &&
    (left < 0 || key >= query - left) &&
    (right < 0 || key <= query + right) &&
    (cuSeqlens === undefined || documentOf([...cuSeqlens], query) === documentOf([...cuSeqlens], key));
  const all = positionsOf(keys);
  return positionsOf(queries).reduce((sum, query) => sum + all.filter((key) => isSeen(query, key)).length, 0);
}

t.test("any pieces", async (t) => {
  const property = fc.property(
    pieces(length),
    pieces(length),
    optionsOf(length),
    (queries, keys, options) => {
      const expected = counted(queries, keys, options);
      return (
        visiblePairs(queries, keys, options) === expected && sees(queries, keys, options) === expected > 0
      );
    },
  );
  t.doesNotThrow(() => fc.assert(property, { numRuns: 5000 }));
});

t.test("all shards' pairs are the whole sequence's", async (t) => {
  const property = fc.property(
    splits.chain((shards) => fc.tuple(fc.constant(shards), optionsOf(shards[0].length))),
    ([shards, options]) => {
      const whole = SequenceShard.whole(shards[0].length).pieces;
      const pairs = shards.flatMap(({ pieces: queries }) =>
        shards.map(({ pieces: keys }) => visiblePairs(queries, keys, options)),
      );
      return pairs.reduce((sum, count) => sum + count) === visiblePairs(whole, whole, options);
    },
  );
  t.doesNotThrow(() => fc.assert(property, { numRuns: 300 }));
});

t.test("long sequences are counted exactly, and at once", async (t) => {
  const tokens = 2 ** 26;
  const [whole] = SequenceShard.whole(tokens).pieces as [Piece];
  const sum = (of: (size: number) => number, sizes: readonly number[]) =>
    sizes.reduce((total, size) => total + of(size), 0);
  const causal = (size: number) => (size * (size + 1)) / 2;
  t.equal(visiblePairs([whole], [whole], { causal: true }), causal(tokens));
  t.equal(visiblePairs([whole], [whole], { window: [2 ** 31 - 1, 0] }), causal(tokens));
  t.equal(visiblePairs([whole], [whole], { window: [0, 0] }), tokens);
  const far = { start: 2 ** 31 - 1001, length: 1000 };
  t.equal(visiblePairs([far], [far], { causal: true }), causal(1000));
  t.equal(visiblePairs([far], [{ start: 0, length: 1000 }], { causal: true }), 1e6);

  const sizes = Array.from({ length: 20_000 }, (_, at) => 1 + ((at * 7919) % 4001));
  let end = 0;
  const cuSeqlens = Int32Array.from([0, ...sizes.map((size) => (end += size))]);
  const all = SequenceShard.whole(end).pieces;
  t.equal(visiblePairs(all, all, { cuSeqlens, causal: true }), sum(causal, sizes));
  t.equal(
    visiblePairs(all, all, { cuSeqlens }),
    sum((size) => size * size, sizes),
  );
  const shards = Array.from({ length: 8 }, (_, rank) => SequenceShard.contiguous(end, 8, rank));
  const started = performance.now();
  const seen = shards.map((queries) =>
    shards.map((keys) => sees(queries.pieces, keys.pieces, { cuSeqlens, causal: true })).indexOf(true),
  );
  t.same(seen, [0, 0, 1, 2, 3, 4, 5, 6], "a document is cut at each border");
  t.ok(performance.now() - started < 500);
});

t.test("bad input", async (t) => {
  const wrong = (value: unknown) => value as never;
  const whole = [{ start: 0, length: 8 }];
  for (const [name, call] of Object.entries({ sees, visiblePairs })) {
    refuses(t, [
      [
        () => call(wrong("3"), whole),
        "ERR_OPTION",
        `${name}: queries is string, expected an array of { start, length }`,
      ],
      [
        () => call(whole, wrong(null)),
        "ERR_OPTION",
        `${name}: keys is null, expected an array of { start, length }`,
      ],
      [
        () => call(whole, [wrong(null)]),
        "ERR_OPTION",
        /keys holds a piece that is not \{ start, length \} in integers/,
      ],
      [() => call([wrong({ start: 0 })], whole), "ERR_OPTION", /queries holds a piece that is not/],
      [
        () => call([{ start: -1, length: 2 }], whole),
        "ERR_OPTION",
        /queries must be ascending, disjoint and within/,
      ],
      [() => call([{ start: 1, length: -1 }], whole), "ERR_OPTION", /queries must be ascending/],
      [
        () => call(whole, [...whole, { start: 7, length: 1 }]),
        "ERR_OPTION",
        /keys must be ascending, disjoint/,
      ],
      [() => call(whole, [{ start: 2 ** 31 - 1, length: 1 }]), "ERR_OPTION", /within 0 to 2\^31 - 1/],
      [() => call(whole, whole, wrong(null)), "ERR_OPTION", `${name}: options is null, expected an object`],
      [() => call(whole, whole, { causal: wrong(1) }), "ERR_OPTION", /causal is number, expected a boolean/],
      [
        () => call(whole, whole, { window: wrong(1) }),
        "ERR_OPTION",
        /window is number, expected \[left, right\]/,
      ],
      [
        () => call(whole, whole, { window: [-2, 0] }),
        "ERR_OPTION",
        /window is \[-2, 0\], expected two integers/,
      ],
      [() => call(whole, whole, { window: [0, 2 ** 31] }), "ERR_OPTION", /window is \[0, 2147483648\]/],
      [
        () => call(whole, whole, { window: wrong([0]) }),
        "ERR_OPTION",
        /window is \[0\], expected two integers/,
      ],
      [
        () => call(whole, whole, { cuSeqlens: [0, 7] }),
        "ERR_OPTION",
        /cuSeqlens ends at 7, expected 8 or more/,
      ],
      [
        () => call(whole, whole, { cuSeqlens: wrong("8") }),
        "ERR_OPTION",
        /cuSeqlens is string, expected an Int32Array/,
      ],
    ]);
  }
});

t.test(
  "in causal order zigzag's ranks have the same work, the ring's last has nearly twice the mean",
  (t) => {
    for (const length of [4096, 65_536, 100_003]) {
      for (const size of [2, 8, 64]) {
        const whole = [{ start: 0, length }];
        const shares = (make: typeof SequenceShard.zigzag) =>
          Array.from({ length: size }, (_, rank) =>
            visiblePairs(make(length, size, rank).pieces, whole, { causal: true }),
          );
        const zigzag = shares(SequenceShard.zigzag);
        t.ok(Math.max(...zigzag) < 1.05 * Math.min(...zigzag), `${length} tokens over ${size} ranks`);
        const ring = shares(SequenceShard.contiguous);
        const mean = ring.reduce((sum, pairs) => sum + pairs, 0) / size;
        t.ok(
          Math.abs(Math.max(...ring) / mean - (2 - 1 / size)) < 0.01,
          `${length}, ${size}: the ring's last`,
        );
      }
    }
    t.end();
  },
);
