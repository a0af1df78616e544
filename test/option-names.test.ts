// A misspelt option would count for nothing: all that take options refuse what they do not know.
import * as longseq from "longseq";
import t from "tap";
import { refuses } from "./support/refusals.ts";

const { Communicator, Device, Tensor } = longseq;

const device = Device.default;
const x = Tensor.normal([1, 4, 2, 8]);
const rows = Tensor.normal([1, 4, 8]);
const square = Tensor.normal([8, 8]);
const vector = Tensor.normal([8]);
const tokens = Tensor.zeros([1, 4], { dtype: "int32" });
const serial = longseq.serial(4);
const { shard } = serial;
const shape = { hidden: 8, heads: 1 };
const modelShape = { ...shape, layers: 1, vocabulary: 5 };
const layer = new longseq.TransformerLayer(shape, serial);
const model = new longseq.GPT(modelShape, serial);
const optimizer = new longseq.AdamW([square]);
const table = longseq.layerParameters(shape);
const [alone] = Communicator.local([device]) as [longseq.Communicator];
const positions = new longseq.PartitionedPositionEmbedding(alone, [4, 8]);
const { layerNormForward, rmsNormForward } = longseq;
const attended = { q: x, k: x, v: x, dout: x, ...longseq.attentionForward(x, x, x) };
const entropy = { logits: rows, targets: tokens, ...longseq.crossEntropyForward(rows, tokens) };
const dloss = Tensor.from([1], []);
const strategies = [
  serial,
  longseq.megatron(alone, 4),
  longseq.ring(alone, 4),
  longseq.zigzag(alone, 4),
  longseq.ulysses(alone, 4),
  longseq.hybrid(alone, 4, { ulysses: 1 }),
];

