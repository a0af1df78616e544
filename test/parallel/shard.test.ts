// SequenceShard against its definition: every position is some rank's, once, and what belongs to it goes with it.
import fc from "fast-check";
import {
  AttentionMask,
  attention,
  attentionForward,
  crossEntropy,
  mergeAttention,
  SequenceShard,
  Tape,
  Tensor,
  visiblePairs,
} from "longseq";
import t from "tap";
import { scatter } from "../support/masks.ts";
import { refuses } from "../support/refusals.ts";
import { boundariesOf, documentOf, positionsOf, splits } from "../support/shards.ts";

const random = (property: Parameters<typeof fc.assert>[0], numRuns = 200) => fc.assert(property, { numRuns });

t.test("every position is held once, in ascending pieces, in even shares", async (t) => {
  const property = fc.property(splits, (shards) => {
    const [first] = shards;
    const stretches = first.layout === "zigzag" ? 2 * first.ranks : first.ranks;
    const stretchOf = (position: number) => {
      const beyond = (stretch: number) => Math.floor((stretch * first.length) / stretches) > position;
      return Array.from({ length: stretches }, (_, stretch) => stretch + 1).findIndex(beyond);
    };
    for (const shard of shards) {
      for (const [at, { start, length }] of shard.pieces.entries()) {
        const before = shard.pieces[at - 1];
        if (length < 1 || (before && before.start + before.length >= start)) return false;
      }
      const rows = positionsOf(shard.pieces);
      const held = rows.every((position) => {
        const stretch = stretchOf(position);
        return (
          shard.rank === Math.min(stretch, shard.layout === "zigzag" ? stretches - 1 - stretch : stretch)
        );
      });
      if (!held || shard.size !== rows.length || shard.positions().join() !== rows.join()) return false;
      if (JSON.stringify(first.of(shard.rank)) !== JSON.stringify(shard)) return false;
    }
    const all = shards.flatMap((shard) => positionsOf(shard.pieces)).sort((a, b) => a - b);
    const sizes = shards.map(({ size }) => size);
    return (
      all.length === first.length &&
      all.every((position, at) => position === at) &&
      Math.max(...sizes) - Math.min(...sizes) <= (first.layout === "zigzag" ? 2 : 1)
    );
  });
  t.doesNotThrow(() => random(property));
  t.same(SequenceShard.whole(5).pieces, [{ start: 0, length: 5 }]);
  t.same(SequenceShard.zigzag(5, 1, 0).pieces, [{ start: 0, length: 5 }], "what touches is one piece");
  t.same(SequenceShard.zigzag(2, 3, 1), {
    layout: "zigzag",
    length: 2,
    ranks: 3,
    rank: 1,
    portions: 1,
    pieces: [],
    size: 0,
  });
});

t.test("neighbours that share a place of the layout cut its rows among them", async (t) => {
  const property = fc.property(
    fc.nat(60),
    fc.integer({ min: 1, max: 5 }),
    fc.integer({ min: 1, max: 4 }),
    (length, places, portions) => {
      const rows = (shard: SequenceShard) => [...shard.positions()];
      for (let place = 0; place < places; place++) {
        const shared = rows(SequenceShard.zigzag(length, places, place));
        const shards = Array.from({ length: portions }, (_, portion) =>
          SequenceShard.zigzag(length, places * portions, place * portions + portion, portions),
        );
        const sizes = shards.map(({ size }) => size);
        t.strictSame(shards.flatMap(rows), shared);
        t.ok(Math.max(...sizes) - Math.min(...sizes) <= 1);
      }
    },
  );
  fc.assert(property, { numRuns: 50 });
  t.throws(() => SequenceShard.zigzag(8, 4, 0, 3), {
    code: "ERR_OPTION",
    message: /portions is 3, expected a divisor of 4/,
  });
});

