// The whole from its parts: keys split and merged, and shards of a longer sequence by their positions.
import {
  AttentionMask,
  type AttentionOptions,
  attentionBackward,
  attentionForward,
  mergeAttention,
  type Piece,
  Tensor,
} from "longseq";
import t, { type Test } from "tap";
import { at, bounds, relativeError } from "../support/compare.ts";
import { scatter } from "../support/masks.ts";
import { type Results, solve } from "../support/problems.ts";

const [B, S, Hq, Hkv, D] = [2, 240, 4, 2, 40];
const input = (heads: number, seed: number) => Tensor.normal([B, S, heads, D], { seed });
const [q, k, v, dout] = [input(Hq, 1), input(Hkv, 2), input(Hkv, 3), input(Hq, 4)];
const dlogSumExp = Tensor.normal([B, Hq, S], { seed: 5 });
const whole = (start: number, length: number): Piece[] => [{ start, length }];

const rules: [name: string, rule: AttentionOptions][] = [
  ["all keys", {}],
  ["causal", { causal: true }],
  ["window", { window: [50, 10] }],
  ["documents", { cuSeqlens: [0, 100, 100, 230, 240], causal: true }],
  ["softcap", { softcap: 2, scale: 1 }],
  ["ALiBi", { alibiSlopes: Tensor.from([0.5, 0.1, 0.02, 0.004], [Hq]) }],
];

/** What is added up over the parts. */
class Total {
  readonly values: Float64Array;
  constructor(size: number) {
    this.values = new Float64Array(size);
  }
  async add(part: Tensor): Promise<void> {
    const values = await part.data();
    for (let i = 0; i < values.length; i++) this.values[i] = at(this.values, i) + at(values, i);
  }
}

async function near(t: Test, name: string, actual: ArrayLike<number>, expected: Tensor): Promise<void> {
  const error = relativeError(actual, await expected.data());
  t.ok(error < bounds.float32.result, `${name}: ${error}`);
}

async function allNear(t: Test, actual: Partial<Results>, expected: Results): Promise<void> {
  for (const [name, tensor] of Object.entries(actual)) {
    await near(t, name, await tensor.data(), expected[name as keyof Results]);
  }
}

t.test("keys split at any place", async (t) => {
  const bits = scatter(3, 100);
  const masked = (begin: number, end: number) => ({
    mask: AttentionMask.from(S, end - begin, (i, j) => bits(i, begin + j)),
  });
  const ofPart = (rule: AttentionOptions, name: string, begin: number, end: number): AttentionOptions => ({
    ...rule,
    ...(name === "mask" && masked(begin, end)),
    queryPositions: whole(0, S),
    keyPositions: whole(begin, end - begin),
  });
  for (const [name, rule] of [...rules, ["mask", masked(0, S)] as const]) {
    t.test(name, async (t) => {
      const expected = solve({ q, k, v, dout, dlogSumExp, options: rule });
      const ends = [0, 7, 7, 96, 131, S]; // one part is empty
      const parts = ends.slice(1).map((end, part) => ({ begin: ends[part] ?? 0, end }));
      const results = parts.map(({ begin, end }) =>
        attentionForward(q, k.slice(1, begin, end), v.slice(1, begin, end), ofPart(rule, name, begin, end)),
      );
      const merged = mergeAttention(results);
      await allNear(t, merged, expected);

      // Each part's gradients, of the whole's statistics: those of k and v are final, those of q add up.
      const dq = new Total(q.size);
      for (const { begin, end } of parts) {
        const ofKeys = (x: Tensor) => x.slice(1, begin, end);
        const part = attentionBackward(
          { q, k: ofKeys(k), v: ofKeys(v), ...merged, dout, dlogSumExp },
          ofPart(rule, name, begin, end),
        );
        await dq.add(part.dq);
        await near(t, "dk", await part.dk.data(), ofKeys(expected.dk));
        await near(t, "dv", await part.dv.data(), ofKeys(expected.dv));
      }
      await near(t, "dq", dq.values, expected.dq);
    });
  }
});

