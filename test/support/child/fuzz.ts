// Calls everything with anything: the public functions with garbage among good arguments, the addon's functions with each
// other's handles. Prints as JSON what was thrown that has no code. That it comes to print is the main thing.
import { createRequire } from "node:module";
import fc from "fast-check";
import * as longseq from "longseq";

export interface FuzzReport {
  calls: number;
  refused: number;
  /** Errors without a code of ours, with the call that they came from. */
  uncoded: string[];
  /** Of an attention after all this. */
  result: number[];
}

const { AttentionMask, Device, Tape, Tensor } = longseq;
const [root = "", seed = "0", runs = "0"] = process.argv.slice(2);
const report: FuzzReport = { calls: 0, refused: 0, uncoded: [], result: [] };

async function attempt(name: string, args: readonly unknown[], call: () => unknown): Promise<void> {
  report.calls++;
  try {
    await call();
  } catch (error) {
    report.refused++;
    const { code, message } = error as { code?: unknown; message?: unknown };
    // A class that was given as a function is called: that is the caller's own error.
    if (String(message).startsWith("Class constructor")) return;
    if (typeof code !== "string" || !code.startsWith("ERR_")) {
      report.uncoded.push(`${name}(${fc.stringify(args)}): ${String(message)}`);
    }
  }
}

const x = Tensor.normal([1, 4, 2, 8]);
const gone = Tensor.zeros([1]);
gone.dispose();
const device = new Device();
const closed = new Device();
const ofClosed = Tensor.zeros([1, 4, 2, 8], { device: closed });
closed.dispose();
const mask = AttentionMask.causal(4);
const shard = longseq.SequenceShard.zigzag(4, 2, 0);

const numbers = fc.constantFrom(
  -(2 ** 53),
  -1,
  -0,
  0,
  0.5,
  1,
  2,
  3,
  4,
  8,
  2 ** 31,
  2 ** 53,
  1e300,
  Number.NaN,
  Number.POSITIVE_INFINITY,
);
const objects = fc.constantFrom<unknown>(
  x,
  gone,
  ofClosed,
  device,
  closed,
  mask,
  Object.create(Tensor.prototype),
  Object.create(Device.prototype),
  Object.create(AttentionMask.prototype),
  new Proxy(x, {}),
  Tensor,
  () => true,
  null,
  undefined,
  Symbol("s"),
  10n,
);
const arrays = fc.oneof(
  fc.array(fc.constantFrom<unknown>(-1, 0, 1, 2, 4, 1.5, "1", null, undefined), { maxLength: 8 }),
  fc.constantFrom<unknown>(
    new Float32Array(64),
    new Float64Array(3),
    Int32Array.of(0, 4),
    new Uint16Array(4),
    new Uint8Array(16),
    new BigInt64Array(2),
    new DataView(new ArrayBuffer(8)),
    new Float32Array(new SharedArrayBuffer(256)),
  ),
);
const garbage = fc.oneof(numbers, objects, arrays, fc.anything(), fc.string());
const options = fc.dictionary(
  fc.constantFrom(
    ...["scale", "causal", "window", "softcap", "alibiSlopes", "mask", "cuSeqlens", "cuSeqlensKeys"],
    ...[
      "queryPositions",
      "keyPositions",
      "implementation",
      "deterministic",
      "outDtype",
      "dtype",
      "device",
      "seed",
      "first",
      "mean",
      "std",
    ],
    ...["bias", "approximate", "base", "scaling", "interleaved", "rotaryDim", "offset", "positions"],
    ...["batch", "ignoreIndex"],
    ...["learningRate", "betas", "epsilon", "weightDecay", "steps", "gradientScale", "dtable", "dweight"],
    ...["count", "tileRows", "ignoreIndex", "reduction"],
  ),
  garbage,
  { maxKeys: 3 },
);
/** Often what belongs there, so that calls get past the first check. */
const near = (...good: unknown[]) => fc.oneof(fc.constantFrom(...good), garbage, options);

const optimizer = new longseq.AdamW([x.contiguous()]);
const good = longseq.attentionForward(x, x, x);
const backward = { q: x, k: x, v: x, dout: x, ...good };
const table = Tensor.zeros([4, 8]);
const indices = Tensor.zeros([4], { dtype: "int32" });
const layerOptions = { hidden: 8, heads: 1 };
const layer = new longseq.TransformerLayer(layerOptions, longseq.serial(4));
const model = new longseq.GPT({ ...layerOptions, layers: 1, vocabulary: 5 }, longseq.serial(4));
const parameterTable = longseq.layerParameters(layerOptions);
const rows = Tensor.normal([1, 4, 8]);
const [alone] = longseq.Communicator.local([new Device("cpu")]) as [longseq.Communicator];
const positions = new longseq.PartitionedPositionEmbedding(alone, [4, 8]);
const positionsOf = (rank: number) => shard.of(rank).positions();
const tokens = Tensor.zeros([1, 4], { dtype: "int32" });
/** Good options but for some. */
const but = (good: object) =>
  fc.oneof(
    garbage,
    options.map((some) => ({ ...good, ...some })),
  );