t.test("under causal order zigzag's ranks have the same work", async (t) => {
  const work = (shards: readonly SequenceShard[]) =>
    shards.map(({ pieces, length }) => visiblePairs(pieces, [{ start: 0, length }], { causal: true }));
  const spread = (shards: readonly SequenceShard[]) => Math.max(...work(shards)) - Math.min(...work(shards));
  const property = fc.property(
    fc.integer({ min: 1, max: 2 ** 20 }),
    fc.integer({ min: 1, max: 64 }),
    (length, ranks) => {
      const shards = Array.from({ length: ranks }, (_, rank) => SequenceShard.zigzag(length, ranks, rank));
      const even = spread(shards) <= (length % (2 * ranks) === 0 ? 0 : 2 * length);
      return even && work(shards).reduce((sum, pairs) => sum + pairs) === (length * (length + 1)) / 2;
    },
  );
  t.doesNotThrow(() => random(property));
});

t.test("rows of tensors are taken and joined", async (t) => {
  const property = fc.asyncProperty(
    splits,
    fc.constantFrom(0, 1, 2),
    fc.boolean(),
    async (shards, axis, transposed) => {
      const shape = [2, 3].toSpliced(axis, 0, shards[0].length);
      const made = Tensor.normal(transposed ? shape.toReversed() : shape, { seed: 7 });
      const x = transposed ? made.permute(2, 1, 0) : made;
      const values = await x.data();
      const inner = shape.slice(axis + 1).reduce((product, size) => product * size, 1);
      const taken = shards.map((shard) => shard.take(x, axis));
      for (const [at, shard] of shards.entries()) {
        const positions = new Set(positionsOf(shard.pieces));
        const expected = values.filter((_, i) => positions.has(Math.floor(i / inner) % shard.length));
        if (Buffer.compare(bytes(expected), bytes((await taken[at]?.data()) ?? [])) !== 0) return false;
      }
      const joined = SequenceShard.join(taken.toReversed(), shards.toReversed(), axis);
      return (
        joined.shape.join() === shape.join() &&
        Buffer.compare(bytes(await joined.data()), bytes(values)) === 0
      );
    },
  );
  await t.resolves(fc.assert(property, { numRuns: 60 }));
});

const bytes = (values: ArrayLike<number>) => Buffer.from(Float32Array.from(values).buffer);

t.test("they are differentiable", async (t) => {
  for (const layout of ["contiguous", "zigzag"] as const) {
    const shards = Array.from({ length: 3 }, (_, rank) => SequenceShard[layout](11, 3, rank));
    const x = Tensor.normal([2, 11, 4], { seed: 1, dtype: "bfloat16" });
    const dout = Tensor.normal([2, 11, 4], { seed: 2, dtype: "bfloat16" });
    using tape = new Tape();
    tape.watch(x);
    const parts = shards.map((shard) => shard.take(x));
    const [dx] = tape.backward(SequenceShard.join(parts, shards), dout, [x]);
    t.same(await dx?.data(), await dout.data(), `${layout}: there and back`);

    const [shard] = shards as [SequenceShard];
    tape.watch(x);
    const [dxOfOne] = tape.backward(shard.take(x), shard.take(dout), [x]);
    t.same(await shard.take(dxOfOne as Tensor).data(), await shard.take(dout).data());
    const others = shards.slice(1).map((other) => other.take(dxOfOne as Tensor));
    for (const other of others) t.ok((await other.data()).every((value) => value === 0));
  }
});

