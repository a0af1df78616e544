// Attention over a sequence that ranks share is attention over the whole of it, and so are its gradients.
import fc from "fast-check";
import { AttentionMask, attention, attentionBackward, attentionForward, Device, Tape, Tensor } from "longseq";
import t from "tap";
import { relativeError } from "../support/compare.ts";
import { apartRanks, localRanks } from "../support/ranks.ts";
import { strategyOf, ways } from "../support/strategies.ts";

interface Case {
  ranks: number;
  batch: number;
  length: number;
  keyHeads: number;
  group: number;
  causal: boolean;
  window: [number, number] | undefined;
  documents: number[];
  softcap: boolean;
  alibi: boolean;
  /** Pairs of rows and columns are hidden by a mask, and whole stretches of them. */
  mask: boolean;
  deterministic: boolean;
  /** Ranks cannot lend each other tensors. */
  apart: boolean;
  seed: number;
}

const cases: fc.Arbitrary<Case> = fc.record({
  ranks: fc.constantFrom(1, 2, 3, 4, 8),
  batch: fc.integer({ min: 1, max: 2 }),
  length: fc.integer({ min: 0, max: 70 }),
  keyHeads: fc.integer({ min: 1, max: 4 }),
  group: fc.integer({ min: 1, max: 3 }),
  causal: fc.boolean(),
  window: fc.option(fc.tuple(fc.integer({ min: -1, max: 20 }), fc.integer({ min: -1, max: 20 })), {
    nil: undefined,
  }),
  documents: fc.array(fc.integer({ min: 0, max: 70 }), { maxLength: 4 }),
  softcap: fc.boolean(),
  alibi: fc.boolean(),
  mask: fc.boolean(),
  deterministic: fc.boolean(),
  apart: fc.boolean(),
  seed: fc.nat(1000),
});

const headDim = 8;

function problem({ batch, length, keyHeads, group, documents, ...given }: Case, device: Tensor["device"]) {
  const make = (heads: number, offset: number) =>
    Tensor.normal([batch, length, heads, headDim], { seed: given.seed + offset, device });
  const heads = keyHeads * group;
  const cuSeqlens = [0, ...documents.filter((end) => end < length).sort((a, b) => a - b), length];
  const isVisible = (query: number, key: number) =>
    (query * 7 + key * 3 + given.seed) % 5 > 0 && (query >> 4) + (key >> 4) !== given.seed % 6;
  return {
    tensors: [make(heads, 0), make(keyHeads, 1), make(keyHeads, 2), make(heads, 3)] as [
      Tensor,
      Tensor,
      Tensor,
      Tensor,
    ],
    options: {
      causal: given.causal,
      deterministic: given.deterministic,
      ...(given.window && { window: given.window }),
      ...(documents.length > 0 && { cuSeqlens }),
      ...(given.mask && {
        mask: AttentionMask.from(length, length, isVisible),
      }),
      ...(given.softcap && { softcap: 2 }),
      ...(given.alibi && {
        alibiSlopes: Tensor.from(
          Array.from({ length: heads }, (_, head) => 2 ** -(head + 1)),
          [heads],
          { device },
        ),
      }),
    },
  };
}

function gradients(tape: Tape, out: Tensor, dout: Tensor, wrt: readonly Tensor[]) {
  return [out, ...tape.backward(out, dout, wrt)];
}

for (const way of ways) {
  t.test(`${way} equals the whole`, async (t) => {
    await fc.assert(
      fc.asyncProperty(cases, async (given) => {
        const ranks = (given.apart ? apartRanks : localRanks)(given.ranks, { timeoutMs: 20_000 });
        const results = await Promise.all(
          ranks.map(async (communicator) => {
            const strategy = strategyOf(way, communicator, given.length);
            const { tensors, options } = problem(given, communicator.device);
            using tape = new Tape();
            const [q, k, v, dout] = tensors.map((x, i) => {
              const heads = strategy.heads(given.keyHeads * given.group, given.keyHeads);
              const { begin, end } = i === 0 || i === 3 ? heads.query : heads.keyValue;
              const own = strategy.inner.take(x).slice(2, begin, end).contiguous();
              tape.watch(own);
              return own;
            }) as [Tensor, Tensor, Tensor, Tensor];
            const { query } = strategy.heads(given.keyHeads * given.group, given.keyHeads);
            const { alibiSlopes } = options;
            const out = strategy.attend(q, k, v, {
              ...options,
              ...(alibiSlopes && { alibiSlopes: alibiSlopes.slice(0, query.begin, query.end) }),
            });
            return { strategy, found: await gradients(tape, out, dout, [q, k, v]) };
          }),
        );
        const { tensors, options } = problem(given, (ranks[0] as (typeof ranks)[0]).device);
        const [q, k, v, dout] = tensors;
        using tape = new Tape();
        tape.watch(q, k, v);
        const whole = await gradients(tape, attention(q, k, v, options), dout, [q, k, v]);
        for (const [i, expected] of whole.entries()) {
          const sums = await assembled(given, i, expected.shape, results);
          const error = relativeError(sums, await expected.data());
          t.ok(error < 1e-5, `${["out", "dq", "dk", "dv"][i]}: ${error} of ${JSON.stringify(given)}`);
        }
        for (const communicator of ranks) communicator.dispose();
      }),
      { numRuns: 40 },
    );
  });
}

