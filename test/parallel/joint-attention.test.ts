// Ranks that share a GPU's memory: one call over all their rows is attention over the whole sequence.
import fc from "fast-check";
import { type AttentionOptions, add, attention, attentionKernels, ring, Tape, Tensor, zigzag } from "longseq";
import t from "tap";
import { callsOf } from "../support/calls.ts";
import { localRanks } from "../support/ranks.ts";

const strategies = { ring, zigzag };
const dtype = "bfloat16";
const own = attentionKernels({ dtype });
const skip = own !== "sm90" && `parts of rows are taken by sm90, and here runs ${own}`;

const cases = fc.record({
  way: fc.constantFrom("ring" as const, "zigzag" as const),
  ranks: fc.constantFrom(2, 3, 4, 8),
  tiles: fc.integer({ min: 1, max: 2 }),
  batch: fc.constantFrom(1, 2),
  keyHeads: fc.constantFrom(1, 2),
  group: fc.constantFrom(1, 3),
  headDim: fc.constantFrom(8, 64, 72, 96, 128, 160),
  isWide: fc.boolean(),
  isPacked: fc.boolean(),
  options: fc.record(
    {
      causal: fc.boolean(),
      window: fc.constantFrom([200, 0] as const, [130, 64] as const, [-1, 10] as const),
      softcap: fc.constant(2),
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

t.test("parallel is serial", { skip }, async (t) => {
  const property = fc.asyncProperty(cases, async (given) => {
    const { way, ranks, tiles, batch, keyHeads, group, headDim, isPacked } = given;
    const length = 2 * ranks * tiles * 128;
    const inputs = (device: Tensor["device"]) => {
      const heads = keyHeads * group;
      const like = { device, dtype } as const;
      const all = [heads, keyHeads, keyHeads, heads].map((heads, i) =>
        Tensor.normal([batch, length, heads, headDim], { seed: i + 1, ...like }),
      ) as [Tensor, Tensor, Tensor, Tensor];
      return all;
    };
    const communicators = localRanks(ranks, { timeoutMs: 60_000 });
    const device = communicators[0]?.device as Tensor["device"];
    const [q, k, v, dout] = inputs(device);
    const tape = new Tape();
    tape.watch(q, k, v);
    const out = attention(q, k, v, optionsOf(given, length, device));
    const expected = [out, ...tape.backward(out, dout, [q, k, v])];
    let calls: string[] = [];
    const parts = communicators.map((communicator) => {
      const { shard, attend } = strategies[way](communicator, length);
      const [wholeQ, wholeK, wholeV, wholeDout] = inputs(communicator.device);
      const take = (x: Tensor) => shard.take(x);
      const [dout, ...shards] = [wholeDout, wholeQ, wholeK, wholeV].map(take) as [
        Tensor,
        Tensor,
        Tensor,
        Tensor,
      ];
      const [q, k, v] = isPacked ? packed(shards) : (shards as [Tensor, Tensor, Tensor]);
      const options = optionsOf(given, length, communicator.device);
      const tape = new Tape();
      tape.watch(q, k, v);
      let made: Tensor[] = [];
      calls = callsOf(["attentionForwardOfParts", "attentionBackwardOfParts"], () => {
        const out = attend(q, k, v, options);
        made = [out, ...tape.backward(out, dout, [q, k, v])];
      });
      return { shard, made };
    });
    const wholes = await Promise.all(expected.map((x) => x.data()));
    for (const { shard, made } of parts) {
      for (const [i, x] of made.entries()) {
        const [values, whole] = [await x.data(), wholes[i] as Float32Array];
        const expected = await shard.take(Tensor.from(whole, x.shape.with(1, length))).data();
        const found = difference(values, expected);
        if (!(found < 0.02))
          throw new Error(`${["out", "dq", "dk", "dv"][i]} of rank ${shard.rank}: ${found}`);
      }
    }
    if (headDim <= 128 && calls.length === 0 && given.options.documents === undefined)
      throw new Error("not in one call");
    for (const communicator of communicators) communicator.dispose();
  });
  await fc.assert(property, { numRuns: 40 });
  t.pass("40 cases");
});

/** Views of one tensor, as a layer's product has them. */
function packed(all: readonly Tensor[]): [Tensor, Tensor, Tensor] {
  const [batch = 0, rows = 0, , headDim = 0] = all[0]?.shape ?? [];
  const heads = all.map((x) => x.shape[2] ?? 0);
  const whole = Tensor.empty([batch, rows, heads.reduce((a, b) => a + b), headDim], {
    dtype,
    device: all[0]?.device as Tensor["device"],
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
  const values = localRanks(2, { timeoutMs: 20_000 }).map((communicator) => {
    const { shard, attend } = zigzag(communicator, 512);
    const like = { device: communicator.device, dtype } as const;
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
});