t.test("tokens, positions and labels are those of the whole sequence", async (t) => {
  const property = fc.property(
    splits.chain((shards) => fc.tuple(fc.constant(shards), fc.option(boundariesOf(shards[0].length)))),
    fc.integer({ min: 1, max: 3 }),
    fc.boolean(),
    ([shards, documents], batch, hasNext) => {
      const { length } = shards[0];
      const given = length + (hasNext ? 1 : 0);
      const cuSeqlens = documents ?? undefined;
      const token = (sequence: number, position: number) => 1000 * sequence + position;
      const tokens = Int32Array.from({ length: batch * given }, (_, at) =>
        token(Math.floor(at / given), at % given),
      );
      const label = (sequence: number, position: number) => {
        const isLast = position + 1 === given;
        const ends = cuSeqlens && documentOf(cuSeqlens, position) !== documentOf(cuSeqlens, position + 1);
        return isLast || ends ? -1 : token(sequence, position + 1);
      };
      const sequences = Array.from({ length: batch }, (_, sequence) => sequence);
      return shards.every((shard) => {
        const rows = positionsOf(shard.pieces);
        const options = { batch, ignoreIndex: -1, ...(cuSeqlens && { cuSeqlens }) };
        const expected = sequences.flatMap((sequence) => rows.map((position) => label(sequence, position)));
        const starts = rows.map((p) => (cuSeqlens ? (cuSeqlens[documentOf(cuSeqlens, p)] ?? 0) : 0));
        const whole = Int32Array.from(
          sequences.flatMap((s) => Array.from({ length }, (_, p) => token(s, p))),
        );
        const held = sequences.flatMap((sequence) => rows.map((position) => token(sequence, position)));
        return (
          shard.labels(tokens, options).join() === expected.join() &&
          shard.positions(cuSeqlens).join() === rows.map((p, at) => p - (starts[at] ?? 0)).join() &&
          shard.takeValues(whole).join() === (length === 0 ? "" : held.join())
        );
      });
    },
  );
  t.doesNotThrow(() => random(property));
});

t.test("the loss of the shards is that of the whole, whatever the split", async (t) => {
  const [length, vocabulary] = [37, 11];
  const tokens = Int32Array.from({ length: length + 1 }, (_, at) => (at * 7) % vocabulary);
  const logits = Tensor.normal([1, length, vocabulary], { seed: 3 });
  const lossOf = async (shards: readonly SequenceShard[]) => {
    const losses = shards.map(async (shard) => {
      const targets = Tensor.from(shard.labels(tokens, { cuSeqlens: [0, 10, 25, length] }), [1, shard.size]);
      const loss = crossEntropy(shard.take(logits), targets, { reduction: "sum" });
      return (await loss.data())[0] ?? Number.NaN;
    });
    return (await Promise.all(losses)).reduce((sum, loss) => sum + loss, 0);
  };
  const expected = await lossOf([SequenceShard.whole(length)]);
  for (const layout of ["contiguous", "zigzag"] as const) {
    for (const ranks of [2, 3, 8, 40]) {
      const loss = await lossOf(
        Array.from({ length: ranks }, (_, rank) => SequenceShard[layout](length, ranks, rank)),
      );
      t.ok(Math.abs(loss - expected) < 1e-4 * expected, `${layout}, ${ranks} ranks: ${loss}, of ${expected}`);
    }
  }
});

t.test("attention of shards, documents and all, is that of the whole sequence", async (t) => {
  const [length, heads, size] = [150, 2, 16];
  const [q, k, v] = [1, 2, 3].map((seed) => Tensor.normal([1, length, heads, size], { seed })) as [
    Tensor,
    Tensor,
    Tensor,
  ];
  const options = { causal: true, cuSeqlens: [0, 40, 41, 120, length], implementation: "reference" as const };
  const expected = await attention(q, k, v, options).data();
  for (const layout of ["contiguous", "zigzag"] as const) {
    const shards = Array.from({ length: 4 }, (_, rank) => SequenceShard[layout](length, 4, rank));
    const parts = shards.map((shard) =>
      attention(shard.take(q), k, v, { ...options, queryPositions: shard.pieces }),
    );
    t.same(await SequenceShard.join(parts, shards).data(), expected, layout);
  }
});

