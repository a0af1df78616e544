// Every function, constructor and method of the package, with arguments that are good and a great deal that is not.
import fc from "fast-check";
import * as longseq from "longseq";

const { AttentionMask, Device, Tape, Tensor } = longseq;

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
export const garbage = fc.oneof(numbers, objects, arrays, fc.anything(), fc.string());
/** What is given for an argument: what belongs there, and often something else. */
interface Argument {
  good: unknown;
  values: fc.Arbitrary<unknown>;
}
const dictionary = (names: readonly string[]) =>
  fc.dictionary(fc.constantFrom(...names), garbage, { maxKeys: 3 });
/** Options of these names, for all others are refused at once; beside good ones, where some must be there. */
const options = (names: readonly string[], good: object = {}): Argument => ({
  good,
  values: fc.oneof(
    { weight: 1, arbitrary: garbage },
    { weight: 9, arbitrary: dictionary(names).map((some) => ({ ...good, ...some })) },
  ),
});
/** Often what belongs there, so that calls get past the first check. */
const near = (good: unknown, ...others: unknown[]): Argument => ({
  good,
  values: fc.oneof(fc.constantFrom(good, ...others), garbage, dictionary(["dtype", "device", "scale"])),
});
/** An object of tensors, of which one is something else. */
const tensorsIn = (good: object, ...others: string[]): Argument => ({
  good,
  values: fc.oneof(
    garbage,
    fc
      .tuple(fc.constantFrom(...Object.keys(good), ...others), garbage)
      .map(([name, value]) => ({ ...good, [name]: value })),
  ),
});

const ofTensor = ["dtype", "device"];
const ofShards = [
  ...["scale", "causal", "window", "softcap", "alibiSlopes", "mask", "cuSeqlens", "implementation"],
  "deterministic",
];
const ofAttention = [...ofShards, "cuSeqlensKeys", "queryPositions", "keyPositions", "outDtype"];
const ofForward = [...ofShards, "resetPositions", "gradients"];
const ofLayer = [
  ...["kind", "hidden", "heads", "keyValueHeads", "headDim", "feedForward", "norm", "activation", "bias"],
  ...["rotary", "eps"],
];
const ofModel = [...ofLayer, "layers", "vocabulary", "maxPositions", "tiedEmbeddings", "initialDeviation"];
const ofModule = [...ofTensor, "parameters", "seed", "recompute", "mlpTiles"];
const ofRotary = ["base", "scaling", "interleaved", "rotaryDim", "offset", "positions"];
const ofEntropy = ["ignoreIndex", "reduction", "overwriteLogits"];

const optimizer = new longseq.AdamW([x.contiguous()]);
const good = longseq.attentionForward(x, x, x);
const backward = { q: x, k: x, v: x, dout: x, ...good };
const table = Tensor.zeros([4, 8]);
const square = Tensor.normal([8, 8]);
const vector = Tensor.normal([8]);
const indices = Tensor.zeros([4], { dtype: "int32" });
const layerOptions = { hidden: 8, heads: 1 };
const modelOptions = { ...layerOptions, layers: 1, vocabulary: 5 };
const serial = longseq.serial(4);
const layer = new longseq.TransformerLayer(layerOptions, serial);
const model = new longseq.GPT(modelOptions, serial);
const parameterTable = longseq.layerParameters(layerOptions);
const rows = Tensor.normal([1, 4, 8]);
const [alone] = longseq.Communicator.local([new Device("cpu")]) as [longseq.Communicator];
const mine = Tensor.zeros([8], { device: alone.device });
const positions = new longseq.PartitionedPositionEmbedding(alone, [4, 8]);
const shared = await longseq.SharedParameters.of(parameterTable, serial, alone);
const here = longseq.initialParameters(parameterTable, serial, { device: alone.device });
const positionsOf = (rank: number) => shard.of(rank).positions();
const tokens = Tensor.zeros([1, 4], { dtype: "int32" });
const ranks = [{ placement: serial, tensors: layer.parameters }];
const mark = device.mark();
const layerNorm = { x: rows, weight: vector, ...longseq.layerNormForward(rows, vector, null), dout: rows };
const rmsNorm = { x: rows, weight: vector, ...longseq.rmsNormForward(rows, vector), dout: rows };
const crossEntropy = {
  ...{ logits: table, targets: indices, dloss: Tensor.from([1], []) },
  ...longseq.crossEntropyForward(table, indices),
};

