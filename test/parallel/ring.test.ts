// What a ring does not do: copy, send, merge or keep what it need not.
import { type AttentionOptions, ring, Tape, Tensor, zigzag } from "longseq";
import t from "tap";
import { callsOf } from "../support/calls.ts";
import { isTakenEarly, localRanks, rankPeaks } from "../support/ranks.ts";

const strategies = { ring, zigzag };
const watched = [
  "communicatorExchange",
  "attentionForward",
  "attentionForwardMerged",
  "attentionBackward",
  "add",
  "copy",
] as const;

/** How often each rank calls what, forward and back. */
function passes(make: typeof ring, size: number, options: AttentionOptions) {
  return localRanks(size, { timeoutMs: 20_000 }).map((communicator) => {
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

t.test("a step is one exchange, one call that merges; on the way back two sums", (t) => {
  const count = (calls: readonly string[]) =>
    Object.fromEntries(
      watched.map((name) => [name, calls.filter((other) => other === name).length] as const),
    ) as Record<(typeof watched)[number], number>;
  const size = 4;
  for (const { forward, backward } of passes(zigzag, size, { causal: true })) {
    t.strictSame(count(forward), {
      communicatorExchange: size - 1,
      attentionForward: 1,
      attentionForwardMerged: size - 1,
      attentionBackward: 0,
      add: 0,
      copy: 1, // the sum, rounded
    });
    t.strictSame(count(backward), {
      communicatorExchange: size + 1,
      attentionForward: 0,
      attentionForwardMerged: 0,
      attentionBackward: size,
      add: 2 * (size - 1), // dk and dv; dq is added to by attention itself
      copy: 3, // the sums, rounded
    });
  }
  t.end();
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

t.test(
  "keys that have gone on are let go: more ranks take no more memory each",
  { skip: isTakenEarly },
  async (t) => {
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
  },
);