t.test(
  "with a mask, what each shard sees of each other, merged, is what the whole sequence sees",
  async (t) => {
    const [length, heads, size] = [300, 2, 16];
    const [q, k, v] = [1, 2, 3].map((seed) => Tensor.normal([1, length, heads, size], { seed })) as [
      Tensor,
      Tensor,
      Tensor,
    ];
    const options = { causal: true, window: [150, 0] as const, softcap: 5 };
    for (const mask of [
      AttentionMask.from(length, length, scatter(1, 100)),
      AttentionMask.prefix(length, 70).and(AttentionMask.documents([0, 128, length])),
    ]) {
      const expected = await attention(q, k, v, { ...options, mask, implementation: "reference" }).data();
      for (const layout of ["contiguous", "zigzag"] as const) {
        const shards = Array.from({ length: 3 }, (_, rank) => SequenceShard[layout](length, 3, rank));
        const outs = shards.map((shard) => {
          const parts = shards.map((other) =>
            attentionForward(shard.take(q), other.take(k), other.take(v), {
              ...options,
              mask: mask.select(shard.pieces, other.pieces),
              queryPositions: shard.pieces,
              keyPositions: other.pieces,
            }),
          );
          return mergeAttention(parts).out;
        });
        const values = await SequenceShard.join(outs, shards).data();
        const worst = Math.max(...values.map((value, at) => Math.abs(value - (expected[at] ?? Number.NaN))));
        t.ok(worst < 1e-5, `${mask.kind}, ${layout}: off by ${worst}`);
      }
    }
  },
);