type Call = [call: (...args: never[]) => unknown, ...args: Argument[]];
const shape = near([4], [2, 2], [0]);
/** By their names in the package: those of its functions, and `<class>.<method>`. */
export const publicCalls: Record<string, Call> = {
  "new Device": [(name) => new Device(name), near("cpu")],
  "Device.mark": [() => device.mark()],
  "Device.memory": [() => device.memory()],
  "Device.resetPeak": [() => device.resetPeak()],
  "Device.synchronize": [() => device.synchronize()],
  "Mark.since": [(earlier) => mark.since(earlier), near(mark)],
  "Tensor.from": [Tensor.from, near([1, 2, 3, 4]), shape, options(ofTensor)],
  "Tensor.empty": [Tensor.empty, shape, options(ofTensor)],
  "Tensor.zeros": [Tensor.zeros, shape, options(ofTensor)],
  "Tensor.normal": [Tensor.normal, shape, options([...ofTensor, "seed", "first", "mean", "std"])],
  "Tensor.slice": [(...args: [number, number, number]) => x.slice(...args), near(0, 1), near(0), near(1, 2)],
  "Tensor.select": [(...args: [number, number]) => x.select(...args), near(0, 1), near(0)],
  "Tensor.permute": [(...axes: number[]) => x.permute(...axes), near(0, 1), near(1), near(2), near(3)],
  "Tensor.reshape": [(sizes) => x.reshape(sizes), near([8, 8])],
  "Tensor.to": [(dtype) => x.to(dtype), near("bfloat16", "int32")],
  "Tensor.toDevice": [(to) => x.toDevice(to), near(device, closed)],
  "Tensor.contiguous": [() => x.contiguous()],
  "Tensor.data": [() => x.data()],
  "Tensor.bits": [() => x.bits()],
  "Tensor.item": [() => x.item()],
  "Tensor.write": [(values) => ofClosed.write(values), near(new Float32Array(64), x)],
  attention: [longseq.attention, near(x), near(x), near(x), options(ofAttention)],
  attentionForward: [longseq.attentionForward, near(x), near(x), near(x), options(ofAttention)],
  attentionBackward: [
    longseq.attentionBackward,
    tensorsIn(backward, "dlogSumExp"),
    options([...ofAttention, "gradientDtype", "addTo"]),
  ],
  mergeAttention: [
    longseq.mergeAttention,
    {
      good: [good],
      values: fc.oneof(
        garbage,
        fc.array(
          fc.oneof(fc.constant(good), garbage, fc.record({ out: near(x).values, logSumExp: garbage })),
        ),
      ),
    },
  ],
  attentionKernels: [longseq.attentionKernels, options([...ofTensor, "implementation"])],
  add: [longseq.add, near(x), near(x)],
  checkpoint: [longseq.checkpoint, near((a: unknown) => a), near(x)],
  tiled: [longseq.tiled, near((a: unknown) => a), near(x), near(2, { rows: 1 }), near(x)],
  split: [longseq.split, near(x), near(0, 1), near([1], [1, 3], [2, 2])],
  concatenate: [longseq.concatenate, near([x, x]), near(0, 1)],
  embedding: [longseq.embedding, near(table), near(indices), options(["dtable"])],
  linearCrossEntropy: [
    longseq.linearCrossEntropy,
    near(table),
    near(table),
    near(indices),
    options(["count", "tileRows", "ignoreIndex", "reduction", "dweight"]),
  ],
  embeddingBackward: [longseq.embeddingBackward, tensorsIn({ table, indices, dy: table }, "dtable")],
  gelu: [longseq.gelu, near(x), options(["bias", "approximate"])],
  geluBackward: [longseq.geluBackward, tensorsIn({ x, dy: x }), options(["bias", "approximate"])],
  swiglu: [longseq.swiglu, near(x), near(x)],
  swigluBackward: [longseq.swigluBackward, tensorsIn({ gate: x, up: x, dy: x })],
  matmul: [
    longseq.matmul,
    near(table),
    near(square),
    options(["transposeA", "transposeB", "bias", "outDtype", "out", "accumulate"]),
  ],
  linear: [
    longseq.linear,
    near(table),
    near(square),
    near(vector),
    options(["outDtype", "dweight", "dbias"]),
  ],
  linearBackward: [
    longseq.linearBackward,
    tensorsIn({ x: table, weight: square, dy: table }, "dweight", "dbias"),
    options(["hasBias"]),
  ],
  softmax: [longseq.softmax, near(x), options(["scale", "mask", "causal"])],
  softmaxBackward: [longseq.softmaxBackward, tensorsIn({ out: x, dout: x }), options(["scale"])],
  layerNorm: [longseq.layerNorm, near(rows), near(vector), near(vector, null), options(["eps"])],
  rmsNorm: [longseq.rmsNorm, near(rows), near(vector), options(["eps"])],
  addLayerNorm: [
    longseq.addLayerNorm,
    near(rows),
    near(rows),
    near(vector),
    near(vector, null),
    options(["eps"]),
  ],
  addRmsNorm: [longseq.addRmsNorm, near(rows), near(rows), near(vector), options(["eps"])],
  layerNormForward: [
    longseq.layerNormForward,
    near(rows),
    near(vector),
    near(vector, null),
    options(["eps", "residual"]),
  ],
  rmsNormForward: [longseq.rmsNormForward, near(rows), near(vector), options(["eps", "residual"])],
  layerNormBackward: [longseq.layerNormBackward, tensorsIn(layerNorm, "dsum")],
  rmsNormBackward: [longseq.rmsNormBackward, tensorsIn(rmsNorm, "dsum")],
  crossEntropy: [longseq.crossEntropy, near(table), near(indices), options(ofEntropy)],
  crossEntropyForward: [longseq.crossEntropyForward, near(table), near(indices), options(ofEntropy)],
  crossEntropyBackward: [longseq.crossEntropyBackward, tensorsIn(crossEntropy), options(ofEntropy)],
  rotaryEmbedding: [longseq.rotaryEmbedding, near(x), options(ofRotary)],
  rotaryEmbeddingBackward: [longseq.rotaryEmbeddingBackward, near(x), options(ofRotary)],
  rotaryFrequencies: [longseq.rotaryFrequencies, near(8), options(["base", "scaling"])],
  "new AdamW": [
    (parameters, given) => new longseq.AdamW(parameters, given).dispose(),
    near([x.contiguous()]),
    options(["learningRate", "betas", "epsilon", "weightDecay", "steps"]),
  ],
  "AdamW.step": [
    (gradients, given) => optimizer.step(gradients, given),
    near([x]),
    options(["learningRate", "gradientScale"]),
  ],
  globalNorm: [longseq.globalNorm, near([x])],
  clipByGlobalNorm: [longseq.clipByGlobalNorm, near([x]), near(1)],
  "new Tape": [() => new Tape()],
  "Tape.watch": [(...tensors: never[]) => new Tape().watch(...tensors), near(x)],
  "Tape.backward": [
    (output, gradient, wrt) => {
      const tape = new Tape();
      tape.watch(x);
      return tape.backward(output, gradient, wrt);
    },
    near(x),
    near(x),
    near([x]),
  ],
  "Scope.run": [longseq.Scope.run, near(() => 1)],
  "AttentionMask.causal": [AttentionMask.causal, near(4), near(4)],
  "AttentionMask.window": [AttentionMask.window, near(4), near(4), near(1), near(0)],
  "AttentionMask.documents": [AttentionMask.documents, near([0, 4])],
  "AttentionMask.prefix": [AttentionMask.prefix, near(4), near(2)],
  "AttentionMask.dense": [AttentionMask.dense, near(new Uint8Array(16)), near(4), near(4)],
  "AttentionMask.from": [AttentionMask.from, near(4), near(4), near(() => true)],
  "AttentionMask.select": [
    (queries, keys) => mask.select(queries, keys),
    near([{ start: 0, length: 4 }], []),
    near([{ start: 1, length: 2 }]),
  ],
  "AttentionMask.and": [(other) => mask.and(other), near(mask)],
  "AttentionMask.or": [(other) => mask.or(other), near(mask)],
  "AttentionMask.not": [() => mask.not()],
  "AttentionMask.toDense": [() => mask.toDense()],
  "SequenceShard.whole": [longseq.SequenceShard.whole, near(4)],
  "SequenceShard.contiguous": [longseq.SequenceShard.contiguous, near(4), near(2), near(1)],
  "SequenceShard.zigzag": [longseq.SequenceShard.zigzag, near(4), near(2), near(1)],
  "SequenceShard.of": [(rank) => shard.of(rank), near(0, 1)],
  "SequenceShard.take": [(x, axis) => shard.take(x, axis), near(x), near(1)],
  "SequenceShard.join": [
    (parts, shards, axis) => longseq.SequenceShard.join(parts, shards, axis),
    near([shard.take(x), shard.of(1).take(x)], [x]),
    near([shard, shard.of(1)]),
    near(1),
  ],
  "SequenceShard.takeValues": [(values) => shard.takeValues(values), near(new Int32Array(8))],
  "SequenceShard.positions": [(cuSeqlens) => shard.positions(cuSeqlens), near([0, 4])],
  "SequenceShard.labels": [
    (tokens, given) => shard.labels(tokens, given),
    near(new Int32Array(5)),
    options(["batch", "cuSeqlens", "ignoreIndex"]),
  ],
  sees: [longseq.sees, near(shard.pieces), near(shard.pieces), options(["causal", "window", "cuSeqlens"])],
  visiblePairs: [
    longseq.visiblePairs,
    near(shard.pieces),
    near(shard.pieces),
    options(["causal", "window", "cuSeqlens"]),
  ],
  serial: [longseq.serial, near(4)],
  megatron: [longseq.megatron, near(alone), near(4)],
  ring: [longseq.ring, near(alone), near(4)],
  zigzag: [longseq.zigzag, near(alone), near(4)],
  ulysses: [longseq.ulysses, near(alone), near(4), options(["chunks"])],
  hybrid: [longseq.hybrid, near(alone), near(4), options(["ulysses"], { ulysses: 1 })],
  ...Object.fromEntries(
    [
      longseq.serial(4),
      ...[longseq.megatron, longseq.ulysses, longseq.zigzag].map((make) => make(alone, 4)),
    ].map(({ name, attend }): [string, Call] => [
      `${name}: attend`,
      [(q, k, v, given) => attend(q, k, v, given), near(x), near(x), near(x), options(ofShards)],
    ]),
  ),
  "Communicator.local": [longseq.Communicator.local, near([device]), options(["timeoutMs"])],
  "Communicator.group": [(ranks) => alone.group(ranks), near([0])],
  "Communicator.exchange": [(sent, received) => alone.exchange(sent, received), near([]), near([])],
  "Communicator.allGather": [(x, counts) => alone.allGather(x, counts).wait(), near(mine), near([8])],
  "Communicator.reduceScatter": [
    (x, counts, given) => alone.reduceScatter(x, counts, given).wait(),
    near(mine),
    near([8], undefined),
    options(["outDtype"]),
  ],
  "Communicator.allReduce": [
    (x, given) => alone.allReduce(x, given).wait(),
    near(mine),
    options(["outDtype"]),
  ],
  "Communicator.allToAll": [
    (x, sent, received) => alone.allToAll(x, sent, received).wait(),
    near(mine),
    near([8]),
    near([8]),
  ],
  "Communicator.broadcast": [(x, root) => alone.broadcast(x, root).wait(), near(mine), near(0)],
  "Communicator.barrier": [() => alone.barrier().wait()],
  layerParameters: [longseq.layerParameters, options(ofLayer, layerOptions)],
  gptParameters: [longseq.gptParameters, options(ofModel, modelOptions)],
  "new TransformerLayer": [
    (given, strategy, module) => new longseq.TransformerLayer(given, strategy, module),
    options(ofLayer, layerOptions),
    near(serial),
    options(ofModule),
  ],
  "TransformerLayer.forward": [(x, given) => layer.forward(x, given), near(rows), options(ofForward)],
  "new GPT": [
    (given, strategy, module) => new longseq.GPT(given, strategy, module),
    options(ofModel, modelOptions),
    near(serial),
    options(ofModule),
  ],
  "GPT.logits": [(given, options) => model.logits(given, options), near(tokens), options(ofForward)],
  "GPT.loss": [
    (given, targets, options) => model.loss(given, targets, options),
    near(tokens),
    near(tokens),
    options([...ofForward, "ignoreIndex"]),
  ],
  initialParameters: [
    longseq.initialParameters,
    near(parameterTable),
    near(serial),
    options([...ofTensor, "seed"]),
  ],
  parameterCount: [longseq.parameterCount, near(parameterTable)],
  shareParameters: [
    longseq.shareParameters,
    near(parameterTable),
    near(layer.parameters),
    near(serial),
    options(ofTensor),
  ],
  wholeParameters: [longseq.wholeParameters, near(parameterTable), near(ranks)],
  wholeGradients: [longseq.wholeGradients, near(parameterTable), near(ranks)],
  "SharedParameters.of": [
    longseq.SharedParameters.of,
    near(parameterTable),
    near(longseq.serial(4)),
    near(alone),
  ],
  "SharedParameters.completeGradients": [(given) => shared.completeGradients(given), near(here)],
  "SharedParameters.clipByGlobalNorm": [
    (given, most) => shared.clipByGlobalNorm(given, most),
    near(here),
    near(1),
  ],
  "SharedParameters.whole": [(given) => shared.whole(given), near(here)],
  "SharedParameters.save": [(path, given) => shared.save(path, given), near("/absent/file"), near(here)],
  loadParameters: [
    longseq.loadParameters,
    near("/absent/file"),
    near(parameterTable),
    near(serial),
    options(ofTensor),
  ],
  "new PartitionedPositionEmbedding": [
    (communicator, shape, given) => new longseq.PartitionedPositionEmbedding(communicator, shape, given),
    near(alone),
    near([4, 8]),
    options(["dtype", "seed", "std"]),
  ],
  "PartitionedPositionEmbedding.from": [
    longseq.PartitionedPositionEmbedding.from,
    near(alone),
    near(table),
    options(["dtype"]),
  ],
  "PartitionedPositionEmbedding.forward": [
    (of, given) => positions.forward(of, given),
    {
      good: positionsOf,
      values: fc.oneof(
        near(positionsOf).values,
        garbage.map((found) => () => found),
      ),
    },
    options(["batch", "dtable"]),
  ],
  "PartitionedPositionEmbedding.load": [(whole) => positions.load(whole), near(table)],
  "PartitionedPositionEmbedding.gather": [() => positions.gather()],
  partitionPositions: [longseq.partitionPositions, near(longseq.serial(4)), near(alone)],
  loadSafetensors: [longseq.loadSafetensors, near("absent"), options(["device", "names"])],
  readFasta: [longseq.readFasta, near("absent")],
  info: [longseq.info],
};

