// Where tensors lie, and what lies beside them, makes no difference: not in one bit.
import fc from "fast-check";
import { attentionBackward, attentionForward, Scope, Tensor } from "longseq";
import t from "tap";
import { differing } from "../support/bits.ts";
import { implementations } from "../support/devices.ts";
import { headsFirst, inside, packed } from "../support/layouts.ts";
import { describe, type ProblemTensors, problems, solve, tensorsOf } from "../support/problems.ts";

type Relayout = (tensors: ProblemTensors) => Promise<Partial<ProblemTensors>>;

const layouts: Record<string, Relayout> = {
  "[B, H, S, D] in memory": async ({ q, k, v, dout }) => ({
    q: await headsFirst(q),
    k: await headsFirst(k),
    v: await headsFirst(v),
    dout: await headsFirst(dout),
  }),
  "within larger tensors": async ({ q, k, v, dout, dlogSumExp }) => ({
    q: await inside(q),
    k: await inside(k),
    v: await inside(v),
    dout: await inside(dout),
    ...(dlogSumExp && { dlogSumExp: await inside(dlogSumExp) }),
  }),
  "slices of one tensor": async ({ q, k, v }) => {
    const [q2, k2, v2] = q.shape[1] === k.shape[1] ? await packed([q, k, v]) : [q, ...(await packed([k, v]))];
    return { q: q2 as Tensor, k: k2 as Tensor, v: v2 as Tensor };
  },
};

for (const [name, relayout] of Object.entries(layouts)) {
  t.test(name, async (t) => {
    const property = fc.asyncProperty(
      problems,
      fc.constantFrom(...implementations),
      (problem, implementation) =>
        Scope.run(async () => {
          const tensors = tensorsOf(problem);
          tensors.options.implementation = implementation;
          const expected = solve(tensors);
          const actual = solve({ ...tensors, ...(await relayout(tensors)) });
          const found = await differing(actual, expected, problem.options);
          if (found.length > 0) throw new Error(`${implementation}: ${found} differ: ${describe(problem)}`);
        }),
    );
    await t.resolves(fc.assert(property, { numRuns: 30 }));
  });
}

t.test("the results of the forward pass as views", async (t) => {
  const tensors = [0, 1, 2, 3].map((seed) => Tensor.normal([2, 70, 3, 40], { seed, dtype: "bfloat16" }));
  const [q, k, v, dout] = tensors as [Tensor, Tensor, Tensor, Tensor];
  const options = { causal: true, deterministic: true };
  const { out, logSumExp } = attentionForward(q, k, v, options);
  const expected = attentionBackward({ q, k, v, dout, out, logSumExp }, options);
  const views = { out: await inside(out), logSumExp: await inside(logSumExp) };
  t.strictSame(
    await differing(attentionBackward({ q, k, v, dout, ...views }, options), expected, options),
    [],
  );
});

t.test("[T, H, D] is [1, T, H, D]", async (t) => {
  const property = fc.asyncProperty(problems, (problem) =>
    Scope.run(async () => {
      const tensors = tensorsOf({ ...problem, shape: { ...problem.shape, batch: 1 } });
      const flat = Object.entries(tensors).map(([name, value]) => [
        name,
        value instanceof Tensor ? value.reshape(value.shape.slice(1)) : value,
      ]);
      const results = solve(Object.fromEntries(flat));
      const found = await differing(results, solve(tensors), problem.options);
      if (found.length > 0) throw new Error(`${found} differ: ${describe(problem)}`);
    }),
  );
  await t.resolves(fc.assert(property, { numRuns: 30 }));
});

t.test("a batch entry and a group of heads alone give what they give among others", async (t) => {
  const shape = { batch: 3, queries: 77, keys: 130, heads: 6, keyHeads: 3, headDim: 72 };
  const options = { causal: true, softcap: 8 };
  const ofQueries = [shape.batch, shape.queries, shape.heads, shape.headDim];
  const ofKeys = [shape.batch, shape.keys, shape.keyHeads, shape.headDim];
  const q = Tensor.normal(ofQueries, { seed: 1 });
  const k = Tensor.normal(ofKeys, { seed: 2 });
  const v = Tensor.normal(ofKeys, { seed: 3 });
  const dout = Tensor.normal(ofQueries, { seed: 4 });
  const all = solve({ q, k, v, dout, options });
  for (let b = 0; b < shape.batch; b++) {
    for (let keyHead = 0; keyHead < shape.keyHeads; keyHead++) {
      const ofQuery = (x: Tensor) => x.slice(0, b, b + 1).slice(2, 2 * keyHead, 2 * keyHead + 2);
      const ofKey = (x: Tensor) => x.slice(0, b, b + 1).slice(2, keyHead, keyHead + 1);
      const alone = solve({ q: ofQuery(q), k: ofKey(k), v: ofKey(v), dout: ofQuery(dout), options });
      const expected = {
        out: ofQuery(all.out),
        logSumExp: all.logSumExp.slice(0, b, b + 1).slice(1, 2 * keyHead, 2 * keyHead + 2),
        dq: ofQuery(all.dq),
        dk: ofKey(all.dk),
        dv: ofKey(all.dv),
      };
      t.strictSame(await differing(alone, expected), [], `batch ${b}, key head ${keyHead}`);
    }
  }
});

t.test("memory that held NaN is written over", async (t) => {
  for (const [S, D] of [
    [65, 40],
    [700, 72],
  ] as const) {
    const shape = [1, S, 2, D];
    const [q, dout] = [Tensor.normal(shape, { seed: 5 }), Tensor.normal(shape, { seed: 6 })];
    const expected = solve({ q, k: q, v: q, dout, options: { window: [90, 3] } });
    const poison = Tensor.from(new Float32Array(S * 2 * D).fill(Number.NaN), shape);
    for (const tensor of Object.values(
      solve({ q: poison, k: poison, v: poison, dout: poison, options: {} }),
    )) {
      t.ok((await tensor.data()).some(Number.isNaN));
      tensor.dispose();
    }
    const again = solve({ q, k: q, v: q, dout, options: { window: [90, 3] } });
    t.strictSame(await differing(again, expected), [], `S ${S}`);
  }
});
