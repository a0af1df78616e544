// Attention over a sequence that ranks share is attention over the whole of it, and so are its gradients.
import fc from "fast-check";
import { attention, Tape, Tensor } from "longseq";
import t from "tap";
import { relativeError } from "../support/compare.ts";
import { localRanks } from "../support/ranks.ts";
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
  seed: fc.nat(1000),
});

const headDim = 8;

function problem({ batch, length, keyHeads, group, documents, ...given }: Case, device: Tensor["device"]) {
  const make = (heads: number, offset: number) =>
    Tensor.normal([batch, length, heads, headDim], { seed: given.seed + offset, device });
  const heads = keyHeads * group;
  const cuSeqlens = [0, ...documents.filter((end) => end < length).sort((a, b) => a - b), length];
  return {
    tensors: [make(heads, 0), make(keyHeads, 1), make(keyHeads, 2), make(heads, 3)] as [
      Tensor,
      Tensor,
      Tensor,
      Tensor,
    ],
    options: {
      causal: given.causal,
      ...(given.window && { window: given.window }),
      ...(documents.length > 0 && { cuSeqlens }),
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
        const ranks = localRanks(given.ranks, { timeoutMs: 20_000 });
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
