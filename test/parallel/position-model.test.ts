// A model whose learned positions are divided over the ranks is the model: parameters, loss and gradients.
import fc from "fast-check";
import {
  type Communicator,
  Device,
  GPT,
  type GptOptions,
  gptParameters,
  partitionPositions,
  type Strategy,
  serial,
  shareParameters,
  Tape,
  Tensor,
  wholeGradients,
  wholeParameters,
} from "longseq";
import t from "tap";
import { differing } from "../support/bits.ts";
import { relativeError } from "../support/compare.ts";
import { localRanks } from "../support/ranks.ts";
import { refuses } from "../support/refusals.ts";
import { strategyOf, ways } from "../support/strategies.ts";

const options: GptOptions = {
  hidden: 16,
  heads: 2,
  feedForward: 24,
  layers: 1,
  vocabulary: 11,
  maxPositions: 30,
};
const table = gptParameters(options);

const cases = fc.record({
  way: fc.constantFrom(...ways),
  ranks: fc.constantFrom(1, 2, 3, 4, 8),
  batch: fc.integer({ min: 1, max: 2 }),
  length: fc.integer({ min: 2, max: 30 }),
  documents: fc.boolean(),
  summed: fc.boolean(),
});
type Case = typeof cases extends fc.Arbitrary<infer T> ? T : never;

function prepared(given: Case, strategy: Strategy, device: Device) {
  const { batch, length } = given;
  const model = new GPT(options, strategy, { seed: 4, device });
  const tokens = Int32Array.from({ length: batch * (length + 1) }, (_, i) => (i * i + 3) % 11);
  const { shard } = strategy;
  const shape = [batch, shard.size];
  const inputs = Array.from({ length: batch }, (_, row) => {
    const first = row * (length + 1);
    return [...shard.takeValues(tokens.subarray(first, first + length))];
  });
  const gradients = Object.fromEntries(
    Object.entries(model.parameters).map(([name, { shape }]) => [name, Tensor.zeros(shape, { device })]),
  );
  const tape = new Tape();
  const parameters = Object.values(model.parameters);
  tape.watch(...parameters);
  const loss = model.loss(
    Tensor.from(Int32Array.from(inputs.flat()), shape, { device }),
    Tensor.from(shard.labels(tokens, { batch }), shape, { device }),
    {
      causal: true,
      ...(given.documents && { cuSeqlens: [0, Math.ceil(length / 3), length], resetPositions: true }),
      ...(given.summed && { gradients }),
    },
  );
  const backward = () => {
    const found = tape.backward(loss, Tensor.from([1], [], { device }), parameters);
    const names = Object.keys(model.parameters);
    const own = Object.fromEntries(names.map((name, i) => [name, found[i] as Tensor]));
    return { placement: strategy, tensors: given.summed ? gradients : own };
  };
  return { model, loss, backward };
}

t.test("parameters, loss and gradients are those of one rank", async (t) => {
  await fc.assert(
    fc.asyncProperty(cases, async (given) => {
      const device = new Device();
      const alone = prepared(given, serial(given.length), device);
      const expected = wholeGradients(table, [alone.backward()]);
      const ranks = localRanks(given.ranks, { timeoutMs: 20_000 }).map((communicator) => {
        const strategy = strategyOf(given.way, communicator, given.length);
        const own = partitionPositions(strategy, communicator);
        return { ...prepared(given, own, communicator.device), strategy: own };
      });
      const passed = ranks.map(({ backward }) => backward());
      const rows = ranks.map(({ model }) => model.parameters["position.weight"]?.shape[0] ?? 0);
      t.equal(
        rows.reduce((a, b) => a + b),
        30,
        "each position is held once",
      );
      const held = ranks.map(({ model, strategy }) => ({ placement: strategy, tensors: model.parameters }));
      const parameters = wholeParameters(table, held);
      const before = wholeParameters(table, [
        { placement: serial(given.length), tensors: alone.model.parameters },
      ]);
      t.strictSame(await differing(parameters, before), []);
      for (const { strategy, model } of ranks) {
        const again = shareParameters(table, parameters, strategy);
        t.strictSame(await differing(again, model.parameters), [], "loaded at this number of ranks");
      }
      for (const { loss } of ranks) {
        t.ok(relativeError(await loss.data(), await alone.loss.data()) < 1e-5, "loss");
      }
      for (const [name, sum] of Object.entries(wholeGradients(table, passed))) {
        const error = relativeError(await sum.data(), await (expected[name] as Tensor).data());
        t.ok(error < 1e-5, `${name}: ${error} of ${JSON.stringify(given)}`);
      }
    }),
    { numRuns: 30 },
  );
});

t.test("what cannot be is refused", async (t) => {
  const [first, second] = localRanks(2) as [Communicator, Communicator];
  const strategy = strategyOf("zigzag", first, 40);
  const own = partitionPositions(strategy, first);
  const model = new GPT(options, own, { device: first.device });
  const tokens = Tensor.zeros([1, strategy.shard.size], { dtype: "int32", device: first.device });
  refuses(t, [
    [
      () => partitionPositions(strategy, {} as Communicator),
      "ERR_OPTION",
      /communicator is object, expected/,
    ],
    [
      () => partitionPositions(strategy, second),
      "ERR_OPTION",
      "partitionPositions: communicator has rank 1 of 2, expected 0 of 2 (the strategy's)",
    ],
    [
      () => partitionPositions({} as Strategy, first),
      "ERR_OPTION",
      /strategy has no shard, expected a Strategy/,
    ],
    [
      () => new GPT(options, { ...own, positions: {} as never }),
      "ERR_OPTION",
      "gpt: strategy.positions is object, expected a PositionEmbedding",
    ],
    [
      () => model.logits(tokens),
      "ERR_OPTION",
      "gpt: position.weight: rank 0 has a row at position 30, expected 0 to 29",
    ],
  ]);
});
