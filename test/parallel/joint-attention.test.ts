// Ranks that share a GPU's memory: one call over all their rows is attention over the whole sequence.
import fc from "fast-check";
import { type AttentionOptions, add, attention, attentionKernels, ring, Tape, Tensor, zigzag } from "longseq";
import t from "tap";
import { callsOf } from "../support/calls.ts";
import { localRanks } from "../support/ranks.ts";

const strategies = { ring, zigzag };
const own = attentionKernels({ dtype: "bfloat16" });
const skip = own !== "sm90" && `parts of rows are taken by sm90, and here runs ${own}`;

const oneOf = (...values: number[]) => fc.constantFrom(...values);

const cases = fc.record({
  way: fc.constantFrom("ring" as const, "zigzag" as const),
  dtype: fc.constantFrom("bfloat16" as const, "float16" as const),
  ranks: oneOf(2, 3, 4, 8),
  tiles: fc.integer({ min: 1, max: 2 }),
  batch: oneOf(1, 2),
  keyHeads: oneOf(1, 2),
  group: oneOf(1, 3),
  headDim: oneOf(8, 64, 72, 96, 128, 160),
  isPacked: fc.boolean(),
  options: fc.record(
    {
      causal: fc.boolean(),
      window: fc.constantFrom([200, 0] as const, [130, 64] as const, [-1, 10] as const),
      softcap: fc.constant(2),
      scale: fc.constantFrom(-0.3, 0, 0.2),
      alibi: fc.constant(true),
      documents: fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { minLength: 1, maxLength: 5 }),
    },
    { requiredKeys: ["causal"] },
  ),
});

type Case = typeof cases extends fc.Arbitrary<infer C> ? C : never;

function optionsOf({ options, keyHeads, group }: Case, length: number, device: Tensor["device"]) {
  const { documents, alibi, ...others } = options;
  const boundaries = documents?.map((at) => Math.floor(at * length)).sort((a, b) => a - b);
  const slopes = Array.from({ length: keyHeads * group }, (_, head) => 2 ** -(head + 1));
  return {
    ...others,
    ...(boundaries && { cuSeqlens: [0, ...boundaries, length] }),
    ...(alibi && { alibiSlopes: Tensor.from(slopes, [slopes.length], { device }) }),
  } satisfies AttentionOptions;
}

/** The largest difference, of the largest value. */
function difference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let [most, largest] = [0, 1e-3];
  for (let i = 0; i < b.length; i++) {
    most = Math.max(most, Math.abs((a[i] ?? Number.NaN) - (b[i] ?? Number.NaN)));
    largest = Math.max(largest, Math.abs(b[i] ?? Number.NaN));
    if (Number.isNaN(a[i])) return Number.NaN;
  }
  return most / largest;
}

/** That each rank's results and gradients are its part of the whole sequence's, made in one call each way. */
async function check(given: Case): Promise<void> {
  const { way, ranks, tiles, batch, keyHeads, group, headDim, isPacked, dtype } = given;
  const length = 2 * ranks * tiles * 128;
  const inputs = (device: Tensor["device"]) =>
    [keyHeads * group, keyHeads, keyHeads, keyHeads * group].map((heads, i) =>
      Tensor.normal([batch, length, heads, headDim], { seed: i + 1, device, dtype }),
    ) as [Tensor, Tensor, Tensor, Tensor];
  const communicators = localRanks(ranks, { timeoutMs: 60_000 });
  try {
    const device = communicators[0]?.device as Tensor["device"];
    const [q, k, v, dout] = inputs(device);
    const tape = new Tape();
    tape.watch(q, k, v);
    const out = attention(q, k, v, optionsOf(given, length, device));
    const wholes = [out, ...tape.backward(out, dout, [q, k, v])];
    const parts = communicators.map((communicator) => {
      const { shard, attend } = strategies[way](communicator, length);
      const [dout, ...shards] = inputs(communicator.device)
        .map((x) => shard.take(x))
        .toReversed() as [Tensor, Tensor, Tensor, Tensor];
      const [v, k, q] = isPacked ? packed(shards) : shards;
      const options = optionsOf(given, length, communicator.device);
      const tape = new Tape();
      tape.watch(q, k, v);
      let made: Tensor[] = [];
      const calls = callsOf(["attentionForwardOfParts", "attentionBackwardOfParts"], () => {
        const out = attend(q, k, v, options);
        made = [out, ...tape.backward(out, dout, [q, k, v])];
      });
      return { shard, made, calls };
    });
    const expected = await Promise.all(wholes.map((x) => x.data()));
    for (const { shard, made, calls } of parts) {
      const isOne = calls.join() === "attentionForwardOfParts,attentionBackwardOfParts";
      // Documents may be of one rank each: then there is nothing to see of others.
      if (headDim <= 128 ? !isOne && (calls.length > 0 || !given.options.documents) : calls.length > 0)
        throw new Error(`rank ${shard.rank} called ${calls}`);
      for (const [i, x] of made.entries()) {
        const whole = Tensor.from(expected[i] as Float32Array, x.shape.with(1, length));
        const found = difference(await x.data(), await shard.take(whole).data());
        if (!(found < 0.02))
          throw new Error(`${["out", "dq", "dk", "dv"][i]} of rank ${shard.rank}: ${found}`);
      }
    }
  } finally {
    for (const communicator of communicators) communicator.dispose();
  }
}

t.test("parallel is serial", { skip }, async (t) => {
  await fc.assert(fc.asyncProperty(cases, check), { numRuns: 40 });
  t.pass("40 cases");
});

t.test("also where a block takes several tiles, and heads several sections", { skip }, async (t) => {
  const large = { ranks: 2, tiles: 8, batch: 1, keyHeads: 48, group: 1, headDim: 64 };
  for (const way of ["ring", "zigzag"] as const)
    await check({ ...large, way, dtype: "bfloat16", isPacked: false, options: { causal: true } });
  t.pass("both");
});

/** Views of one tensor, as a layer's product has them. */
function packed(all: readonly [Tensor, Tensor, Tensor]): [Tensor, Tensor, Tensor] {
  const [{ shape, dtype, device }] = all;
  const [batch = 0, rows = 0, , headDim = 0] = shape;
  const heads = all.map((x) => x.shape[2] ?? 0);
  const whole = Tensor.empty([batch, rows, heads.reduce((a, b) => a + b), headDim], {
    dtype,
    device,
  });
  let begin = 0;
  return all.map((x, i) => {
    const place = whole.slice(2, begin, begin + (heads[i] ?? 0));
    begin += heads[i] ?? 0;
    place.write(x);
    return place;
  }) as [Tensor, Tensor, Tensor];
}

t.test("keys that are lent twice were not written", async (t) => {
  const ranks = localRanks(2, { timeoutMs: 20_000 });
  const values = ranks.map((communicator) => {
    const { shard, attend } = zigzag(communicator, 512);
    const like = { device: communicator.device, dtype: "bfloat16" } as const;
    const [q, k, v] = [1, 2, 3].map((seed) => Tensor.normal([1, shard.size, 2, 8], { seed, ...like })) as [
      Tensor,
      Tensor,
      Tensor,
    ];
    const tape = new Tape();
    tape.watch(q, k, v);
    const [first, second] = [attend(q, k, v, { causal: true }), attend(q, k, v)];
    const [dk] = tape.backward(add(first, second), q, [k]) as [Tensor];
    return dk.data();
  });
  for (const dk of await Promise.all(values)) t.ok(dk.every(Number.isFinite));
  for (const communicator of ranks) communicator.dispose();
});