t.test("zigzag shards around a ring", async (t) => {
  const ranks = 3;
  const chunk = S / (2 * ranks);
  const starts = (rank: number) => [rank * chunk, (2 * ranks - 1 - rank) * chunk];
  const piecesOf = (rank: number) => starts(rank).map((start) => ({ start, length: chunk }));
  /** The rows of a shard, along the axis of the sequence. */
  const shard = async (x: Tensor, rank: number, axis = 1): Promise<Tensor> => {
    const rows = Tensor.empty(x.shape.with(axis, 2 * chunk));
    for (const [i, start] of starts(rank).entries()) {
      const piece = x.slice(axis, start, start + chunk);
      rows.slice(axis, i * chunk, (i + 1) * chunk).write((await piece.data()) as Float32Array);
    }
    return rows;
  };
  for (const [name, rule] of rules) {
    t.test(name, async (t) => {
      const expected = solve({ q, k, v, dout, options: rule });
      const keys = await Promise.all(
        Array.from({ length: ranks }, async (_, rank) => {
          const [ofK, ofV] = [await shard(k, rank), await shard(v, rank)];
          return {
            k: ofK,
            v: ofV,
            dk: new Total(ofK.size),
            dv: new Total(ofV.size),
            keyPositions: piecesOf(rank),
          };
        }),
      );
      for (let rank = 0; rank < ranks; rank++) {
        const own = { q: await shard(q, rank), dout: await shard(dout, rank) };
        const optionsOf = ({ keyPositions }: { keyPositions: Piece[] }): AttentionOptions => ({
          ...rule,
          queryPositions: piecesOf(rank),
          keyPositions,
        });
        const merged = mergeAttention(
          keys.map((held) => attentionForward(own.q, held.k, held.v, optionsOf(held))),
        );
        await near(t, "out", await merged.out.data(), await shard(expected.out, rank));
        await near(t, "logSumExp", await merged.logSumExp.data(), await shard(expected.logSumExp, rank, 2));
        const dq = new Total(own.q.size);
        for (const held of keys) {
          const part = attentionBackward({ ...own, ...merged, k: held.k, v: held.v }, optionsOf(held));
          await Promise.all([dq.add(part.dq), held.dk.add(part.dk), held.dv.add(part.dv)]);
        }
        await near(t, "dq", dq.values, await shard(expected.dq, rank));
      }
      for (const [rank, { dk, dv }] of keys.entries()) {
        await near(t, "dk", dk.values, await shard(expected.dk, rank));
        await near(t, "dv", dv.values, await shard(expected.dv, rank));
      }
    });
  }
});

t.test("partial results in float32 keep a merged 16-bit result as exact as the whole", async (t) => {
  const [q16, k16, v16] = [q, k, v].map((x) => x.to("bfloat16")) as [Tensor, Tensor, Tensor];
  const expected = await attentionForward(q16, k16, v16, { implementation: "reference" }).out.data();
  const split = (options: AttentionOptions) =>
    mergeAttention(
      [0, 80, 160].map((begin) => {
        const keys = [k16, v16].map((x) => x.slice(1, begin, begin + 80)) as [Tensor, Tensor];
        return attentionForward(q16, ...keys, options);
      }),
    ).out;
  const wide = split({ outDtype: "float32" });
  t.equal(wide.dtype, "float32");
  t.equal(split({}).dtype, "bfloat16");
  const error = relativeError(await wide.to("bfloat16").data(), expected);
  const direct = relativeError(await attentionForward(q16, k16, v16).out.data(), expected);
  t.ok(error < 1.2 * direct, `${error} against ${direct}`);
});

t.test("merging", async (t) => {
  const part = (seed: number, statistic: number) => ({
    out: Tensor.normal([1, 3, 2, 8], { seed }),
    logSumExp: Tensor.from(new Float32Array(6).fill(statistic), [1, 2, 3]),
  });
  const [one, none] = [part(1, 0.5), part(2, Number.NEGATIVE_INFINITY)];
  const alone = mergeAttention([one]);
  t.strictSame(await alone.out.data(), await one.out.data(), "one part is itself");
  t.strictSame(
    await mergeAttention([none, one, none]).out.data(),
    await one.out.data(),
    "parts of no keys add nothing",
  );
  const empty = mergeAttention([none, none]);
  t.ok((await empty.out.data()).every((value) => value === 0));
  t.ok((await empty.logSumExp.data()).every((value) => value === Number.NEGATIVE_INFINITY));
  const half = mergeAttention([one, { ...part(3, 0), logSumExp: one.logSumExp }]);
  const other = await part(3, 0).out.data();
  const mean = ((await one.out.data()) as Float32Array).map((value, i) => (value + at(other, i)) / 2);
  await near(t, "two equal parts: their mean", mean, half.out);
  t.match((await half.logSumExp.data())[0], Math.fround(0.5 + Math.LN2));
});
