// An MLP's second product, of an activation that is there a part at a time: what it gives, and what it holds.
import fc from "fast-check";
import {
  Device,
  gelu,
  initialParameters,
  type LayerOptions,
  layerParameters,
  type Recompute,
  SequenceShard,
  type Strategy,
  serial,
  swiglu,
  Tape,
  Tensor,
  TransformerLayer,
  wholeGradients,
} from "longseq";
import t from "tap";
import { callsOf, mostHeld } from "../support/calls.ts";
import { bounds, type FloatType, floatTypes, relativeError } from "../support/compare.ts";
import { kind } from "../support/devices.ts";
import { inside } from "../support/layouts.ts";
import { localRanks } from "../support/ranks.ts";
import { refuses } from "../support/refusals.ts";
import { strategyOf } from "../support/strategies.ts";

type Activation = "gelu" | "swiglu";
const activations = ["gelu", "swiglu"] as const;

/** The definition. */
function activated(activation: Activation, x: Tensor): Tensor {
  if (activation === "gelu") return gelu(x, { approximate: "tanh" });
  const columns = (x.shape[2] ?? 0) / 2;
  return swiglu(x.slice(2, 0, columns), x.slice(2, columns, 2 * columns));
}

interface Case {
  activation: Activation;
  batch: number;
  rows: number;
  columns: number;
  outputs: number;
  dtype: FloatType;
  isInside: boolean;
  hasBias: boolean;
  /** What is there in the sums that the gradients are added to. */
  sum: number | undefined;
}

const oneOrMoreParts = fc.record({
  activation: fc.constantFrom(...activations),
  batch: fc.integer({ min: 1, max: 3 }),
  rows: fc.integer({ min: 0, max: 400 }),
  columns: fc.oneof(fc.integer({ min: 1, max: 30 }), fc.integer({ min: 900, max: 1300 })),
  outputs: fc.integer({ min: 1, max: 300 }),
  dtype: fc.constantFrom<FloatType>(...floatTypes),
  isInside: fc.boolean(),
  hasBias: fc.boolean(),
  sum: fc.constantFrom(undefined, 0, 0.5),
});

/** Of `leave`, or of the activation and `leave`. */
async function pass(given: Case, isInParts: boolean) {
  const { activation, batch, rows, columns, outputs, dtype, isInside, hasBias, sum } = given;
  const width = activation === "gelu" ? columns : 2 * columns;
  const normal = (shape: readonly number[], seed: number) =>
    Tensor.normal(shape, { seed, dtype, std: seed === 2 ? columns ** -0.5 : 1 });
  const dense = normal([batch, rows, width], 1);
  const x = isInside ? await inside(dense) : dense;
  const [weight, bias, dy] = [
    normal([outputs, columns], 2),
    normal([outputs], 3),
    normal([batch, rows, outputs], 4),
  ];
  const filled = (shape: readonly number[]) => {
    const size = shape.reduce((a, b) => a * b, 1);
    return Tensor.from(new Float32Array(size).fill(sum ?? 0), shape);
  };
  const sums = {
    dweight: filled(weight.shape),
    ...(hasBias && { dbias: filled(bias.shape) }),
  };
  const options = sum === undefined ? {} : sums;
  using tape = new Tape();
  tape.watch(x, weight, bias);
  const { leave } = serial(rows);
  const parameters = [weight, hasBias ? bias : undefined] as const;
  const y = isInParts
    ? leave(x, ...parameters, { ...options, activation })
    : leave(activated(activation, x), ...parameters, options);
  const [dx, dweight, dbias] = tape.backward(y, dy, [x, weight, bias]) as [Tensor, Tensor, Tensor];
  return { y, dx, ...(sum === undefined ? { dweight, dbias } : sums) };
}

t.test("the same as the activation and the product", async (t) => {
  await fc.assert(
    fc.asyncProperty(oneOrMoreParts, async (given) => {
      const expected = await pass(given, false);
      for (const [name, tensor] of Object.entries(await pass(given, true))) {
        const like = expected[name as keyof typeof expected] as Tensor;
        t.ok(tensor.shape.join() === like.shape.join() && tensor.dtype === like.dtype);
        const error = relativeError(await tensor.data(), await like.data());
        // On a GPU, products of other shapes may be summed in another order.
        const bound = kind === "cpu" ? 0 : bounds[given.dtype][name === "y" ? "result" : "gradient"];
        t.ok(error <= bound, `${name} of ${JSON.stringify(given)}: ${error}`);
      }
    }),
    { numRuns: 25 },
  );
});

/** Enough for several parts, which are large on a GPU. */
const [hidden, length] = kind === "cuda" ? [4096, 16_384] : [256, 2048];
const kinds: Readonly<Record<string, LayerOptions>> = {
  gpt: { hidden, heads: hidden / 64 },
  llama: { kind: "llama", hidden, heads: hidden / 64, feedForward: 3 * hidden },
};

