// Heads that travel in chunks: what comes out, and when, and how much memory it takes.
import fc from "fast-check";
import {
  AttentionMask,
  type Communicator,
  type Device,
  Scope,
  type Strategy,
  serial,
  Tape,
  Tensor,
  type UlyssesOptions,
  ulysses,
} from "longseq";
import t from "tap";
import { differing } from "../support/bits.ts";
import { callsOf } from "../support/calls.ts";
import { bounds, relativeError } from "../support/compare.ts";
import { localRanks, rankPeaks } from "../support/ranks.ts";
import { refuses } from "../support/refusals.ts";

const cases = fc.record({
  ranks: fc.integer({ min: 1, max: 4 }),
  chunks: fc.integer({ min: 2, max: 5 }),
  batch: fc.integer({ min: 1, max: 2 }),
  length: fc.integer({ min: 0, max: 70 }),
  keyHeads: fc.integer({ min: 1, max: 13 }),
  group: fc.integer({ min: 1, max: 3 }),
  dtype: fc.constantFrom("float32" as const, "bfloat16" as const),
  causal: fc.boolean(),
  window: fc.option(fc.constant([9, 3] as const), { nil: undefined }),
  documents: fc.array(fc.integer({ min: 0, max: 70 }), { maxLength: 4 }),
  alibi: fc.boolean(),
  mask: fc.boolean(),
  isStrided: fc.boolean(),
});
type Case = typeof cases extends fc.Arbitrary<infer T> ? T : never;

const headDim = 8;
const names = ["out", "dq", "dk", "dv"] as const;

/** The rank's rows of out, dq, dk and dv. */
function attended(given: Case, { shard, attend }: Strategy, device: Device): Record<string, Tensor> {
  const { batch, length, keyHeads, group, dtype, causal, window, documents, alibi, mask } = given;
  const heads = keyHeads * group;
  const [q, k, v, dout] = [heads, keyHeads, keyHeads, heads].map((count, seed) => {
    const x = Tensor.normal([batch, length, count, headDim], { seed, dtype, device });
    const own = shard.take(x);
    return given.isStrided ? own.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3) : own;
  }) as [Tensor, Tensor, Tensor, Tensor];
  using tape = new Tape();
  tape.watch(q, k, v);
  const slopes = Array.from({ length: heads }, (_, head) => 2 ** -((head % 8) + 1));
  const cuSeqlens = [0, ...documents.filter((end) => end < length).sort((a, b) => a - b), length];
  const out = attend(q, k, v, {
    causal,
    deterministic: true,
    ...(window && { window }),
    ...(documents.length > 0 && { cuSeqlens }),
    ...(alibi && { alibiSlopes: Tensor.from(slopes, [heads], { device }) }),
    ...(mask && { mask: AttentionMask.from(length, length, (query, key) => (query * 7 + key * 3) % 5 > 0) }),
  });
  const [dq, dk, dv] = tape.backward(out, dout, [q, k, v]) as [Tensor, Tensor, Tensor];
  return { out, dq, dk, dv };
}

t.test("chunks give what all heads at once give, bit for bit, and what one rank gives", async (t) => {
  await fc.assert(
    fc.asyncProperty(cases, async (given) => {
      const ranks = localRanks(given.ranks, { timeoutMs: 20_000 });
      const run = (options: UlyssesOptions) =>
        ranks.map((communicator) =>
          attended(given, ulysses(communicator, given.length, options), communicator.device),
        );
      const [chunked, atOnce] = [run({ chunks: given.chunks }), run({ chunks: 1 })];
      const device = (ranks[0] as Communicator).device;
      const whole = attended(given, serial(given.length), device);
      for (const [rank, found] of chunked.entries()) {
        t.strictSame(
          await differing(found, atOnce[rank] ?? {}, { deterministic: true }),
          [],
          `rank ${rank} of ${JSON.stringify(given)}`,
        );
        const { shard } = ulysses(ranks[rank] as Communicator, given.length);
        const expected = Object.fromEntries(names.map((name) => [name, shard.take(whole[name] as Tensor)]));
        const other = await differing(found, expected, { deterministic: true });
        // Key heads that ranks share get their gradients in parts, which are summed.
        const isShared = given.keyHeads < given.ranks;
        for (const name of isShared ? (["dk", "dv"] as const) : []) {
          const error = relativeError(
            await (found[name] as Tensor).data(),
            await (expected[name] as Tensor).data(),
          );
          t.ok(error < bounds[given.dtype].gradient, `${name}: ${error} of ${JSON.stringify(given)}`);
        }
        t.strictSame(
          other.filter((name) => !(isShared && name.startsWith("d") && name !== "dq")),
          [],
          `rank ${rank} and serial of ${JSON.stringify(given)}`,
        );
      }
      for (const communicator of ranks) communicator.dispose();
    }),
    { numRuns: 60 },
  );
});

