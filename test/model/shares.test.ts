// Parameters on their ranks: shares and wholes are each other's inverse, gradients the adjoint, beginnings the same.
import fc from "fast-check";
import {
  Device,
  gptParameters,
  initialParameters,
  layerParameters,
  type Placement,
  parameterCount,
  presets,
  serial,
  shareParameters,
  Tensor,
  wholeGradients,
  wholeParameters,
} from "longseq";
import t from "tap";
import { differing } from "../support/bits.ts";
import { at } from "../support/compare.ts";
import { refuses } from "../support/refusals.ts";

/** Some division of so many things: a portion each; where they are few, neighbours hold the same one. */
function portion(count: number, ranks: number, rank: number, isShared: boolean) {
  const end = Math.floor(((rank + 1) * count) / ranks);
  const begin = Math.floor((rank * count) / ranks);
  if (isShared && begin === end) return { begin, end: begin + 1 };
  return { begin, end };
}

/** Of ranks that divide heads and columns; keys and values that several of them need, each of those has. */
const placementOf = (ranks: number, rank: number): Placement => ({
  heads: (queryHeads, keyValueHeads) => ({
    query: portion(queryHeads, ranks, rank, false),
    keyValue: portion(keyValueHeads, ranks, rank, true),
  }),
  columns: (count) => portion(count, ranks, rank, false),
});

const shapes = fc.record({
  keyValueHeads: fc.integer({ min: 1, max: 5 }),
  group: fc.integer({ min: 1, max: 3 }),
  headDim: fc.constantFrom(1, 2),
  feedForward: fc.integer({ min: 1, max: 9 }),
  ranks: fc.integer({ min: 1, max: 7 }),
  kind: fc.constantFrom("gpt" as const, "llama" as const),
  bias: fc.boolean(),
});
type Shape = typeof shapes extends fc.Arbitrary<infer T> ? T : never;

function tableOf({ keyValueHeads, group, ranks, ...shape }: Shape) {
  const heads = keyValueHeads * group;
  const table = layerParameters({ hidden: 3, heads, keyValueHeads, ...shape });
  return { table, placements: Array.from({ length: ranks }, (_, rank) => placementOf(ranks, rank)) };
}

/** Whole tensors under the names that files have. */
function stored(table: ReturnType<typeof layerParameters>, seed: number) {
  const files = table.flatMap(({ stored, shape }) =>
    stored.map(({ name, rows }) => [name, shape.with(0, rows)] as const),
  );
  return Object.fromEntries(
    files.map(([name, shape], i) => [name, Tensor.normal(shape, { seed: seed + i })]),
  );
}

t.test("the shares' whole is what was shared", async (t) => {
  await fc.assert(
    fc.asyncProperty(shapes, async (shape) => {
      const { table, placements } = tableOf(shape);
      const whole = stored(table, 0);
      const ranks = placements.map((placement) => ({
        placement,
        tensors: shareParameters(table, whole, placement),
      }));
      const joined = wholeParameters(table, ranks);
      return (
        (await differing(joined, whole)).length === 0 &&
        Object.keys(joined).join() === Object.keys(whole).join()
      );
    }),
    { numRuns: 60 },
  );
  t.pass();
});

t.test("the whole gradient is the adjoint of sharing", async (t) => {
  const dot = async (a: Tensor, b: Tensor) => {
    const [x, y] = [await a.data(), await b.data()];
    return Array.from(x).reduce((sum, value, i) => sum + value * at(y, i), 0);
  };
  await fc.assert(
    fc.asyncProperty(shapes, async (shape) => {
      const { table, placements } = tableOf(shape);
      const direction = stored(table, 0);
      const ranks = placements.map((placement, rank) => ({
        placement,
        tensors: shareParameters(table, stored(table, 1000 * (rank + 1)), placement),
      }));
      const whole = wholeGradients(table, ranks);
      let [actual, expected, scale] = [0, 0, 0];
      for (const [name, gradient] of Object.entries(whole)) {
        actual += await dot(gradient, direction[name] as Tensor);
        scale += await dot(gradient, gradient);
      }
      for (const { placement, tensors } of ranks) {
        const moved = shareParameters(table, direction, placement);
        for (const [name, gradient] of Object.entries(tensors)) {
          expected += await dot(gradient, moved[name] as Tensor);
        }
      }
      return Math.abs(actual - expected) < 1e-5 * (scale + 1);
    }),
    { numRuns: 40 },
  );
  t.pass();
});