/** What is not to be called with anything: it would wait for other ranks, end what is used here, or write files. */
export const onlyRefused: Record<string, Call> = {
  exchange: [longseq.exchange, near("value"), near({ rank: 0, size: 1 })],
  broadcast: [longseq.broadcast, near(new Uint8Array(1)), near({ rank: 0, size: 1 })],
  rankFromEnvironment: [longseq.rankFromEnvironment, near({})],
  ncclLibrary: [longseq.ncclLibrary],
  "Communicator.join": [longseq.Communicator.join, near({ name: "fuzz", rank: 0, size: 1, device })],
  "Communicator.nccl": [longseq.Communicator.nccl, near({ device: alone.device, rank: 0, size: 1 })],
  "new Scope": [() => new longseq.Scope().dispose()],
  ...Object.fromEntries(
    (["adopt", "keep", "disown"] as const).map((name): [string, Call] => [
      `Scope.${name}`,
      [(tensor: never) => longseq.Scope.run((scope) => void scope[name](tensor)), near(table.contiguous())],
    ]),
  ),
  saveSafetensors: [longseq.saveSafetensors, near("absent/file"), near({ table }), near({})],
  "saveSafetensors: a tensor": [(tensor) => longseq.saveSafetensors("absent/file", { tensor }), near(table)],
};
