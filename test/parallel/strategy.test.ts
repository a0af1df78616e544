// How heads and columns are divided, and what a strategy refuses before anything is sent.
import fc from "fast-check";
import {
  AttentionMask,
  Device,
  hybrid,
  type LinearOptions,
  megatron,
  ring,
  Tensor,
  ulysses,
  zigzag,
} from "longseq";
import t from "tap";
import { localRanks } from "../support/ranks.ts";
import { type Refused, refuses } from "../support/refusals.ts";
import { strategyOf, ways } from "../support/strategies.ts";

t.test("every head is held once, with the key head that it reads", async (t) => {
  const property = fc.property(
    fc.integer({ min: 1, max: 12 }),
    fc.integer({ min: 1, max: 6 }),
    fc.integer({ min: 1, max: 12 }),
    (keyHeads, group, size) => {
      const ranks = localRanks(size);
      const held = ranks.map((communicator) => megatron(communicator, 1).heads(keyHeads * group, keyHeads));
      const queries = held.flatMap(({ query }) =>
        Array.from({ length: query.end - query.begin }, (_, i) => query.begin + i),
      );
      t.strictSame(
        queries,
        Array.from({ length: keyHeads * group }, (_, head) => head),
      );
      for (const { query, keyValue } of held) {
        const [heads, keys] = [query.end - query.begin, keyValue.end - keyValue.begin];
        if (heads === 0) t.equal(keys, 0);
        for (let i = 0; i < heads; i++) {
          const read = keyValue.begin + Math.floor(i / (heads / keys));
          t.equal(read, Math.floor((query.begin + i) / group));
        }
      }
      const sizes = held.map(({ query }) => query.end - query.begin);
      t.ok(Math.max(...sizes) - Math.min(...sizes) <= group);
      for (const communicator of ranks) communicator.dispose();
    },
  );
  fc.assert(property, { numRuns: 40 });
});

/** Places for gradients that there are not. */
function sums(make: (shape: readonly number[]) => Tensor): LinearOptions[] {
  return [{ dbias: make([8]) }, { dweight: make([3, 3]) }];
}

t.test("scores that cannot be are refused by ranks that have no heads", (t) => {
  for (const way of ["ulysses", "megatron"] as const) {
    for (const communicator of localRanks(4)) {
      const { device } = communicator;
      const strategy = strategyOf(way, communicator, 8);
      const { query } = strategy.heads(2, 2);
      const q = Tensor.zeros([1, strategy.inner.size, query.end - query.begin, 8], { device });
      const slopes = Tensor.zeros([query.end - query.begin], { device });
      refuses(t, [
        [() => strategy.attend(q, q, q, { softcap: -1 }), "ERR_OPTION", /softcap is -1/],
        [() => strategy.attend(q, q, q, { scale: Number.NaN }), "ERR_OPTION", /scale is not a finite/],
        [() => strategy.attend(q, q, q, { alibiSlopes: slopes.to("bfloat16") }), "ERR_DTYPE", /alibiSlopes/],
        [
          () => strategy.attend(q, q, q, { alibiSlopes: slopes.toDevice(new Device()) }),
          "ERR_DEVICE",
          /device/,
        ],
      ]);
    }
  }
  t.end();
});

t.test("a rank without heads refuses what the others refuse", (t) => {
  const ranks = localRanks(3);
  for (const [rank, communicator] of ranks.entries()) {
    const { attend, heads } = strategyOf("megatron", communicator, 6);
    const { query } = heads(2, 2);
    const q = Tensor.zeros([1, 6, query.end - query.begin, 8], { device: communicator.device });
    refuses(t, [
      [() => attend(q, q, q, { windoww: 1 } as never), "ERR_OPTION", /windoww/],
      [() => attend(q, q, q, { causal: 1 as never }), "ERR_OPTION", /causal is number/],
      [() => attend(q, q, q, { mask: AttentionMask.causal(5) }), "ERR_SHAPE", /mask is \[5, 5\], expected/],
    ]);
    t.equal(q.shape[2], rank === 0 ? 0 : 1);
  }
  t.end();
});

