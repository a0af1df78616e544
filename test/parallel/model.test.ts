// A layer over ranks is the layer: what it gives, and the gradients of its input and of every weight.
import fc from "fast-check";
import {
  Device,
  initialParameters,
  type LayerForwardOptions,
  type LayerOptions,
  layerParameters,
  SequenceShard,
  type Strategy,
  serial,
  Tape,
  Tensor,
  TransformerLayer,
  wholeGradients,
} from "longseq";
import t from "tap";
import { relativeError } from "../support/compare.ts";
import { localRanks } from "../support/ranks.ts";
import { strategyOf, ways } from "../support/strategies.ts";

const cases = fc.record({
  ranks: fc.constantFrom(1, 2, 3, 4, 8),
  batch: fc.integer({ min: 1, max: 2 }),
  length: fc.integer({ min: 1, max: 40 }),
  kind: fc.constantFrom("gpt" as const, "llama" as const),
  keyHeads: fc.integer({ min: 1, max: 3 }),
  group: fc.integer({ min: 1, max: 3 }),
  feedForward: fc.integer({ min: 1, max: 40 }),
  rotary: fc.boolean(),
  documents: fc.boolean(),
  window: fc.boolean(),
  alibi: fc.boolean(),
  recompute: fc.constantFrom("none" as const, "attention" as const, "full" as const),
});
type Case = typeof cases extends fc.Arbitrary<infer T> ? T : never;

const headDim = 8;

function run(given: Case, options: LayerOptions, strategy: Strategy, device: Device) {
  const heads = given.keyHeads * given.group;
  const { batch, length } = given;
  const parameters = initialParameters(layerParameters(options), strategy, { seed: 7, device });
  const layer = new TransformerLayer(options, strategy, { parameters, recompute: given.recompute });
  const take = (seed: number) =>
    strategy.shard.take(Tensor.normal([batch, length, heads * headDim], { seed, device })).contiguous();
  const [x, dy] = [take(1), take(2)];
  const names = Object.keys(parameters);
  const forward: LayerForwardOptions = {
    ...(given.documents && { cuSeqlens: [0, Math.floor(length / 3), length], resetPositions: true }),
    ...(given.window && { window: [5, 3] as const }),
    ...(given.alibi && {
      alibiSlopes: Tensor.from(
        Array.from({ length: heads }, (_, i) => 1 / (i + 2)),
        [heads],
        { device },
      ),
    }),
  };
  using tape = new Tape();
  tape.watch(x, ...Object.values(parameters));
  const y = layer.forward(x, forward);
  const [dx, ...gradients] = tape.backward(y, dy, [x, ...Object.values(parameters)]) as [Tensor, ...Tensor[]];
  return { y, dx, tensors: Object.fromEntries(names.map((name, i) => [name, gradients[i] as Tensor])) };
}

for (const way of ways) {
  t.test(`a layer: ${way}`, async (t) => {
    await fc.assert(
      fc.asyncProperty(cases, async (given) => {
        const heads = given.keyHeads * given.group;
        const options: LayerOptions = {
          kind: given.kind,
          hidden: heads * headDim,
          heads,
          keyValueHeads: given.keyHeads,
          feedForward: given.feedForward,
          rotary: given.rotary,
        };
        const ranks = localRanks(given.ranks, { timeoutMs: 20_000 }).map((communicator) => {
          const strategy = strategyOf(way, communicator, given.length);
          return { strategy, placement: strategy, ...run(given, options, strategy, communicator.device) };
        });
        const device = new Device();
        const alone = serial(given.length);
        const whole = run(given, options, alone, device);
        const check = async (name: string, found: Tensor, expected: Tensor) => {
          const error = relativeError(await found.data(), await expected.data());
          t.ok(error < 1e-5, `${name}: ${error} of ${JSON.stringify(given)}`);
        };
        for (const name of ["y", "dx"] as const) {
          const parts = ranks.map((rank) => rank[name].toDevice(device));
          await check(
            name,
            SequenceShard.join(
              parts,
              ranks.map(({ strategy }) => strategy.shard),
            ),
            whole[name],
          );
        }
        const table = layerParameters(options);
        const sums = wholeGradients(table, ranks);
        const expected = wholeGradients(table, [{ placement: alone, tensors: whole.tensors }]);
        for (const [name, sum] of Object.entries(sums)) await check(name, sum, expected[name] as Tensor);
      }),
      { numRuns: 12 },
    );
  });
}
