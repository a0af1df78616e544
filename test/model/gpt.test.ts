// The model: its loss against its logits, what several ranks sum, files, positions; that it is right is `longseq
// verify`'s vectors.
import { join } from "node:path";
import {
  add,
  crossEntropy,
  Device,
  GPT,
  type GptLossOptions,
  type GptOptions,
  gptParameters,
  initialParameters,
  loadSafetensors,
  type PositionEmbedding,
  presets,
  Scope,
  type Strategy,
  saveSafetensors,
  serial,
  shareParameters,
  Tape,
  Tensor,
  TransformerLayer,
  wholeParameters,
} from "longseq";
import t from "tap";
import { differing } from "../support/bits.ts";
import { at, relativeError } from "../support/compare.ts";
import { refuses } from "../support/refusals.ts";

const gpt: GptOptions = { hidden: 16, heads: 2, feedForward: 24, layers: 2, vocabulary: 13, maxPositions: 9 };
const llama: GptOptions = { ...gpt, kind: "llama", keyValueHeads: 1 };
const kinds = { gpt, llama };

const int32 = (values: readonly number[] | Int32Array, batch = 1) =>
  Tensor.from(Int32Array.from(values), [batch, values.length / batch]);
const tokens = int32([1, 5, 0, 12, 7, 7, 3, 2, 9, 1, 4, 4], 2);
const targets = int32([5, 0, -100, 7, 7, 3, 2, 9, 1, 4, 4, -100], 2);
const one = Tensor.from([1], []);

interface Passed {
  loss: Tensor;
  gradients: Record<string, Tensor>;
}

function pass(model: GPT, options: GptLossOptions = {}): Passed {
  const parameters = Object.values(model.parameters);
  using tape = new Tape();
  tape.watch(...parameters);
  const loss = model.loss(tokens, targets, options);
  const gradients = tape.backward(loss, one, parameters);
  const names = Object.keys(model.parameters);
  return { loss, gradients: Object.fromEntries(names.map((name, i) => [name, gradients[i] as Tensor])) };
}