t.test("gradients are summed in float32; tensors may be on several devices", async (t) => {
  const table = layerParameters({ hidden: 8, heads: 1, bias: false });
  using other = new Device();
  const ranks = [Device.default, other].map((device) => ({
    placement: serial(1),
    tensors: Object.fromEntries(
      table.map(({ name, shape }) => {
        const size = shape.reduce((a, b) => a * b, 1);
        return [name, Tensor.from(new Float32Array(size).fill(256), shape, { dtype: "bfloat16", device })];
      }),
    ),
  }));
  const one = { ...ranks[0], placement: serial(1), tensors: shareParameters(table, ones(table), serial(1)) };
  const sums = wholeGradients(table, [...ranks, one]);
  const sum = sums["mlp_norm.weight"] as Tensor;
  t.equal(sum.dtype, "float32");
  t.equal(sum.device, Device.default);
  t.same(await sum.data(), new Float32Array(8).fill(513), "which bfloat16 does not hold");
});

function ones(table: ReturnType<typeof layerParameters>) {
  return Object.fromEntries(
    table.map(({ name, shape }) => {
      const size = shape.reduce((a, b) => a * b, 1);
      return [name, Tensor.from(new Float32Array(size).fill(1), shape, { dtype: "bfloat16" })];
    }),
  );
}

t.test("what parameters begin with does not depend on the number of ranks", async (t) => {
  const options = { kind: "llama", hidden: 16, heads: 4, keyValueHeads: 2, feedForward: 10 } as const;
  const table = gptParameters({ ...options, layers: 2, vocabulary: 11, bias: true });
  const whole = (ranks: number, seed: number) =>
    wholeParameters(
      table,
      Array.from({ length: ranks }, (_, rank) => {
        const placement = placementOf(ranks, rank);
        return { placement, tensors: initialParameters(table, placement, { seed, dtype: "bfloat16" }) };
      }),
    );
  const one = whole(1, 3);
  for (const ranks of [2, 3, 5]) t.strictSame(await differing(whole(ranks, 3), one), [], `${ranks} ranks`);
  const normal = Object.keys(one).filter((name) => !/norm|bias/.test(name));
  t.strictSame((await differing(whole(1, 4), one)).sort(), normal.sort(), "another seed, other numbers");
  t.notSame(
    await one["layers.0.qkv.weight"]?.data(),
    await one["layers.1.qkv.weight"]?.data(),
    "layers differ",
  );
  t.same(await one["final_norm.weight"]?.data(), new Float32Array(16).fill(1));
  t.same(await one["layers.1.mlp_gate.bias"]?.data(), new Float32Array(10));
});

t.test("how far the initial weights spread", async (t) => {
  const table = gptParameters({ hidden: 64, heads: 4, layers: 8, vocabulary: 1000, initialDeviation: 0.1 });
  const parameters = initialParameters(table, serial(1), { seed: 1 });
  const deviation = async (name: string) => {
    const values = (await parameters[name]?.data()) ?? [];
    return Math.sqrt(Array.from(values).reduce((sum, value) => sum + value ** 2, 0) / values.length);
  };
  for (const name of ["embedding.weight", "layers.3.qkv.weight", "layers.3.mlp_up.weight"]) {
    t.ok(Math.abs((await deviation(name)) / 0.1 - 1) < 0.03, name);
  }
  for (const name of ["layers.3.proj.weight", "layers.3.mlp_down.weight"]) {
    t.ok(Math.abs((await deviation(name)) / (0.1 / 4) - 1) < 0.05, name);
  }
});

t.test("presets have the sizes that they are named after", async (t) => {
  const billions = (name: keyof typeof presets) => parameterCount(gptParameters(presets[name])) / 1e9;
  const named = {
    GPT125M: 0.125,
    BERT1_2B: 1.3,
    GPT1_5B: 1.44,
    GPT2_7B: 2.7,
    GPT6_7B: 6.7,
    GPT13B: 12.9,
    GPT25B: 29.3,
    GPT30B: 29.3,
    GPT33B: 36.5,
    GPT145B: 146,
    GPT145B_2L: 4.3,
    GPT1T_1L: 9.2,
    LLAMA_7B: 6.74,
    LLAMA_13B: 13.02,
    LLAMA_70B: 68.98,
    LLAMA3_3B: 3.6,
  };
  for (const [name, size] of Object.entries(named)) {
    const found = billions(name as keyof typeof presets);
    t.ok(Math.abs(found / size - 1) < 0.02, `${name}: ${found}`);
  }
  for (const name of Object.keys(presets)) {
    const { heads, hidden } = presets[name as keyof typeof presets];
    t.equal((hidden / heads) % 8, 0, `${name}: heads that the kernels take`);
  }
});

