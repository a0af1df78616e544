// What a ring does not do: copy, send, merge or keep what it need not.
import { type AttentionOptions, type Communicator, ring, Tape, Tensor, zigzag } from "longseq";
import t from "tap";
import { callsOf } from "../support/calls.ts";
import { kind } from "../support/devices.ts";
import { apartRanks, localRanks, rankPeaks } from "../support/ranks.ts";

const strategies = { ring, zigzag };
/** All but dq, of each rank's out, dq, dk and dv; dq too where its sums have an order. */
const isOrdered = (_: unknown, i: number) => kind === "cpu" || i % 4 !== 1;
const watched = [
  "communicatorExchange",
  "attentionForward",
  "attentionForwardMerged",
  "attentionBackward",
  "queryGradientAdd",
  "add",
  "copy",
] as const;

/** What each rank calls, forward and back. */
function passes(make: typeof ring, size: number, options: AttentionOptions, ranksOf = localRanks) {
  return ranksOf(size, { timeoutMs: 20_000 }).map((communicator) => {
    const { attend, shard } = make(communicator, 8 * size);
    const { device } = communicator;
    const like = { dtype: "bfloat16" as const, device };
    const [q, k, v] = [1, 2, 3].map((seed) => Tensor.normal([1, shard.size, 2, 8], { seed, ...like })) as [
      Tensor,
      Tensor,
      Tensor,
    ];
    using tape = new Tape();
    tape.watch(q, k, v);
    let out = q;
    const forward = callsOf(watched, () => {
      out = attend(q, k, v, options);
    });
    const backward = callsOf(watched, () => void tape.backward(out, q, [q, k, v]));
    return { forward, backward };
  });
}

t.test("where no keys travel, attention is all there is", (t) => {
  for (const make of Object.values(strategies)) {
    for (const given of [
      passes(make, 1, {}),
      passes(make, 4, { cuSeqlens: [0, 4, 8, 12, 16, 20, 24, 28, 32] }),
    ]) {
      for (const { forward, backward } of given) {
        t.strictSame(forward, ["attentionForward"]);
        t.strictSame(backward, ["attentionBackward"]);
      }
    }
  }
  t.end();
});

const count = (calls: readonly string[]) =>
  Object.fromEntries(
    watched.map((name) => [name, calls.filter((other) => other === name).length] as const),
  ) as Record<(typeof watched)[number], number>;

t.test("ranks that share memory lend: nothing is copied or added but by attention", (t) => {
  const size = 4;
  for (const [rank, { forward, backward }] of passes(zigzag, size, { causal: true }).entries()) {
    // The first rank's front sees no other's keys, and no other sees those of its back.
    const own = rank === 0 ? 2 : 1;
    t.strictSame(count(forward), {
      communicatorExchange: 2, // keys are lent, and come back
      attentionForward: own,
      attentionForwardMerged: size - 1,
      attentionBackward: 0,
      queryGradientAdd: 0,
      add: 0,
      copy: 0, // the last step rounds the sum
    });
    t.strictSame(count(backward), {
      communicatorExchange: size + 1,
      attentionForward: 0,
      attentionForwardMerged: 0,
      attentionBackward: 0,
      queryGradientAdd: own + size - 1,
      add: 0,
      copy: 2, // dk and dv, rounded
    });
  }
  t.end();
});

t.test("others send: a step is one exchange, one call that merges; on the way back two sums", (t) => {
  const size = 4;
  const ranks = passes(zigzag, size, { causal: true }, apartRanks);
  for (const [rank, { forward, backward }] of ranks.entries()) {
    const own = rank === 0 ? 2 : 1;
    t.strictSame(count(forward), {
      communicatorExchange: size - 1,
      attentionForward: own,
      attentionForwardMerged: size - 1,
      attentionBackward: 0,
      queryGradientAdd: 0,
      add: 0,
      copy: 0,
    });
    t.strictSame(count(backward), {
      communicatorExchange: size + 1,
      attentionForward: 0,
      attentionForwardMerged: 0,
      attentionBackward: 0,
      queryGradientAdd: own + size - 1,
      add: 2 * (size - 1), // dk and dv; dq is added to by attention itself
      copy: 2,
    });
  }
  t.end();
});