const shapes = near([4], [2, 2], [0]);
const publicCalls: Record<string, [call: (...args: never[]) => unknown, ...args: fc.Arbitrary<unknown>[]]> = {
  "new Device": [(name) => new Device(name), near("cpu")],
  "Tensor.from": [Tensor.from, near([1, 2, 3, 4]), shapes, options],
  "Tensor.empty": [Tensor.empty, shapes, options],
  "Tensor.zeros": [Tensor.zeros, shapes, options],
  "Tensor.normal": [Tensor.normal, shapes, options],
  slice: [(...args: [number, number, number]) => x.slice(...args), near(0, 1), near(0), near(2)],
  select: [(...args: [number, number]) => x.select(...args), near(0, 1), near(0)],
  permute: [(...axes: number[]) => x.permute(...axes), near(0, 1), near(1), near(2), near(3)],
  reshape: [(shape) => x.reshape(shape), near([8, 8])],
  to: [(dtype) => x.to(dtype), near("bfloat16", "int32")],
  toDevice: [(to) => x.toDevice(to), near(device, closed)],
  write: [(values) => ofClosed.write(values), near(new Float32Array(64))],
  attention: [longseq.attention, near(x), near(x), near(x), options],
  attentionForward: [longseq.attentionForward, near(x), near(x), near(x), options],
  attentionBackward: [
    longseq.attentionBackward,
    fc.oneof(
      garbage,
      fc.tuple(fc.constantFrom(...Object.keys(backward), "dlogSumExp"), garbage).map(([name, value]) => ({
        ...backward,
        [name]: value,
      })),
    ),
    options,
  ],
  mergeAttention: [
    longseq.mergeAttention,
    fc.oneof(
      garbage,
      fc.array(fc.oneof(fc.constant(good), garbage, fc.record({ out: near(x), logSumExp: garbage }))),
    ),
  ],
  add: [longseq.add, near(x), near(x)],
  checkpoint: [longseq.checkpoint, near((a: unknown) => a), near(x)],
  tiled: [longseq.tiled, near((a: unknown) => a), near(x), near(2, { rows: 1 }), near(x)],
  split: [longseq.split, near(x), near(0, 1), near([1, 3], [2, 2])],
  concatenate: [longseq.concatenate, near([x, x]), near(0, 1)],
  embedding: [longseq.embedding, near(table), near(indices), options],
  linearCrossEntropy: [longseq.linearCrossEntropy, near(table), near(table), near(indices), options],
  embeddingBackward: [
    longseq.embeddingBackward,
    fc.record({ table: near(table), indices: near(indices), dy: near(table), dtable: near(table) }),
  ],
  gelu: [longseq.gelu, near(x), options],
  geluBackward: [(x, dy, given) => longseq.geluBackward({ x, dy }, given), near(x), near(x), options],
  swiglu: [longseq.swiglu, near(x), near(x)],
  swigluBackward: [longseq.swigluBackward, near({ gate: x, up: x, dy: x })],
  rotaryEmbedding: [longseq.rotaryEmbedding, near(x), options],
  rotaryFrequencies: [longseq.rotaryFrequencies, near(8), options],
  "new AdamW": [
    (parameters, given) => new longseq.AdamW(parameters, given).dispose(),
    near([x.contiguous()]),
    options,
  ],
  "AdamW.step": [(gradients, given) => optimizer.step(gradients, given), near([x]), options],
  globalNorm: [longseq.globalNorm, near([x])],
  clipByGlobalNorm: [longseq.clipByGlobalNorm, near([x]), near(1)],
  watch: [(...tensors: never[]) => new Tape().watch(...tensors), near(x)],
  backward: [
    (output, gradient, wrt) => {
      const tape = new Tape();
      tape.watch(x);
      return tape.backward(output, gradient, wrt);
    },
    near(x),
    near(x),
    near([x]),
  ],
  "AttentionMask.causal": [AttentionMask.causal, near(4), near(4)],
  "AttentionMask.documents": [AttentionMask.documents, near([0, 4])],
  "mask.select": [
    (queries, keys) => mask.select(queries, keys),
    near([{ start: 0, length: 4 }], []),
    near([{ start: 1, length: 2 }]),
  ],
  "SequenceShard.zigzag": [longseq.SequenceShard.zigzag, near(4), near(2), near(1)],
  "shard.of": [(rank) => shard.of(rank), near(0, 1)],
  "shard.take": [(x, axis) => shard.take(x, axis), near(x), near(1)],
  "SequenceShard.join": [
    (parts, shards, axis) => longseq.SequenceShard.join(parts, shards, axis),
    near([x], [shard.take(x), shard.of(1).take(x)]),
    near([shard, shard.of(1)]),
    near(1),
  ],
  "shard.takeValues": [(values) => shard.takeValues(values), near(new Int32Array(8))],
  "shard.positions": [(cuSeqlens) => shard.positions(cuSeqlens), near([0, 4])],
  "shard.labels": [(tokens, given) => shard.labels(tokens, given), near(new Int32Array(5)), options],
  sees: [longseq.sees, near(shard.pieces), near(shard.pieces), options],
  visiblePairs: [longseq.visiblePairs, near(shard.pieces), near(shard.pieces), options],
  "mask.and": [(other) => mask.and(other), near(mask)],
  serial: [longseq.serial, near(4)],
  layerParameters: [longseq.layerParameters, but(layerOptions)],
  gptParameters: [longseq.gptParameters, but({ ...layerOptions, layers: 1, vocabulary: 5 })],
  "new TransformerLayer": [
    (given, strategy, module) => new longseq.TransformerLayer(given, strategy, module),
    but(layerOptions),
    near(layer.strategy),
    options,
  ],
  "TransformerLayer.forward": [(x, given) => layer.forward(x, given), near(rows), options],
  "GPT.logits": [(given, options) => model.logits(given, options), near(tokens), options],
  "GPT.loss": [
    (given, targets, options) => model.loss(given, targets, options),
    near(tokens),
    near(tokens),
    options,
  ],
  initialParameters: [longseq.initialParameters, near(parameterTable), near(layer.strategy), options],
  parameterCount: [longseq.parameterCount, near(parameterTable)],
  shareParameters: [
    longseq.shareParameters,
    near(parameterTable),
    near(layer.parameters),
    near(layer.strategy),
    options,
  ],
  wholeParameters: [
    longseq.wholeParameters,
    near(parameterTable),
    near([{ placement: layer.strategy, tensors: layer.parameters }]),
  ],
  "new PartitionedPositionEmbedding": [
    (communicator, shape, given) => new longseq.PartitionedPositionEmbedding(communicator, shape, given),
    near(alone),
    near([4, 8]),
    options,
  ],
  "PartitionedPositionEmbedding.from": [
    longseq.PartitionedPositionEmbedding.from,
    near(alone),
    near(table),
    options,
  ],
  "positions.forward": [
    (of, given) => positions.forward(of, given),
    fc.oneof(
      near(positionsOf),
      garbage.map((found) => () => found),
    ),
    options,
  ],
  partitionPositions: [longseq.partitionPositions, near(longseq.serial(4)), near(alone)],
  "positions.load": [(whole) => positions.load(whole), near(table)],
  loadSafetensors: [longseq.loadSafetensors, near("absent"), options],
};