t.test("presets stay what they are", async (t) => {
  t.ok(Object.isFrozen(presets));
  for (const [name, preset] of Object.entries(presets)) t.ok(Object.isFrozen(preset), name);
  const { rotary } = presets.LLAMA3_3B;
  t.ok(Object.isFrozen(rotary) && typeof rotary === "object", "and what is in them");
  t.ok(parameterCount(gptParameters({ ...presets.LLAMA3_3B, layers: 1 })) > 0);
});

t.test("what is refused", async (t) => {
  const options = { hidden: 16, heads: 4 };
  const table = layerParameters(options);
  const whole = stored(table, 0);
  const wrong = { ...whole, "proj.weight": Tensor.zeros([16, 8]) };
  const { "qkv.bias": _, ...missing } = whole;
  const placement = serial(1);
  const none: Placement = { ...placement, columns: () => ({ begin: 0, end: 0 }) };
  const shares = shareParameters(table, whole, none);
  refuses(t, [
    [() => layerParameters({ ...options, heads: 3 }), "ERR_OPTION", /heads is 3, expected a divisor of 16/],
    [() => layerParameters({ ...options, heads: 0 }), "ERR_OPTION", /heads is 0, expected an integer of 1/],
    [
      () => layerParameters({ ...options, keyValueHeads: 3 }),
      "ERR_OPTION",
      "layerParameters: keyValueHeads is 3, expected a divisor of 4 (heads)",
    ],
    [
      () => layerParameters({ ...options, hidden: "16" as never }),
      "ERR_OPTION",
      /hidden is string, expected/,
    ],
    [
      () => layerParameters({ ...options, kind: "bert" as never }),
      "ERR_OPTION",
      /kind is bert, expected "gpt"/,
    ],
    [() => layerParameters({ ...options, norm: "batch" as never }), "ERR_OPTION", /norm is batch/],
    [() => layerParameters({ ...options, activation: 1 as never }), "ERR_OPTION", /activation is 1/],
    [
      () => layerParameters({ ...options, bias: 1 as never }),
      "ERR_OPTION",
      /bias is number, expected a boolean/,
    ],
    [() => layerParameters({ ...options, rotary: 1 as never }), "ERR_OPTION", /rotary is number, expected/],
    [() => layerParameters({ ...options, eps: -1 }), "ERR_OPTION", /eps is -1, expected a finite number/],
    [() => layerParameters(null as never), "ERR_OPTION", /options is null, expected an object/],
    [() => gptParameters({ ...options, layers: 1.5, vocabulary: 9 }), "ERR_OPTION", /layers is 1.5/],
    [
      () => gptParameters({ ...options, layers: 1, vocabulary: Number.NaN }),
      "ERR_OPTION",
      /vocabulary is NaN/,
    ],
    [
      () => initialParameters(table, placement, { seed: -1 }),
      "ERR_OPTION",
      /seed is -1, expected 0 to 2\^32 - 1/,
    ],
    [
      () => initialParameters(table, placement, { dtype: "float64" as never }),
      "ERR_DTYPE",
      /dtype is float64/,
    ],
    [
      () => shareParameters(table, missing, placement),
      "ERR_OPTION",
      "shareParameters: there is no tensor qkv.bias",
    ],
    [
      () => shareParameters(table, wrong, placement),
      "ERR_SHAPE",
      "shareParameters: proj.weight has the shape [16, 8], expected [16, 16]",
    ],
    [
      () => shareParameters(table, null as never, placement),
      "ERR_OPTION",
      /tensors is null, expected an object/,
    ],
    [
      () => wholeParameters(table, [{ placement: none, tensors: shares }]),
      "ERR_OPTION",
      "wholeParameters: no rank holds [0, 64) of axis 0 of mlp_up.weight",
    ],
    [
      () => wholeGradients(table, [{ placement, tensors: shares }]),
      "ERR_SHAPE",
      /mlp_up.weight has the shape \[0, 16\]/,
    ],
    [() => wholeGradients(table, null as never), "ERR_OPTION", /ranks is null, expected an array/],
  ]);
});