for (const [kind, shape] of Object.entries(kinds)) {
  t.test(`the loss is the cross entropy of the logits: ${kind}`, async (t) => {
    for (const dtype of ["float32", "bfloat16"] as const) {
      const model = new GPT(shape, serial(6), { seed: 1, dtype });
      const { loss, gradients } = pass(model);
      const parameters = Object.values(model.parameters);
      using tape = new Tape();
      tape.watch(...parameters);
      const expected = crossEntropy(model.logits(tokens), targets);
      const wanted = tape.backward(expected, one, parameters);
      const bound = dtype === "float32" ? 1e-5 : 2e-2;
      t.same([loss.shape, loss.dtype], [[], "float32"]);
      t.ok(relativeError(await loss.data(), await expected.data()) < bound / 10);
      for (const [i, [name, gradient]] of Object.entries(gradients).entries()) {
        const error = relativeError(await gradient.data(), (await wanted[i]?.data()) ?? []);
        t.ok(error < bound, `${name}, ${dtype}: ${error}`);
      }
      const others = int32([5, 0, 99, 7, 7, 3, 2, 9, 1, 4, 4, 99], 2);
      t.same(await model.loss(tokens, others, { ignoreIndex: 99 }).data(), await loss.data());
    }
  });

  t.test(`the head's and the table's gradient by central differences: ${kind}`, async (t) => {
    const strategy = serial(6);
    for (const tiedEmbeddings of [true, false]) {
      const options = { ...shape, tiedEmbeddings, initialDeviation: 0.3 };
      const { parameters } = new GPT(options, strategy, { seed: 1 });
      t.equal("head.weight" in parameters, !tiedEmbeddings);
      const { gradients } = pass(new GPT(options, strategy, { parameters }));
      for (const [seed, [name, tensor]] of Object.entries(parameters).entries()) {
        if (!/embedding|position|head|final/.test(name)) continue;
        const direction = await Tensor.normal(tensor.shape, { seed, std: 0.1 }).data();
        const values = await tensor.data();
        const objective = async (by: number) => {
          const there = Tensor.from(
            Array.from(values, (value, i) => value + by * at(direction, i)),
            tensor.shape,
          );
          const model = new GPT(options, strategy, { parameters: { ...parameters, [name]: there } });
          return at(await model.loss(tokens, targets).data(), 0);
        };
        const expected = (await objective(1 / 16)) - (await objective(-1 / 16));
        const gradient = (await gradients[name]?.data()) ?? [];
        const actual = Array.from(gradient).reduce((sum, value, i) => sum + value * at(direction, i), 0) / 8;
        const scale = Math.sqrt(Array.from(gradient).reduce((sum, value) => sum + value ** 2, 0)) / 80;
        t.ok(Math.abs(actual - expected) < 5e-3 * scale, `${name}: ${actual} and ${expected}`);
      }
    }
  });

  t.test(`computed again, and summed in float32: ${kind}`, async (t) => {
    for (const dtype of ["float32", "bfloat16"] as const) {
      const { parameters } = new GPT(shape, serial(6), { seed: 1, dtype });
      const { loss, gradients } = pass(new GPT(shape, serial(6), { parameters }));
      for (const recompute of ["attention", "full"] as const) {
        const again = pass(new GPT(shape, serial(6), { parameters, recompute }));
        const differ = await differing({ loss: again.loss, ...again.gradients }, { loss, ...gradients });
        t.strictSame(differ, [], `${recompute}, ${dtype}`);
      }
      const sums = Object.fromEntries(
        Object.entries(parameters).map(([name, { shape }]) => [name, Tensor.zeros(shape)]),
      );
      const model = new GPT(shape, serial(6), { parameters, recompute: "attention" });
      for (const _ of [1, 2]) {
        const { gradients } = pass(model, { gradients: sums });
        t.ok((await gradients["embedding.weight"]?.data())?.every((value) => value === 0));
      }
      for (const [name, sum] of Object.entries(sums)) {
        const twice = Array.from((await gradients[name]?.data()) ?? [], (value) => 2 * value);
        const error = relativeError(await sum.data(), twice);
        t.ok(error < (dtype === "float32" ? 1e-6 : 6e-3), `${name}, ${dtype}: ${error}`);
      }
    }
  });
}

t.test("the mean is over the targets of all ranks", async (t) => {
  const alone = pass(new GPT(gpt, serial(6), { seed: 1 }));
  // As on two ranks that happen to have the same rows.
  const twice: Strategy = { ...serial(6), sum: (x) => add(x, x) };
  const both = pass(new GPT(gpt, twice, { seed: 1 }));
  t.ok(relativeError(await both.loss.data(), await alone.loss.data()) < 1e-6);
  for (const [name, gradient] of Object.entries(both.gradients)) {
    const half = Array.from((await alone.gradients[name]?.data()) ?? [], (value) => value / 2);
    t.ok(relativeError(await gradient.data(), half) < 1e-5, `${name}: each rank has its part`);
  }
  const ignored = new GPT(gpt, serial(6), { seed: 1 }).loss(tokens, int32(new Array(12).fill(-100), 2));
  t.same(await ignored.data(), [0], "no targets, no loss");
});

t.test("documents that lie together are documents alone", async (t) => {
  const cuSeqlens = [0, 4, 12];
  const values = Int32Array.from({ length: 12 }, (_, i) => (7 * i) % 13);
  for (const [kind, shape] of Object.entries(kinds)) {
    const { parameters } = new GPT(shape, serial(1), { seed: 1 });
    const logits = (begin: number, end: number, options: GptLossOptions = {}) =>
      new GPT(shape, serial(end - begin), { parameters }).logits(int32(values.slice(begin, end)), options);
    const together = logits(0, 12, { cuSeqlens, resetPositions: true });
    for (const [begin, end] of [
      [0, 4],
      [4, 12],
    ] as const) {
      const actual = await together.slice(1, begin, end).data();
      const error = relativeError(actual, await logits(begin, end).data());
      t.ok(error < 1e-5, `${kind}, from ${begin}: ${error}`);
    }
  }
});

