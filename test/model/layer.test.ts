// The transformer layer: its gradients, its options, what it saves; that it is right is `longseq verify`'s vectors.
import {
  AttentionMask,
  Device,
  type LayerForwardOptions,
  type LayerOptions,
  layerParameters,
  type ModuleOptions,
  type Recompute,
  SequenceShard,
  type Strategy,
  serial,
  Tape,
  Tensor,
  TransformerLayer,
} from "longseq";
import t from "tap";
import { differing } from "../support/bits.ts";
import { at, relativeError } from "../support/compare.ts";
import { refuses } from "../support/refusals.ts";

const gpt: LayerOptions = { hidden: 16, heads: 2, feedForward: 24 };
const llama: LayerOptions = { kind: "llama", hidden: 32, heads: 4, keyValueHeads: 2, feedForward: 24 };
const kinds = { gpt, llama };

/** Numbers of which none is the one that it begins with, so that every gradient matters. */
function parametersOf(options: LayerOptions, dtype: "float32" | "bfloat16" = "float32") {
  const table = layerParameters(options);
  return Object.fromEntries(
    table.map(({ name, shape }, i) => {
      const isNorm = name.includes("norm.weight");
      return [name, Tensor.normal(shape, { seed: i, std: 0.2, mean: isNorm ? 1 : 0, dtype })];
    }),
  );
}

interface Passed {
  y: Tensor;
  dx: Tensor;
  gradients: Record<string, Tensor>;
}

/** Forward and backward, from the same numbers each time. */
function pass(
  options: LayerOptions,
  strategy: Strategy,
  { parameters = parametersOf(options), ...module }: ModuleOptions = {},
  forward: LayerForwardOptions = {},
): Passed {
  const layer = new TransformerLayer(options, strategy, { parameters, ...module });
  const like = { dtype: module.dtype ?? "float32" };
  const x = Tensor.normal([2, strategy.shard.length, options.hidden], { seed: 100, ...like });
  const tensors = Object.values(parameters);
  using tape = new Tape();
  tape.watch(x, ...tensors);
  const y = layer.forward(x, forward);
  const dy = Tensor.normal(y.shape, { seed: 101, ...like });
  const [dx, ...gradients] = tape.backward(y, dy, [x, ...tensors]) as [Tensor, ...Tensor[]];
  const names = Object.keys(parameters);
  return { y, dx, gradients: Object.fromEntries(names.map((name, i) => [name, gradients[i] as Tensor])) };
}

const dot = (a: ArrayLike<number>, b: ArrayLike<number>) =>
  Array.from(a).reduce((sum, value, i) => sum + value * at(b, i), 0);

async function moved(tensor: Tensor, direction: Tensor, by: number): Promise<Tensor> {
  const [values, steps] = [await tensor.data(), await direction.data()];
  return Tensor.from(
    Array.from(values, (value, i) => value + by * at(steps, i)),
    tensor.shape,
  );
}

const slopes = Tensor.from([0.5, 0.25, 0.125, 0.0625], [4]);
const options: Record<string, [LayerOptions, LayerForwardOptions]> = {
  gpt: [gpt, {}],
  llama: [llama, {}],
  "documents with positions of their own": [llama, { cuSeqlens: [0, 3, 7], resetPositions: true }],
  "window, softcap, ALiBi": [
    { ...llama, rotary: false },
    { window: [3, 0], softcap: 5, alibiSlopes: slopes },
  ],
  "not causal, interleaved, heads of another size": [
    { ...gpt, headDim: 16, rotary: { interleaved: true, rotaryDim: 8 }, activation: "swiglu" },
    { causal: false },
  ],
};

for (const [name, [shape, forward]] of Object.entries(options)) {
  t.test(`gradients by central differences: ${name}`, async (t) => {
    const strategy = serial(7);
    const parameters = parametersOf(shape);
    const x = Tensor.normal([2, 7, shape.hidden], { seed: 100 });
    const dy = await Tensor.normal(x.shape, { seed: 101 }).data();
    const { dx, gradients } = pass(shape, strategy, { parameters }, forward);
    const step = 1 / 128;
    for (const seed of [1, 2, 3]) {
      const entries = Object.entries({ x, ...parameters });
      const directions = entries.map(([, tensor], i) =>
        Tensor.normal(tensor.shape, { seed: 1000 * seed + i, std: 0.1 }),
      );
      const objective = async (by: number) => {
        const there = await Promise.all(
          entries.map(async ([key, tensor], i) => {
            return [key, await moved(tensor, directions[i] as Tensor, by)] as const;
          }),
        );
        const { x, ...parameters } = Object.fromEntries(there) as { x: Tensor; [name: string]: Tensor };
        const layer = new TransformerLayer(shape, strategy, { parameters });
        return dot(await layer.forward(x, forward).data(), dy);
      };
      const expected = ((await objective(step)) - (await objective(-step))) / (2 * step);
      let [actual, scale] = [0, 0];
      for (const [i, [key]] of entries.entries()) {
        const gradient = await (key === "x" ? dx : (gradients[key] as Tensor)).data();
        actual += dot(gradient, (await directions[i]?.data()) ?? []);
        scale += dot(gradient, gradient);
      }
      const error = Math.abs(actual - expected) / (0.1 * Math.sqrt(scale));
      t.ok(error < 1e-3, `${actual} and ${expected}: ${error}`);
    }
  });
}