type Results = readonly { strategy: ReturnType<typeof strategyOf>; found: readonly Tensor[] }[];

/** Each rank's part in its place; what several ranks have a part of, summed. */
async function assembled(given: Case, index: number, shape: readonly number[], results: Results) {
  const [batch = 0, length = 0, heads = 0] = shape;
  const sums = new Float64Array(batch * length * heads * headDim);
  for (const { strategy, found } of results) {
    const range = strategy.heads(given.keyHeads * given.group, given.keyHeads);
    const { begin, end } = index < 2 ? range.query : range.keyValue;
    const values = await (found[index] as Tensor).data();
    const positions = strategy.inner.positions();
    for (let b = 0; b < batch; b++) {
      for (const [row, position] of positions.entries()) {
        for (let c = 0; c < (end - begin) * headDim; c++) {
          const to = ((b * length + position) * heads + begin) * headDim + c;
          const from = (b * positions.length + row) * (end - begin) * headDim + c;
          sums[to] = (sums[to] ?? 0) + (values[from] ?? Number.NaN);
        }
      }
    }
  }
  return sums;
}

t.test("sums are carried in float32: no more error at many ranks than at one", async (t) => {
  const given = {
    batch: 1,
    length: 256,
    keyHeads: 1,
    group: 1,
    causal: true,
    window: undefined,
    documents: [],
    mask: false,
    deterministic: false,
    apart: false,
    softcap: false,
    alibi: false,
    seed: 5,
  };
  const { tensors } = problem({ ...given, ranks: 1 }, Device.default);
  const [q, k, v, dout] = tensors.map((x) => x.to("bfloat16")) as typeof tensors;
  const [wq, wk, wv, wdout] = [q, k, v, dout].map((x) => x.to("float32")) as typeof tensors;
  const exact = attentionForward(wq, wk, wv, { causal: true, implementation: "reference" });
  const { dk, dv, dq } = attentionBackward(
    { q: wq, k: wk, v: wv, ...exact, dout: wdout },
    { causal: true, implementation: "reference" },
  );
  const expected = await Promise.all([exact.out, dq, dk, dv].map((x) => x.data()));
  for (const way of ["ring", "zigzag"] as const) {
    const errors = [];
    for (const size of [1, 2, 4, 8, 16]) {
      const parts = localRanks(size).map((communicator) => {
        const strategy = strategyOf(way, communicator, given.length);
        const own = [q, k, v, dout].map((x) =>
          strategy.shard.take(x).toDevice(communicator.device),
        ) as typeof tensors;
        using tape = new Tape();
        tape.watch(...own);
        const out = strategy.attend(own[0], own[1], own[2], { causal: true });
        return { strategy, found: [out, ...tape.backward(out, own[3], own.slice(0, 3))] };
      });
      const sums = await Promise.all(
        expected.map((_, i) => assembled({ ...given, ranks: size }, i, q.shape, parts)),
      );
      errors.push(sums.map((sum, i) => relativeError(sum, expected[i] ?? [])));
    }
    const [alone = [], ...many] = errors;
    for (const row of many) {
      for (const [i, error] of row.entries())
        t.ok(error < 1.2 * (alone[i] ?? 0), `${way}: ${error}, alone ${alone[i]}`);
    }
  }
});

t.test("deterministic: the same bits at 1, 2, 4 and 8 ranks, contiguous and zigzag", async (t) => {
  for (const dtype of ["float32", "bfloat16"] as const) {
    for (const options of [
      { causal: true },
      { causal: false, cuSeqlens: [0, 50, 150, 203] },
      { window: [30, 10] as const },
    ]) {
      const [length, shape] = [203, [1, 203, 2, headDim]];
      const all: string[] = [];
      for (const way of ["ring", "zigzag"] as const) {
        for (const size of [1, 2, 4, 8]) {
          const parts = localRanks(size).map((communicator) => {
            const { device } = communicator;
            const { shard, attend } = strategyOf(way, communicator, length);
            const [q, k, v, dout] = [1, 2, 3, 4].map((seed) =>
              shard.take(Tensor.normal(shape, { seed, dtype, device })),
            ) as [Tensor, Tensor, Tensor, Tensor];
            using tape = new Tape();
            tape.watch(q, k, v);
            const out = attend(q, k, v, { ...options, deterministic: true });
            return { shard, found: [out, ...tape.backward(out, dout, [q, k, v])] };
          });
          const bits: number[][] = [];
          for (const { shard, found } of parts) {
            const rows = await Promise.all(found.map((x) => x.bits()));
            for (const [row, position] of shard.positions().entries()) {
              bits[position] = rows.flatMap((values) => [
                ...values.subarray(row * 2 * headDim, (row + 1) * 2 * headDim),
              ]);
            }
          }
          all.push(bits.join());
        }
      }
      t.equal(new Set(all).size, 1, `${dtype}, ${JSON.stringify(options)}`);
    }
  }
});