t.test("bad input", async (t) => {
  const wrong = (value: unknown) => value as never;
  const shard = SequenceShard.zigzag(8, 2, 0);
  const { contiguous, join } = SequenceShard;
  const [x, other] = [Tensor.zeros([1, 8]), Tensor.zeros([1, 4], { dtype: "int32" })];
  const parts = [shard.take(x), shard.of(1).take(x)];
  const shards = [shard, shard.of(1)];
  const tokens = new Int32Array(8);
  const gone = Tensor.zeros([1, 8]);
  gone.dispose();
  for (const value of ["3", null, undefined, {}]) {
    refuses(t, [
      [() => SequenceShard.whole(wrong(value)), "ERR_OPTION", /^SequenceShard.whole: length is /],
      [() => contiguous(8, wrong(value), 0), "ERR_OPTION", /^SequenceShard.contiguous: ranks is /],
      [() => shard.of(wrong(value)), "ERR_OPTION", /^SequenceShard.of: rank is /],
      [() => shard.take(wrong(value)), "ERR_OPTION", /^SequenceShard.take: x is /],
      [() => shard.takeValues(wrong(value)), "ERR_OPTION", /^SequenceShard.takeValues: values is /],
      [() => shard.labels(wrong(value)), "ERR_OPTION", /^SequenceShard.labels: tokens is /],
      [() => join(wrong(value), shards), "ERR_OPTION", /^SequenceShard.join: parts is /],
      [() => join([parts[0] as Tensor, wrong(value)], shards), "ERR_OPTION", /join: parts\[1\] is /],
      [() => join(parts, wrong(value)), "ERR_OPTION", /^SequenceShard.join: shards is /],
      [() => join(parts, [shard, wrong(value)]), "ERR_OPTION", /^SequenceShard.join: shards\[1\] is /],
    ]);
  }
  for (const value of [3n, Symbol("3")]) {
    const refused = { name: "TypeError", code: "ERR_OPTION" };
    t.throws(() => SequenceShard.whole(wrong(value)), refused);
    t.throws(() => contiguous(8, wrong(value), 0), refused);
    t.throws(() => contiguous(8, 2, wrong(value)), refused);
  }
  refuses(t, [
    [
      () => SequenceShard.whole(-1),
      "ERR_SHAPE",
      "SequenceShard.whole: length is -1, expected an integer of 0 to 2147483647",
    ],
    [() => SequenceShard.whole(2 ** 31), "ERR_SHAPE", /length is 2147483648, expected an integer of 0 to/],
    [() => SequenceShard.zigzag(1.5, 2, 0), "ERR_SHAPE", /zigzag: length is 1.5, expected an integer/],
    [() => contiguous(8, 0, 0), "ERR_OPTION", /ranks is 0, expected an integer of 1 to 1048576/],
    [() => contiguous(8, 2, 2), "ERR_OPTION", /rank is 2, expected an integer of 0 to 1/],
    [() => shard.of(-1), "ERR_OPTION", /rank is -1, expected an integer of 0 to 1/],
    [
      () => shard.take(x, 0),
      "ERR_SHAPE",
      "SequenceShard.take: x has 1 rows in axis 0, expected 8 (the length of the sequence)",
    ],
    [() => shard.take(x, 2), "ERR_SHAPE", "SequenceShard.take: x has no axis 2, expected 0 to 1"],
    [() => shard.take(gone), "ERR_DISPOSED", "SequenceShard.take: x was disposed"],
    [() => shard.takeValues(new Int32Array(9)), "ERR_SHAPE", /values has 9 values, expected a multiple of 8/],
    [() => SequenceShard.whole(0).takeValues(new Int32Array(1)), "ERR_SHAPE", /expected a multiple of 0/],
    [() => shard.positions([1, 8]), "ERR_OPTION", /positions: cuSeqlens must start with 0/],
    [() => shard.positions([0]), "ERR_OPTION", /cuSeqlens must start with 0 and have an entry behind each/],
    [() => shard.positions([0, 5, 4, 8]), "ERR_OPTION", /cuSeqlens falls from 5 to 4/],
    [
      () => shard.positions([0, 7]),
      "ERR_OPTION",
      /cuSeqlens ends at 7, expected 8 or more \(the last position\)/,
    ],
    [() => shard.positions([0, 0.5, 8]), "ERR_OPTION", /cuSeqlens holds a number that is no integer/],
    [
      () => shard.positions(wrong("0,8")),
      "ERR_OPTION",
      /cuSeqlens is string, expected an Int32Array or an array/,
    ],
    [() => shard.labels(new Int32Array(7)), "ERR_SHAPE", /tokens has 7 values, expected 1 times 8 or 9/],
    [() => shard.labels(tokens, { batch: 2 }), "ERR_SHAPE", /tokens has 8 values, expected 2 times 8 or 9/],
    [() => shard.labels(tokens, { batch: 0 }), "ERR_OPTION", /batch is 0, expected an integer of 1 or more/],
    [() => shard.labels(tokens, { ignoreIndex: 0.5 }), "ERR_OPTION", /ignoreIndex is 0.5, expected an int32/],
    [
      () => shard.labels(tokens, { ignoreIndex: wrong("1") }),
      "ERR_OPTION",
      /ignoreIndex is string, expected an integer/,
    ],
    [() => shard.labels(tokens, wrong(null)), "ERR_OPTION", /labels: options is null, expected an object/],
    [
      () => shard.labels(tokens, { cuSeqlens: [0, 7] }),
      "ERR_OPTION",
      /labels: cuSeqlens ends at 7, expected 8/,
    ],
    [() => join([], []), "ERR_OPTION", "SequenceShard.join: shards is empty, expected one a rank"],
    [
      () => join(parts, [shard, shard]),
      "ERR_OPTION",
      /shards has 1 ranks in 2 shards, expected each of 2 once/,
    ],
    [
      () => join([parts[0] as Tensor], [shard]),
      "ERR_OPTION",
      /shards has 1 ranks in 1 shards, expected each of 2/,
    ],
    [
      () => join(parts, [shard, contiguous(8, 2, 1)]),
      "ERR_OPTION",
      /shards\[1\] is of another split than the first/,
    ],
    [() => join([x], shards), "ERR_SHAPE", /parts has 1 tensors, expected 2 \(one a shard\)/],
    [
      () => join([x, x], shards),
      "ERR_SHAPE",
      /parts\[0\] has 8 rows in axis 1, expected 4 \(those of its shard\)/,
    ],
    [() => join([parts[0] as Tensor, other], shards), "ERR_DTYPE", /parts\[1\] is int32, expected float32/],
    [
      () => join([parts[0] as Tensor, Tensor.zeros([2, 4])], shards),
      "ERR_SHAPE",
      /parts\[1\] is \[2,4\], expected \[1,4\]/,
    ],
  ]);
});

t.test("bytes are tokens too", (t) => {
  const bytes = Uint8Array.from(Buffer.from("ACGTNACG"));
  const tokens = Int32Array.from(bytes);
  for (const rank of [0, 1, 2]) {
    const shard = SequenceShard.zigzag(4, 3, rank);
    t.strictSame(shard.takeValues(bytes), shard.takeValues(tokens));
    t.strictSame(shard.labels(bytes, { batch: 2 }), shard.labels(tokens, { batch: 2 }));
  }
  t.end();
});