t.test("documents that lie together are documents alone, with positions of their own", async (t) => {
  const cuSeqlens = [0, 3, 3, 8];
  const parameters = parametersOf(llama);
  const layer = (length: number) => new TransformerLayer(llama, serial(length), { parameters });
  const x = Tensor.normal([1, 8, llama.hidden], { seed: 1 });
  const together = layer(8).forward(x, { cuSeqlens, resetPositions: true });
  for (const [begin, end] of [
    [0, 3],
    [3, 8],
  ] as const) {
    const alone = layer(end - begin).forward(x.slice(1, begin, end));
    const error = relativeError(await together.slice(1, begin, end).data(), await alone.data());
    t.ok(error < 1e-5, `${begin}: ${error}`);
  }
  const through = layer(8).forward(x, { cuSeqlens });
  t.ok(relativeError(await through.data(), await together.data()) < 1e-5, "rotary positions are relative");
});

t.test("attention gets the options, and the slopes of the heads held", async (t) => {
  const given: unknown[] = [];
  const whole = serial(6);
  const mask = AttentionMask.causal(6);
  const second: Strategy = {
    ...whole,
    heads: () => ({ query: { begin: 2, end: 4 }, keyValue: { begin: 1, end: 2 } }),
    attend: (q, k, v, { alibiSlopes, ...others } = {}) => {
      given.push([q.shape, k.shape, alibiSlopes?.shape, others]);
      return whole.attend(q, k, v, { ...others, ...(alibiSlopes && { alibiSlopes }) });
    },
  };
  const layer = new TransformerLayer(llama, second, { seed: 1 });
  t.same(layer.parameters["qkv.weight"]?.shape, [4 * 8, 32]);
  t.same(layer.parameters["proj.weight"]?.shape, [32, 2 * 8]);
  const x = Tensor.normal([1, 6, 32]);
  layer.forward(x, { alibiSlopes: slopes, mask, softcap: 3, gradients: {} });
  layer.forward(x, { causal: false });
  t.same(given, [
    [[1, 6, 2, 8], [1, 6, 1, 8], [2], { mask, softcap: 3, causal: true }],
    [[1, 6, 2, 8], [1, 6, 1, 8], undefined, { causal: false }],
  ]);
});

t.test("rotary positions are those of the strategy's rows", async (t) => {
  const parameters = parametersOf(llama);
  const shard = SequenceShard.zigzag(8, 2, 0);
  const one = serial(shard.size);
  const zigzag: Strategy = { ...one, shard, inner: shard };
  const whole = new TransformerLayer(llama, serial(8), { parameters });
  const part = new TransformerLayer(llama, zigzag, { parameters });
  const x = Tensor.normal([1, 8, 32], { seed: 1 });
  // Queries and keys of these rows only, at the positions of the whole sequence.
  const mask = AttentionMask.from(8, 8, (query, key) => [0, 1, 6, 7].includes(key) && key <= query);
  const expected = shard.take(whole.forward(x, { mask }));
  const actual = part.forward(shard.take(x));
  t.ok(relativeError(await actual.data(), await expected.data()) < 1e-5);
});

for (const [kind, shape] of Object.entries(kinds)) {
  t.test(`gradients are summed where they are asked to be: ${kind}`, async (t) => {
    for (const dtype of ["float32", "bfloat16"] as const) {
      const parameters = parametersOf(shape, dtype);
      const plain = pass(shape, serial(5), { parameters, dtype });
      const sums = Object.fromEntries(
        Object.entries(parameters).map(([name, { shape }]) => {
          const size = shape.reduce((a, b) => a * b, 1);
          return [name, Tensor.from(new Float32Array(size).fill(1), shape)];
        }),
      );
      const summed = pass(shape, serial(5), { parameters, dtype }, { gradients: sums });
      t.strictSame(await differing({ y: summed.y, dx: summed.dx }, { y: plain.y, dx: plain.dx }), []);
      for (const [name, sum] of Object.entries(sums)) {
        const gradient = (await plain.gradients[name]?.data()) ?? [];
        const expected = Array.from(gradient, (value) => 1 + value);
        const error = relativeError(await sum.data(), expected);
        t.ok(error < (dtype === "float32" ? 1e-6 : 4e-3), `${name}, ${dtype}: ${error}`);
        t.ok(
          (await summed.gradients[name]?.data())?.every((value) => value === 0),
          `${name}: zeros`,
        );
      }
    }
  });
}