t.test("lent or sent, results have the same bits", async (t) => {
  const rows = 300; // more than tiles of queries have, and no multiple of them
  for (const [name, options] of Object.entries({
    causal: { causal: true },
    "all keys": {},
    "a window": { window: [200, 100] },
    documents: { causal: true, cuSeqlens: [0, 130, 420, 900, 901, 1200] },
  } satisfies Record<string, AttentionOptions>)) {
    for (const make of Object.values(strategies)) {
      const values: ArrayLike<number>[][] = [];
      for (const ranksOf of [localRanks, apartRanks]) {
        const found = ranksOf(4, { timeoutMs: 20_000 }).map((communicator) => {
          const { attend, shard } = make(communicator, 4 * rows);
          const like = { dtype: "bfloat16" as const, device: communicator.device };
          const [q, k, v, dout] = [1, 2, 3, 4].map((seed) =>
            Tensor.normal([2, shard.size, 2, 8], { seed: seed + 10 * communicator.rank, ...like }),
          ) as [Tensor, Tensor, Tensor, Tensor];
          using tape = new Tape();
          tape.watch(q, k, v);
          const out = attend(q, k, v, options);
          return [out, ...tape.backward(out, dout, [q, k, v])];
        });
        values.push(await Promise.all(found.flat().map((x) => x.data())));
      }
      // On a GPU dq is summed in any order.
      const [lent, sent] = values.map((all) => all.filter(isOrdered));
      t.strictSame(lent, sent, `${make.name}, ${name}`);
    }
  }
});

t.test("what was lent may be written to behind the pass, and let go", async (t) => {
  const size = 3;
  const ranks = localRanks(size, { timeoutMs: 20_000 });
  const outs = ranks.map((communicator) => {
    const { attend, shard } = ring(communicator, 8 * size);
    const x = Tensor.from(new Float32Array(shard.size * 8).fill(communicator.rank), [1, shard.size, 1, 8], {
      device: communicator.device,
    });
    const out = attend(x, x, x);
    x.write(new Float32Array(x.size).fill(Number.NaN));
    x.dispose();
    return out;
  });
  for (const out of outs) t.ok((await out.data()).every(Number.isFinite));
});

t.test("what never comes to be lent is an error, and memory all the same", async (t) => {
  const [first] = localRanks(2, { timeoutMs: 100 }) as [Communicator, Communicator];
  const { attend, shard } = ring(first, 600);
  const x = Tensor.normal([1, shard.size, 2, 8], { device: first.device });
  using tape = new Tape();
  tape.watch(x);
  const [dx] = tape.backward(attend(x, x, x), x, [x]) as [Tensor];
  await t.rejects(dx.data(), { code: "ERR_COMM" });
});

t.test("keys that are parts of a product are copied once for all steps", (t) => {
  const size = 4;
  for (const communicator of localRanks(size)) {
    const { attend, shard } = ring(communicator, 8 * size);
    const product = Tensor.normal([1, shard.size, 6, 8], { seed: 1, device: communicator.device });
    const [q, k, v] = [0, 2, 4].map((head) => product.slice(2, head, head + 2)) as [Tensor, Tensor, Tensor];
    t.equal(callsOf(["copy"], () => attend(q, k, v).dispose()).length, 2);
  }
  t.end();
});

t.test("keys that have gone on are let go: more ranks take no more memory each", async (t) => {
  const rows = 64;
  for (const make of Object.values(strategies)) {
    const peak = async (size: number) => {
      const peaks = await rankPeaks(size, (communicator) => {
        const { attend } = make(communicator, rows * size);
        const x = Tensor.normal([2, rows, 4, 32], { device: communicator.device });
        return () => attend(x, x, x).dispose();
      });
      return Math.max(...peaks);
    };
    const [few, many] = [await peak(5), await peak(10)];
    const keys = 2 * (2 * rows * 4 * 32 * 4);
    t.ok(many < few + 3 * keys, `${many} bytes at 10 ranks, ${few} at 5`);
  }
});