type Taking = [what: string, call: (options: never) => unknown, some: string];
const calls: Taking[] = [
  ["Tensor.from: options", (options) => Tensor.from([1], [1], options), "dtype, device"],
  ["Tensor: options", (options) => Tensor.empty([1], options), "dtype, device"],
  ["Tensor: options", (options) => Tensor.zeros([1], options), "dtype, device"],
  [
    "Tensor.normal: options",
    (options) => Tensor.normal([1], options),
    "dtype, device, seed, first, mean, std",
  ],
  ["attention: options", (options) => longseq.attention(x, x, x, options), "scale, causal, window"],
  ["attention: options", (options) => longseq.attentionForward(x, x, x, options), "scale, causal"],
  ["attention: options", (options) => longseq.attentionBackward(attended, options), "gradientDtype, addTo"],
  ["attentionBackward: addTo", (addTo) => longseq.attentionBackward(attended, { addTo }), "dq, dk, dv"],
  ["attentionKernels: options", longseq.attentionKernels, "device, dtype, implementation"],
  ["embedding: options", (options) => longseq.embedding(square, tokens, options), "dtable"],
  ["gelu: options", (options) => longseq.gelu(x, options), "bias, approximate"],
  ["gelu: options", (options) => longseq.geluBackward({ x, dy: x }, options), "bias, approximate"],
  ["linear: options", (options) => longseq.linear(rows, square, vector, options), "outDtype, dweight, dbias"],
  [
    "linearBackward: options",
    (options) => longseq.linearBackward({ x: rows, weight: square, dy: rows }, options),
    "hasBias",
  ],
  ["matmul: options", (options) => longseq.matmul(rows, square, options), "transposeA, transposeB, bias"],
  ["softmax: options", (options) => longseq.softmax(x, options), "scale, mask, causal"],
  ["softmaxBackward: options", (options) => longseq.softmaxBackward({ out: x, dout: x }, options), "scale"],
  ["layerNorm: options", (options) => longseq.layerNorm(rows, vector, null, options), "eps"],
  ["rmsNorm: options", (options) => longseq.rmsNorm(rows, vector, options), "eps"],
  ["layerNorm: options", (options) => longseq.addLayerNorm(rows, rows, vector, null, options), "eps"],
  ["rmsNorm: options", (options) => longseq.addRmsNorm(rows, rows, vector, options), "eps"],
  ["layerNorm: options", (options) => layerNormForward(rows, vector, null, options), "eps, residual"],
  ["rmsNorm: options", (options) => rmsNormForward(rows, vector, options), "eps, residual"],
  [
    "crossEntropy: options",
    (options) => longseq.crossEntropy(rows, tokens, options),
    "ignoreIndex, reduction",
  ],
  ["crossEntropy: options", (options) => longseq.crossEntropyForward(rows, tokens, options), "reduction"],
  [
    "crossEntropy: options",
    (options) => longseq.crossEntropyBackward({ ...entropy, dloss }, options),
    "overwriteLogits",
  ],
  [
    "linearCrossEntropy: options",
    (options) => longseq.linearCrossEntropy(rows, square, tokens, options),
    "ignoreIndex, reduction, count, tileRows, dweight",
  ],
  [
    "rotaryEmbedding: options",
    (options) => longseq.rotaryEmbedding(x, options),
    "base, scaling, interleaved",
  ],
  ["rotaryEmbedding: options", (options) => longseq.rotaryEmbeddingBackward(x, options), "base, scaling"],
  ["rotaryFrequencies: options", (options) => longseq.rotaryFrequencies(8, options), "base, scaling"],
  [
    "rotaryEmbedding: scaling: options",
    (options: object) =>
      longseq.rotaryFrequencies(8, { scaling: { type: "linear" as const, factor: 2, ...options } }),
    "type, factor",
  ],
  ["adamW: options", (options) => new longseq.AdamW([square], options), "learningRate, betas, epsilon"],
  ["adamW.step: options", (options) => optimizer.step([square], options), "learningRate, gradientScale"],
  [
    "layerParameters: options",
    (options: object) => longseq.layerParameters({ ...shape, ...options }),
    "kind, hidden, heads",
  ],
  [
    "layerParameters: rotary",
    (rotary) => longseq.layerParameters({ ...shape, rotary }),
    "base, scaling, interleaved, rotaryDim",
  ],
  [
    "gptParameters: options",
    (options: object) => longseq.gptParameters({ ...modelShape, ...options }),
    "layers, vocabulary, maxPositions",
  ],
  [
    "transformerLayer: options",
    (options: object) => new longseq.TransformerLayer({ ...shape, ...options }, serial),
    "kind, hidden",
  ],
  [
    "gpt: options",
    (options: object) => new longseq.GPT({ ...modelShape, ...options }, serial),
    "kind, hidden",
  ],
  [
    "transformerLayer: module: options",
    (options) => new longseq.TransformerLayer(shape, serial, options),
    "dtype, device, recompute, mlpTiles, parameters, seed",
  ],
  ["gpt: module: options", (options) => new longseq.GPT(modelShape, serial, options), "recompute, mlpTiles"],
  ["transformerLayer: options", (options) => layer.forward(rows, options), "resetPositions, gradients"],
  ["gpt: options", (options) => model.logits(tokens, options), "resetPositions, gradients"],
  ["gpt: options", (options) => model.loss(tokens, tokens, options), "gradients, ignoreIndex"],
  ["initialParameters: options", (options) => longseq.initialParameters(table, serial, options), "seed"],
  [
    "shareParameters: options",
    (options) => longseq.shareParameters(table, layer.parameters, serial, options),
    "dtype, device",
  ],
  ["Communicator.local: options", (options) => Communicator.local([new Device("cpu")], options), "timeoutMs"],
  [
    "Communicator.join: options",
    (options: object) =>
      Communicator.join({ name: "of names", rank: 0, size: 1, device: new Device("cpu"), ...options }),
    "name, rank, size, device, timeoutMs",
  ],
  ["allReduce: options", (options) => alone.allReduce(vector, options), "outDtype"],
  ["reduceScatter: options", (options) => alone.reduceScatter(vector, [8], options), "outDtype"],
  ["ulysses: options", (options) => longseq.ulysses(alone, 4, options), "chunks"],
  ["hybrid: options", (options: object) => longseq.hybrid(alone, 4, { ulysses: 1, ...options }), "ulysses"],
  ...strategies.map(
    ({ attend }): Taking => [
      "attend: options",
      (options) => attend(x, x, x, options),
      "scale, causal, window, softcap, alibiSlopes, mask, cuSeqlens, implementation, deterministic",
    ],
  ),
  ...strategies.map(
    ({ name, leave }): Taking => [
      `${name === "megatron" ? "megatron.leave" : "linear"}: options`,
      (options) => leave(rows, square, vector, options),
      "outDtype, dweight, dbias, activation",
    ],
  ),
  [
    "megatron.enter: options",
    (options) => longseq.megatron(alone, 4).enter(rows, square, vector, options),
    "outDtype, dweight, dbias",
  ],
  [
    "PartitionedPositionEmbedding: options",
    (options) => new longseq.PartitionedPositionEmbedding(alone, [4, 8], options),
    "dtype, seed, std",
  ],
  [
    "PartitionedPositionEmbedding.from: options",
    (options) => longseq.PartitionedPositionEmbedding.from(alone, square, options),
    "dtype",
  ],
  [
    "PartitionedPositionEmbedding: options",
    (options) => positions.forward(() => new Int32Array(1), options),
    "dtable, batch",
  ],
  [
    "SequenceShard.labels: options",
    (options) => shard.labels(new Int32Array(4), options),
    "batch, cuSeqlens, ignoreIndex",
  ],
  [
    "sees: options",
    (options) => longseq.sees(shard.pieces, shard.pieces, options),
    "causal, window, cuSeqlens",
  ],
  ["visiblePairs: options", (options) => longseq.visiblePairs([], [], options), "causal, window, cuSeqlens"],
];

for (const [what, call, some] of calls) {
  t.test(`${what}: ${some}`, async (t) => {
    const given = call as (options: object) => unknown;
    refuses(t, [[() => given({ casual: 1 }), "ERR_OPTION", `${what} has no "casual", only `]]);
    t.throws(() => given({ casual: 1 }), { message: some });
    t.doesNotThrow(() => given({ casual: undefined }), "what is undefined is not given");
  });
}

t.test("what every object has, and what is inherited", async (t) => {
  const withOptions = (options: object) => () => longseq.attention(x, x, x, options);
  refuses(t, [
    [withOptions({ toString: 1 }), "ERR_OPTION", /has no "toString"/],
    [withOptions(JSON.parse('{ "__proto__": 1 }')), "ERR_OPTION", /has no "__proto__"/],
    [withOptions(Object.create({ casual: null })), "ERR_OPTION", /has no "casual"/],
  ]);
  t.doesNotThrow(withOptions(Object.create({ causal: true })));
  t.doesNotThrow(withOptions(Object.create(null)));
});

t.test("what waits for files or ranks", async (t) => {
  const given = { rank: 0, size: 1, timeout: 5 };
  await t.rejects(Communicator.nccl(given), {
    code: "ERR_OPTION",
    message:
      'Communicator.nccl: options has no "timeout", only rank, size, address, token, timeoutMs, signal, onListening',
  });
  await t.rejects(longseq.loadSafetensors("absent", { devise: device } as never), {
    code: "ERR_OPTION",
    message: 'loadSafetensors: options has no "devise", only device, names',
  });
});