const modes = ["pointwise", "attention", "full"] as const;

for (const [name, [shape, forward]] of Object.entries(options)) {
  t.test(`what is computed again has the same bits: ${name}`, async (t) => {
    for (const dtype of ["float32", "bfloat16"] as const) {
      const parameters = parametersOf(shape, dtype);
      const plain = pass(shape, serial(7), { parameters, dtype }, forward);
      for (const recompute of modes) {
        const again = pass(shape, serial(7), { parameters, dtype, recompute }, forward);
        t.strictSame(
          await differing(
            { y: again.y, dx: again.dx, ...again.gradients },
            { y: plain.y, dx: plain.dx, ...plain.gradients },
          ),
          [],
          `${recompute}, ${dtype}`,
        );
      }
    }
  });
}

t.test("gradients are summed once where they are made again", async (t) => {
  const parameters = parametersOf(gpt);
  const { gradients, dx } = pass(gpt, serial(5), { parameters });
  for (const recompute of modes) {
    const sums = Object.fromEntries(
      Object.entries(parameters).map(([name, { shape }]) => [name, Tensor.zeros(shape)]),
    );
    const again = pass(gpt, serial(5), { parameters, recompute }, { gradients: sums });
    t.strictSame(await differing({ ...sums, dx: again.dx }, { ...gradients, dx }), [], recompute);
  }
});

t.test("attention runs once where it is kept, twice where all is computed again", async (t) => {
  const whole = serial(6);
  for (const [recompute, expected] of [
    ["none", 1],
    ["attention", 1],
    ["full", 2],
  ] as const) {
    let runs = 0;
    const counting: Strategy = {
      ...whole,
      attend: (q, k, v, options, keep = (forward) => forward()) =>
        whole.attend(q, k, v, options, (forward) =>
          keep(() => {
            runs++;
            return forward();
          }),
        ),
    };
    pass(llama, counting, { recompute });
    t.equal(runs, expected, recompute);
  }
});

t.test("what a layer keeps, and that it lets it go", async (t) => {
  using device = new Device();
  const shape: LayerOptions = { hidden: 64, heads: 4 };
  const length = 512;
  const parameters = new TransformerLayer(shape, serial(length), { device }).parameters;
  const row = 4 * shape.hidden * length;
  /** Bytes between the passes, in x's. */
  const kept = async (recompute: Recompute, isRun: boolean) => {
    const layer = new TransformerLayer(shape, serial(length), { parameters, recompute });
    using x = Tensor.normal([1, length, shape.hidden], { device });
    const liveBytes = async () => {
      // What is queued holds its tensors.
      await device.synchronize();
      return device.memory().liveBytes;
    };
    const before = await liveBytes();
    using tape = new Tape();
    tape.watch(x, ...Object.values(parameters));
    using y = layer.forward(x);
    const bytes = (await liveBytes()) - before - y.bytes;
    if (isRun) {
      using dy = Tensor.normal(y.shape, { device });
      for (const gradient of tape.backward(y, dy, [x])) gradient.dispose();
    }
    tape.dispose();
    y.dispose();
    t.equal(await liveBytes(), before, `${recompute}: nothing is left`);
    return bytes / row;
  };
  for (const isRun of [true, false]) {
    const { none, pointwise, attention, full } = {
      none: await kept("none", isRun),
      pointwise: await kept("pointwise", isRun),
      attention: await kept("attention", isRun),
      full: await kept("full", isRun),
    };
    // y, which is the caller's, is not counted, nor x.
    t.ok(full < 0.1, `full keeps nothing more: ${full}`);
    t.ok(attention > 1 && attention < 1.2, `attention's result, and a number a row and head: ${attention}`);
    t.ok(none > 10, `${none}`);
    t.ok(pointwise < none - 5.9, `without two norms' results and the activation's: ${pointwise}`);
  }
});

t.test("the MLP in tiles", async (t) => {
  for (const [kind, shape] of Object.entries(kinds)) {
    for (const recompute of ["none", ...modes] as const) {
      const plain = pass(shape, serial(7));
      const tiles = pass(shape, serial(7), { mlpTiles: 3, recompute });
      const tensors = { y: tiles.y, dx: tiles.dx, ...tiles.gradients };
      for (const [name, tensor] of Object.entries({ y: plain.y, dx: plain.dx, ...plain.gradients })) {
        const other = tensors[name as keyof typeof tensors] as Tensor;
        const error = relativeError(await other.data(), await tensor.data());
        t.ok(error < 1e-6, `${kind}, ${recompute}, ${name}: ${error}`);
      }
    }
  }
});