const calls = fc.oneof(
  ...Object.entries(publicCalls).map(([name, [call, ...args]]) =>
    fc.tuple(...args).map((given) => ({ name, call: call as (...args: unknown[]) => unknown, given })),
  ),
);

for (const { name, call, given } of fc.sample(calls, { numRuns: Number(runs), seed: Number(seed) })) {
  await attempt(name, given, () => call(...given));
}

// The addon's own functions: what JavaScript code without our checks could do.
const native = createRequire(import.meta.url)("node-gyp-build")(root) as Record<
  string,
  ((...args: unknown[]) => unknown) & { arity: number }
>;
const call = (name: string, ...args: unknown[]) => native[name]?.(...args);
const ofDevice = call("deviceOpen", call("defaultDevice"));
const tensors = [[1, 4, 2, 8], [1, 2, 4], [4], []].map((shape) => call("tensorEmpty", ofDevice, 0, shape));
const handles = [
  ofDevice,
  ...tensors,
  call("tensorEmpty", ofDevice, 3, [4]),
  call("maskCausal", 4, 4),
  call("maskBuilder", 4, 4),
];
const [q, statistics] = tensors;
const attentionOptions = [1, 0, null, false, -1, -1, null, null, null, null, null, null, false];
const nativeArgument = fc.oneof(
  { weight: 4, arbitrary: fc.constantFrom<unknown>(...handles) },
  { weight: 2, arbitrary: fc.constantFrom<unknown>(q, q, statistics, [q], [statistics]) },
  fc.array(fc.constantFrom(-1, 0, 1, 2, 3, 4), { maxLength: 7 }),
  fc
    .tuple(fc.nat(attentionOptions.length - 1), garbage)
    .map(([index, value]) => attentionOptions.with(index, value as never)),
  garbage,
);
// It measures for a tenth of a second at each call.
const names = Object.keys(native).filter(
  (name) => typeof native[name] === "function" && name !== "measurePeak",
);
const nativeCalls = fc.constantFrom(...names).chain((name) => {
  const arity = native[name]?.arity ?? 0;
  const exact = fc.array(nativeArgument, { minLength: arity, maxLength: arity });
  return fc
    .oneof({ weight: 9, arbitrary: exact }, fc.array(nativeArgument, { maxLength: 13 }))
    .map((given) => ({ name, given }));
});
for (const { name, given } of fc.sample(nativeCalls, { numRuns: Number(runs), seed: Number(seed) })) {
  // Disposing these would end the fuzzing early.
  if (name.endsWith("Dispose") && handles.includes(given[0])) continue;
  if (name === "deviceClose" && given[0] === ofDevice) continue;
  await attempt(`native.${name}`, given, () => call(name, ...given));
}

const one = Tensor.from([1, 2, 3, 4, 5, 6, 7, 8], [1, 1, 1, 8]);
const out = await longseq.attention(one, one, one).data();
report.result = [...out];
console.log(JSON.stringify(report));