/** What each rank calls, forward and back. */
function passes(size: number, options: UlyssesOptions) {
  const watched = ["communicatorExchange", "attentionForward", "attentionBackward", "copy"] as const;
  const ranks = localRanks(size, { timeoutMs: 20_000 });
  return ranks.map((communicator) => {
    const { attend, shard } = ulysses(communicator, 8, options);
    const x = Tensor.normal([1, shard.size, 6, headDim], { device: communicator.device });
    using tape = new Tape();
    tape.watch(x);
    let out = x;
    const forward = callsOf(watched, () => {
      out = attend(x, x, x);
    });
    const backward = callsOf(watched, () => void tape.backward(out, out, [x]));
    return { forward, backward };
  });
}

t.test("the next chunk is on its way while attention is computed for one, and the one before leaves", (t) => {
  const steps = (calls: string[]) =>
    calls
      .filter((name) => name !== "copy")
      .map((name) => (name === "communicatorExchange" ? "exchange" : "attention"))
      .join(" ");
  for (const { forward, backward } of passes(2, { chunks: 3 })) {
    for (const calls of [forward, backward]) {
      t.equal(
        steps(calls),
        "exchange exchange attention exchange exchange attention exchange attention exchange",
      );
    }
  }
  for (const { forward } of passes(2, {})) t.equal(steps(forward), "exchange attention exchange");
  t.end();
});

t.test("what each chunk keeps is given back to it", async (t) => {
  const ranks = localRanks(2, { timeoutMs: 20_000 });
  const outs = ranks.map((communicator) => {
    const { attend, shard } = ulysses(communicator, 9, { chunks: 3 });
    const x = Tensor.normal([1, shard.size, 6, headDim], { device: communicator.device });
    const kept: { out: Tensor; logSumExp: Tensor }[] = [];
    const first = attend(x, x, x, {}, (forward) => {
      const made = forward();
      const copies = { out: made.out.contiguous(), logSumExp: made.logSumExp.contiguous() };
      for (const copy of Object.values(copies)) Scope.current?.disown(copy);
      kept.push(copies);
      return made;
    });
    t.equal(kept.length, 3);
    const again = attend(x, x, x, {}, () => kept.shift() as (typeof kept)[0]);
    return { first, again };
  });
  for (const { first, again } of outs) t.strictSame(await differing({ out: again }, { out: first }), []);
});

t.test("one rank copies and sends nothing", (t) => {
  for (const { forward, backward } of passes(1, { chunks: 3 })) {
    t.strictSame(forward, ["attentionForward"]);
    t.strictSame(backward, ["attentionBackward"]);
  }
  t.end();
});

t.test("chunks take no more memory than all heads at once, but for one of them", async (t) => {
  const [length, heads, size, chunks] = [512, 8, 2, 4];
  const peaks = (count: number) =>
    rankPeaks(size, (communicator) => {
      const { attend, shard } = ulysses(communicator, length, { chunks: count });
      const x = Tensor.normal([2, shard.size, heads, 64], { device: communicator.device });
      return () => {
        using tape = new Tape();
        tape.watch(x);
        const out = attend(x, x, x, { causal: true });
        for (const tensor of [...tape.backward(out, x, [x]), out]) tensor.dispose();
      };
    });
  const [atOnce, chunked] = [await peaks(1), await peaks(chunks)];
  const chunk = (2 * length * heads * 64 * 4) / size / chunks;
  for (const [rank, peak] of chunked.entries()) {
    const most = (atOnce[rank] ?? 0) + chunk;
    t.ok(peak <= most, `${peak} bytes in chunks, ${most} with one more than at once`);
  }
});

t.test("what chunks cannot be", (t) => {
  const [only] = localRanks(1) as [Communicator];
  refuses(t, [
    [
      () => ulysses(only, 8, { chunks: 0 }),
      "ERR_OPTION",
      "ulysses: chunks is 0, expected an integer of 1 or more",
    ],
    [() => ulysses(only, 8, { chunks: 1.5 }), "ERR_OPTION", /chunks is 1.5/],
  ]);
  t.end();
});