t.test("an empty sequence", async (t) => {
  for (const shape of Object.values(kinds)) {
    const { y, dx, gradients } = pass(shape, serial(0));
    t.same(
      [y.shape, dx.shape],
      [
        [2, 0, shape.hidden],
        [2, 0, shape.hidden],
      ],
    );
    t.ok((await gradients["mlp_down.weight"]?.data())?.every((value) => value === 0));
  }
});

t.test("what is refused", async (t) => {
  const layer = new TransformerLayer(gpt, serial(4));
  const x = Tensor.zeros([1, 4, 16]);
  const gone = Tensor.zeros([1, 4, 16]);
  gone.dispose();
  using other = new Device();
  const { "proj.bias": _, ...missing } = layer.parameters;
  const sums = { "proj.weight": Tensor.zeros([16, 8]) };
  const { parameters } = layer;
  refuses(t, [
    [() => new TransformerLayer({ ...gpt, heads: 3 }, serial(4)), "ERR_OPTION", /heads is 3/],
    [
      () => new TransformerLayer({ hidden: 60, heads: 3 }, serial(4)),
      "ERR_OPTION",
      "transformerLayer: headDim is 20, expected a multiple of 8 up to 256 (default: hidden over heads)",
    ],
    [() => new TransformerLayer({ ...gpt, headDim: 264 }, serial(4)), "ERR_OPTION", /headDim is 264/],
    [
      () => new TransformerLayer(gpt, serial(4), { recompute: "all" as never }),
      "ERR_OPTION",
      'transformerLayer: recompute is all, expected "none" or "pointwise" or "attention" or "full"',
    ],
    [() => new TransformerLayer(gpt, serial(4), { mlpTiles: 0 }), "ERR_OPTION", /mlpTiles is 0, expected/],
    [
      () =>
        new TransformerLayer(
          gpt,
          { ...serial(4), name: "megatron", inner: SequenceShard.whole(8) },
          { mlpTiles: 2 },
        ),
      "ERR_OPTION",
      "transformerLayer: mlpTiles is 2, expected 1 (the strategy is megatron)",
    ],
    [
      () => new TransformerLayer(gpt, serial(4), { parameters: missing }),
      "ERR_OPTION",
      "transformerLayer: there is no tensor proj.bias",
    ],
    [
      () => new TransformerLayer({ ...gpt, feedForward: 8 }, serial(4), { parameters }),
      "ERR_SHAPE",
      "transformerLayer: mlp_up.weight has the shape [24, 16], expected [8, 16]",
    ],
    [() => new TransformerLayer(gpt, serial(4), null as never), "ERR_OPTION", /module: options is null/],
    [
      () => new TransformerLayer(gpt, serial(4), { parameters: 1 as never }),
      "ERR_OPTION",
      /parameters is number/,
    ],
    [
      () => layer.forward(Tensor.zeros([1, 5, 16])),
      "ERR_SHAPE",
      "transformerLayer: x has the shape [1, 5, 16], expected [B, 4, 16]",
    ],
    [() => layer.forward(Tensor.zeros([4, 16])), "ERR_SHAPE", /x has the shape/],
    [
      () => layer.forward(x.to("bfloat16")),
      "ERR_DTYPE",
      "transformerLayer: x is bfloat16, expected float32 (the parameters')",
    ],
    [() => layer.forward(Tensor.zeros([1, 4, 16], { device: other })), "ERR_DEVICE", /another device/],
    [() => layer.forward(gone), "ERR_DISPOSED", /disposed/],
    [() => layer.forward(null as never), "ERR_OPTION", /x is null, expected a Tensor/],
    [() => layer.forward(x, null as never), "ERR_OPTION", /options is null, expected an object/],
    [
      () => layer.forward(x, { alibiSlopes: Tensor.zeros([3]) }),
      "ERR_SHAPE",
      /alibiSlopes has the shape \[3\], expected \[2\]/,
    ],
    [() => layer.forward(x, { causal: 1 as never }), "ERR_OPTION", /causal is number/],
    [() => layer.forward(x, { cuSeqlens: [0, 3] }), "ERR_OPTION", /cuSeqlens/],
    [
      () => layer.forward(x, { resetPositions: 1 as never }),
      "ERR_OPTION",
      /resetPositions is number, expected a boolean/,
    ],
    [() => layer.forward(x, { gradients: sums }), "ERR_SHAPE", /the sum of proj.weight has the shape/],
    [
      () => layer.forward(x, { gradients: { proj: x } }),
      "ERR_OPTION",
      "transformerLayer: gradients has proj, which is no parameter",
    ],
    [() => layer.forward(x, { gradients: [] as never }), "ERR_OPTION", /gradients is an array/],
    [
      () => layer.forward(x, { gradients: { "mlp_norm.bias": 1 as never } }),
      "ERR_OPTION",
      /is number, expected a Tensor/,
    ],
  ]);
});