t.test("weights go through a file, and into another dtype", async (t) => {
  const folder = t.testdir({});
  for (const [kind, shape] of Object.entries(kinds)) {
    const strategy = serial(6);
    const table = gptParameters(shape);
    const model = new GPT(shape, strategy, { seed: 1 });
    const whole = wholeParameters(table, [{ placement: strategy, tensors: model.parameters }]);
    const path = join(folder, `${kind}.safetensors`);
    await saveSafetensors(path, whole);
    const { tensors } = await loadSafetensors(path);
    t.equal("layers.1.mlp_gate.weight" in tensors, kind === "llama");
    const again = new GPT(shape, strategy, { parameters: shareParameters(table, tensors, strategy) });
    t.strictSame(await differing({ y: again.logits(tokens) }, { y: model.logits(tokens) }), []);
    const parameters = shareParameters(table, tensors, strategy, { dtype: "bfloat16" });
    t.equal(new GPT(shape, strategy, { parameters }).logits(tokens).dtype, "bfloat16");
  }
});

t.test("positions that the strategy holds in its own way", async (t) => {
  const asked: unknown[] = [];
  const positions: PositionEmbedding = {
    held: (count) => ({ begin: 2, end: count }),
    rows: (table, count, positionsOf, batch) => {
      asked.push([table.shape, count, Array.from(positionsOf()), batch]);
      return Tensor.zeros([batch, positionsOf(0).length, 16]);
    },
  };
  const model = new GPT(gpt, { ...serial(6), positions }, { seed: 1 });
  model.logits(tokens);
  model.logits(tokens, { cuSeqlens: [0, 2, 6], resetPositions: true });
  t.same(asked, [
    [[7, 16], 9, [0, 1, 2, 3, 4, 5], 2],
    [[7, 16], 9, [0, 1, 0, 1, 2, 3], 2],
  ]);
});

t.test("a model without layers, and one of a preset", async (t) => {
  const none = new GPT({ ...llama, layers: 0 }, serial(6), { seed: 1 });
  t.same(none.logits(tokens).shape, [2, 6, 13]);
  const small = { ...presets.AURORA_2B, hidden: 128, layers: 1, feedForward: 8, vocabulary: 13 };
  const model = new GPT(small, serial(6), { parameters: initialParameters(gptParameters(small), serial(6)) });
  t.ok(
    Math.abs(at(await model.loss(tokens, targets).data(), 0) - Math.log(13)) < 0.1,
    "it knows nothing yet",
  );
  t.equal(model.configuration.keyValueHeads, 4);
});