t.test("a layer's passes hold little beside what they must", async (t) => {
  // With x, y and its gradient: before the MLP 3 + 5 (q, k, v, attention's result, the residual sum), and what goes into
  // the activation; then a part of the activation, or the norm's result, or its gradient. A thirtieth is statistics.
  const most = { gpt: 3 + 5 + 4 + 1.1, llama: 3 + 5 + 6 + 1.1 };
  for (const [name, shape] of Object.entries(kinds)) {
    const layer = new TransformerLayer(shape, serial(length), { dtype: "bfloat16" });
    const { parameters } = layer;
    const zeros = ({ shape, dtype }: Tensor) => Tensor.zeros(shape, { dtype });
    const gradients = Object.fromEntries(Object.entries(parameters).map(([key, one]) => [key, zeros(one)]));
    const row = 2 * hidden * length;
    const held = mostHeld(() => {
      const normal = (seed: number) => Tensor.normal([1, length, hidden], { seed, dtype: "bfloat16" });
      const [x, dy] = [normal(1), normal(2)];
      using tape = new Tape();
      tape.watch(x, ...Object.values(parameters));
      const y = layer.forward(x, { gradients });
      tape.backward(y, dy, [x]);
    });
    const expected = most[name as keyof typeof most];
    t.ok(held <= expected * row, `${name}: ${held / row} times the bytes of x, ${expected} at most`);
    for (const tensor of [...Object.values(parameters), ...Object.values(gradients)]) tensor.dispose();
  }
});

/** y, x's gradient and the parameters' of rows that a rank holds. */
function passOfLayer(shape: LayerOptions, strategy: Strategy, device: Device, recompute: Recompute) {
  const parameters = initialParameters(layerParameters(shape), strategy, { seed: 7, device });
  const layer = new TransformerLayer(shape, strategy, { parameters, recompute });
  const take = (seed: number) =>
    strategy.shard
      .take(Tensor.normal([2, strategy.shard.length, shape.hidden], { seed, device }))
      .contiguous();
  const [x, dy] = [take(1), take(2)];
  using tape = new Tape();
  tape.watch(x, ...Object.values(parameters));
  const y = layer.forward(x);
  const [dx, ...gradients] = tape.backward(y, dy, [x, ...Object.values(parameters)]) as [Tensor, ...Tensor[]];
  const names = Object.keys(parameters);
  return { y, dx, tensors: Object.fromEntries(names.map((name, i) => [name, gradients[i] as Tensor])) };
}

t.test(
  "a layer over ranks whose columns come in parts",
  { skip: kind === "cuda" && "its parts are one" },
  async (t) => {
    const rows = 301;
    for (const [name, { kind }] of Object.entries(kinds)) {
      const shape: LayerOptions = { ...(kind && { kind }), hidden: 256, heads: 4, feedForward: 1200 };
      const table = layerParameters(shape);
      const [device, alone] = [new Device(), serial(rows)];
      const whole = passOfLayer(shape, alone, device, "none");
      const expected = wholeGradients(table, [{ placement: alone, tensors: whole.tensors }]);
      for (const way of ["megatron", "ulysses"] as const) {
        for (const recompute of ["pointwise", "full"] as const) {
          const made: (ReturnType<typeof passOfLayer> & { placement: Strategy })[] = [];
          const calls = callsOf(["geluBackward", "swigluBackward"], () => {
            for (const communicator of localRanks(2)) {
              const placement = strategyOf(way, communicator, rows);
              made.push({ placement, ...passOfLayer(shape, placement, communicator.device, recompute) });
            }
          });
          t.ok(calls.length > 2, `${calls.length} parts`);
          const check = async (what: string, found: Tensor, like: Tensor) => {
            const error = relativeError(await found.data(), await like.data());
            t.ok(error < 1e-5, `${name}, ${way}, ${recompute}, ${what}: ${error}`);
          };
          const shards = made.map(({ placement }) => placement.shard);
          for (const key of ["y", "dx"] as const) {
            const parts = made.map((rank) => rank[key].toDevice(device));
            await check(key, SequenceShard.join(parts, shards), whole[key]);
          }
          for (const [key, sum] of Object.entries(wholeGradients(table, made))) {
            await check(key, sum, expected[key] as Tensor);
          }
        }
      }
    }
  },
);

t.test("what is refused", async (t) => {
  const [communicator] = localRanks(1);
  if (communicator === undefined) return;
  for (const [name, { leave }] of [
    ["linear", serial(3)],
    ["megatron.leave", strategyOf("megatron", communicator, 3)],
  ] as const) {
    const make = (shape: number[]) => Tensor.zeros(shape, { device: communicator.device });
    const [x, weight] = [make([1, 3, 8]), make([5, 8])];
    refuses(t, [
      [
        () => leave(x, weight, undefined, { activation: "relu" as never }),
        "ERR_OPTION",
        `${name}: activation is relu, expected "gelu" or "swiglu"`,
      ],
      [
        () => leave(x, weight, undefined, { activation: "swiglu" }),
        "ERR_SHAPE",
        `${name}: x is [1,3,8] and weight [5,8], expected [.., 2 F] and [O, F]`,
      ],
      [
        () => leave(make([1, 3, 7]), weight, undefined, { activation: "gelu" }),
        "ERR_SHAPE",
        `${name}: x is [1,3,7] and weight [5,8], expected [.., F] and [O, F]`,
      ],
    ]);
  }
});