t.test("what cannot be is refused on each rank, and the group goes on", async (t) => {
  for (const way of ways) {
    const ranks = localRanks(2, { timeoutMs: 5000 });
    const strategies = ranks.map((communicator) => strategyOf(way, communicator, 6));
    for (const [rank, strategy] of strategies.entries()) {
      const { device } = ranks[rank] as (typeof ranks)[0];
      const make = (shape: readonly number[]) => Tensor.zeros(shape, { device });
      const rows = strategy.inner.size;
      const q = make([1, rows, 2, 8]);
      const refused: Refused[] = [
        [() => strategy.attend(q, q, make([1, rows, 1, 8])), "ERR_SHAPE", /v/],
        [() => strategy.attend(make([1, rows, 3, 8]), q, q), "ERR_SHAPE", /3/],
        [() => strategy.attend(q, q.to("bfloat16"), q), "ERR_DTYPE", /k is bfloat16, expected float32/],
        [() => strategy.attend(q, q, undefined as never), "ERR_OPTION", /v is undefined, expected a Tensor/],
        [() => strategy.enter(make([1, strategy.shard.size, 8]), make([8, 7])), "ERR_SHAPE", /7/],
        // Each rank sees to a part of these alone.
        [
          () => strategy.attend(q, q, q, { alibiSlopes: make([4]) }),
          "ERR_SHAPE",
          /alibiSlopes has the shape \[4\], expected \[2/,
        ],
        [
          () => strategy.attend(q, q, q, { mask: AttentionMask.causal(7) }),
          "ERR_SHAPE",
          "attention: mask is [7, 7], expected [6, 6]",
        ],
        [
          () => strategy.attend(q, q, q, { cuSeqlens: [0, 4, 9] }),
          "ERR_OPTION",
          /attention: cuSeqlens ends at 9, expected 6/,
        ],
        [
          () => strategy.attend(q, q, q, { cuSeqlens: [0, 4] }),
          "ERR_OPTION",
          /cuSeqlens ends at 4, expected 6/,
        ],
        ...sums(make).map(
          (options): Refused => [
            () => strategy.enter(make([1, strategy.shard.size, 8]), make([8, 8]), undefined, options),
            options.dbias ? "ERR_OPTION" : "ERR_SHAPE",
            options.dbias
              ? /dbias is given without bias/
              : /dweight has the shape \[3, 3\], expected \[8, 8\]/,
          ],
        ),
        ...sums(make).map(
          (options): Refused => [
            () =>
              strategy.leave(make([1, rows, 8]), make([8, 8]), undefined, { ...options, activation: "gelu" }),
            options.dbias ? "ERR_OPTION" : "ERR_SHAPE",
            options.dbias
              ? /dbias is given without bias/
              : /dweight has the shape \[3, 3\], expected \[8, 8\]/,
          ],
        ),
      ];
      // All rows are there under megatron: attention itself can take others.
      if (way !== "megatron") {
        refused.push([
          () => strategy.attend(make([1, rows + 1, 2, 8]), q, q),
          "ERR_SHAPE",
          /has 4 rows in axis 1, expected 3/,
        ]);
      } else {
        refused.push(
          [
            () => strategy.enter(make([1, 6, 8]), make([8, 8])),
            "ERR_SHAPE",
            "megatron.enter: x has 6 rows in axis 1, expected 3 (those of the shard)",
          ],
          [
            () => strategy.leave(make([1, 3, 8]), make([8, 8])),
            "ERR_SHAPE",
            "megatron.leave: x has 3 rows in axis 1, expected 6 (all of them)",
          ],
          [
            () => strategy.leave(make([1, 6, 8]).to("float16"), make([8, 8])),
            "ERR_DTYPE",
            "megatron.leave: weight is float32, expected float16 (x's)",
          ],
        );
      }
      refuses(t, refused);
    }
    const outs = strategies.map(({ attend, inner }, rank) => {
      const q = Tensor.zeros([1, inner.size, 2, 8], { device: (ranks[rank] as (typeof ranks)[0]).device });
      return attend(q, q, q).data();
    });
    t.equal((await Promise.all(outs)).length, 2, `${way} goes on`);
  }
  const [only] = localRanks(1) as [ReturnType<typeof localRanks>[0]];
  refuses(t, [
    [
      () => hybrid(only, 8, { ulysses: 2 }),
      "ERR_OPTION",
      "hybrid: ulysses is 2, expected a divisor of 1 (the ranks)",
    ],
    [() => hybrid(only, 8, 4 as never), "ERR_OPTION", "hybrid: options is number, expected an object"],
    [() => megatron(only, -1), "ERR_SHAPE", /length is -1/],
  ]);
  for (const make of [hybrid, megatron, ring, ulysses, zigzag]) {
    const anything = make as unknown as (...given: unknown[]) => unknown;
    const message = (found: string) => `${make.name}: communicator is ${found}, expected a Communicator`;
    refuses(t, [
      [() => anything(), "ERR_OPTION", message("undefined")],
      [() => anything({ rank: 0, size: 1 }, 8), "ERR_OPTION", message("object")],
    ]);
  }
});

t.test("attention's options are checked before a plan is made of them", async (t) => {
  const ranks = localRanks(2);
  for (const way of ways) {
    const { attend, inner } = strategyOf(way, ranks[0] as (typeof ranks)[0], 6);
    const q = Tensor.zeros([1, inner.size, 2, 8], { device: (ranks[0] as (typeof ranks)[0]).device });
    const withOptions = (options: object | null, keep?: unknown) => () =>
      attend(q, q, q, options as object, keep as never);
    refuses(t, [
      [withOptions(null), "ERR_OPTION", "attend: options is null, expected an object"],
      [withOptions({ causal: Symbol("s") }), "ERR_OPTION", "attention: causal is symbol, expected a boolean"],
      [withOptions({ mask: 5 }), "ERR_OPTION", "attention: mask is number, expected an AttentionMask"],
      [
        withOptions({ cuSeqlens: {} }),
        "ERR_OPTION",
        /^attention: cuSeqlens is object, expected an Int32Array/,
      ],
      [withOptions({ queryPositions: [] }), "ERR_OPTION", 'attend: options has no "queryPositions"'],
      [withOptions({}, 5), "ERR_OPTION", "attend: keep is number, expected a function"],
    ]);
  }
});