t.test("what is refused", async (t) => {
  const model = new GPT(gpt, serial(6), { seed: 1 });
  const long = new GPT(gpt, serial(10), { seed: 1 });
  const { parameters } = model;
  refuses(t, [
    [() => new GPT({ ...gpt, layers: -1 }, serial(6)), "ERR_OPTION", /gpt: layers is -1, expected/],
    [() => new GPT({ ...gpt, vocabulary: 0 }, serial(6)), "ERR_OPTION", /vocabulary is 0/],
    [() => new GPT({ ...gpt, maxPositions: 1.5 }, serial(6)), "ERR_OPTION", /maxPositions is 1.5/],
    [
      () => new GPT({ ...gpt, tiedEmbeddings: 1 as never }, serial(6)),
      "ERR_OPTION",
      /tiedEmbeddings is number/,
    ],
    [() => new GPT(gpt, serial(6), { recompute: 1 as never }), "ERR_OPTION", /recompute is 1/],
    [
      () => new GPT({ ...gpt, layers: 3 }, serial(6), { parameters }),
      "ERR_OPTION",
      "gpt: there is no tensor layers.2.input_norm.weight",
    ],
    [
      () => new GPT({ ...gpt, vocabulary: 14 }, serial(6), { parameters }),
      "ERR_SHAPE",
      /gpt: embedding.weight has/,
    ],
    [() => model.logits(int32([1, 2, 3])), "ERR_SHAPE", "gpt: tokens has the shape [1, 3], expected [B, 6]"],
    [() => model.logits(Tensor.zeros([2, 6])), "ERR_DTYPE", "gpt: tokens is float32, expected int32"],
    [() => model.logits(null as never), "ERR_OPTION", /tokens is null, expected a Tensor/],
    [() => model.logits(tokens, null as never), "ERR_OPTION", /options is null, expected an object/],
    [
      () => model.loss(tokens, int32([1, 2, 3])),
      "ERR_SHAPE",
      /targets has the shape \[1, 3\], expected \[2, 6\]/,
    ],
    [() => model.loss(tokens, targets, { ignoreIndex: 0.5 }), "ERR_OPTION", /ignoreIndex is 0.5/],
    [() => model.loss(tokens, targets.to("uint8")), "ERR_DTYPE", "gpt: targets is uint8, expected int32"],
    [
      () => model.loss(tokens, targets.toDevice(new Device())),
      "ERR_DEVICE",
      "gpt: targets is on another device than the parameters",
    ],
    [
      () => model.logits(tokens, { resetPositions: true }),
      "ERR_OPTION",
      "transformerLayer: resetPositions is given without cuSeqlens, whose documents count",
    ],
    [
      () => new GPT(gpt, serial(6), { parameters, dtype: "bfloat16" }),
      "ERR_DTYPE",
      "gpt: embedding.weight is float32, expected bfloat16 (dtype)",
    ],
    [() => new GPT(gpt, serial(6), { dtype: "int32" }), "ERR_DTYPE", /dtype is int32, expected float32, bfl/],
    [() => new GPT(gpt, undefined as never), "ERR_OPTION", "gpt: strategy is undefined, expected a Strategy"],
    [
      () => new GPT({ ...llama, rotary: { rotaryDim: 10 } }, serial(6)),
      "ERR_OPTION",
      "transformerLayer: rotary.rotaryDim is 10, expected at most 8 (headDim)",
    ],
    [() => new GPT({ ...llama, rotary: { scaling: null as never } }, serial(6)), "ERR_OPTION", /scaling/],
    [
      () => new GPT({ ...llama, rotary: { interleaved: 1 as never } }, serial(6)),
      "ERR_OPTION",
      /interleaved/,
    ],
    [() => new GPT({ ...llama, rotary: { base: -1 } }, serial(6)), "ERR_OPTION", /base is -1/],
    [() => model.loss(tokens, null as never), "ERR_OPTION", /targets is null, expected a Tensor/],
    [
      () => long.logits(int32(new Array(10).fill(1))),
      "ERR_OPTION",
      "gpt: a row is at position 9, expected 0 to 8",
    ],
    [
      () => model.loss(tokens, targets, { gradients: { "qkv.weight": one } }),
      "ERR_OPTION",
      "gpt: gradients has qkv.weight, which is no parameter",
    ],
    [
      () => model.loss(tokens, targets, { gradients: { "layers.1.proj.bias": one } }),
      "ERR_SHAPE",
      /the sum of layers.1.proj.bias has the shape \[\], expected \[16\]/,
    ],
  ]);
});

t.test("a model that cannot be leaves nothing behind", async (t) => {
  using device = new Device();
  for (const module of [{ mlpTiles: 0 }, { recompute: "x" as never }]) {
    t.throws(() => new GPT(gpt, serial(6), { device, ...module }), { code: "ERR_OPTION" });
  }
  t.throws(() => new GPT({ ...gpt, hidden: 36, heads: 4 }, serial(6), { device }), { code: "ERR_OPTION" });
  await device.synchronize();
  t.equal(device.memory().tensors, 0);
});

t.test("a model frees the parameters that it made, and leaves a scope as a whole", (t) => {
  const made = Scope.run(() => ({ model: new GPT(gpt, serial(6)), lost: Tensor.zeros([1]) }));
  const parameters = Object.values(made.model.parameters);
  t.ok(parameters.every(({ disposed }) => !disposed));
  new GPT(gpt, serial(3), { parameters: made.model.parameters }).dispose();
  t.ok(parameters.every(({ disposed }) => !disposed));
  made.model.dispose();
  made.model.dispose();
  t.ok(parameters.every(({ disposed }) => disposed));
  const layer = new TransformerLayer({ hidden: 16, heads: 2 }, serial(6));
  layer.dispose();
  t.ok(Object.values(layer.parameters).every(({ disposed }) => disposed));
  t.end();
});
