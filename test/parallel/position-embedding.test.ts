// Learned positions that ranks share are the whole table: its rows, its gradients and its steps, each row in one place.
import fc from "fast-check";
import {
  AdamW,
  type Communicator,
  embedding,
  PartitionedPositionEmbedding,
  Scope,
  SequenceShard,
  Tape,
  Tensor,
} from "longseq";
import t from "tap";
import { differing } from "../support/bits.ts";
import { at, relativeError } from "../support/compare.ts";
import { localRanks } from "../support/ranks.ts";
import { type Refused, refuses } from "../support/refusals.ts";

type PositionsOf = (rank: number) => Int32Array;

const counts = [1, 2, 3, 4, 8];

/** Of shards with and without documents, and any that ranks may think of; `least` rows hold them. */
const layouts: fc.Arbitrary<{ ranks: number; least: number; positionsOf: PositionsOf }> = fc
  .record({
    ranks: fc.constantFrom(...counts),
    layout: fc.constantFrom("contiguous" as const, "zigzag" as const),
    length: fc.integer({ min: 0, max: 60 }),
    documents: fc.option(fc.array(fc.integer({ min: 0, max: 60 }), { maxLength: 5 }), { nil: undefined }),
    any: fc.option(
      fc.array(fc.array(fc.integer({ min: 0, max: 30 }), { maxLength: 20 }), { minLength: 8, maxLength: 8 }),
      { nil: undefined, freq: 3 },
    ),
  })
  .map(({ ranks, layout, length, documents, any }) => {
    const cuts = documents?.filter((end) => end < length).sort((a, b) => a - b);
    const cuSeqlens = cuts && [0, ...cuts, length];
    const shard = SequenceShard[layout](length, ranks, 0);
    const positionsOf: PositionsOf = (rank) =>
      any ? Int32Array.from(any[rank] ?? []) : shard.of(rank).positions(cuSeqlens);
    const all = Array.from({ length: ranks }, (_, rank) => [...positionsOf(rank)]).flat();
    return { ranks, least: Math.max(-1, ...all) + 1, positionsOf };
  });

const cases = fc.record({
  layout: layouts,
  unused: fc.integer({ min: 0, max: 9 }),
  hidden: fc.integer({ min: 1, max: 5 }),
  batch: fc.option(fc.integer({ min: 0, max: 2 }), { nil: undefined }),
  dtype: fc.constantFrom("float32" as const, "bfloat16" as const),
  dtable: fc.constantFrom("none" as const, "float32" as const, "parameter's" as const),
});

/** Their sums are exact, so that no order of them shows. */
const integers = (count: number, from: number) =>
  Array.from({ length: count }, (_, i) => ((i * 7 + from) % 17) - 8);

const rounded = (values: readonly number[], shape: readonly number[], dtype: "float32" | "bfloat16") =>
  Tensor.from(values, shape, { dtype }).data();

t.test("rows and gradients are those of the whole table", async (t) => {
  await fc.assert(
    fc.asyncProperty(cases, async ({ layout, unused, hidden, batch, dtype, dtable }) => {
      const { ranks, least, positionsOf } = layout;
      const positions = Math.max(1, least + unused);
      const whole = await Tensor.normal([positions, hidden], { seed: 3, std: 0.02, dtype }).data();
      const before = dtable === "none" ? 0 : 3;
      const sumDtype = dtable === "float32" ? "float32" : dtype;
      const sums = new Array<number>(positions * hidden).fill(before);
      const forward = localRanks(ranks, { timeoutMs: 20_000 }).map((communicator) => {
        const { rank, device } = communicator;
        const learned = new PartitionedPositionEmbedding(communicator, [positions, hidden], {
          seed: 3,
          dtype,
        });
        const { parameter } = learned;
        const sum = Tensor.from(new Array<number>(parameter.size).fill(before), parameter.shape, {
          device,
          dtype: sumDtype,
        });
        const own = [...positionsOf(rank)];
        const rows = Array.from({ length: batch ?? 1 }, () => own).flat();
        const dy = integers(rows.length * hidden, rank);
        for (const [i, value] of dy.entries()) {
          const element = at(rows, Math.floor(i / hidden)) * hidden + (i % hidden);
          sums[element] = at(sums, element) + value;
        }
        const tape = new Tape();
        tape.watch(parameter);
        const y = learned.forward(positionsOf, {
          ...(batch !== undefined && { batch }),
          ...(dtable !== "none" && { dtable: sum }),
        });
        t.strictSame(y.shape, [...(batch === undefined ? [] : [batch]), own.length, hidden]);
        t.equal(y.dtype, dtype);
        const expected = rows.flatMap((position) => [
          ...whole.subarray(position * hidden, (position + 1) * hidden),
        ]);
        return { learned, tape, sum, y, dy: Tensor.from(dy, y.shape, { dtype, device }), expected };
      });
      const backward = forward.map(({ tape, y, dy, learned: { parameter } }) =>
        tape.backward(y, dy, [parameter]),
      );
      for (const [rank, { learned, sum, y, expected }] of forward.entries()) {
        const { parameter, held } = learned;
        const [gradient] = backward[rank] as [Tensor];
        t.strictSame([...(await y.data())], expected, "rows");
        const own = sums.slice(held.begin * hidden, held.end * hidden);
        const total = await rounded(own, parameter.shape, dtable === "none" ? dtype : sumDtype);
        t.strictSame(await (dtable === "none" ? gradient : sum).data(), total, "sums");
        t.equal(gradient.dtype, dtype);
        if (dtable !== "none") t.ok((await gradient.data()).every((value) => value === 0));
      }
    }),
    { numRuns: 150 },
  );
});

/** Of one seed and layout: every rank's gradients of random rows, in documents that begin on every rank. */
function randomGradients(ranks: readonly Communicator[], dtype: "float32" | "bfloat16") {
  const shard = SequenceShard.zigzag(500, ranks.length, 0);
  const cuSeqlens = Array.from({ length: 51 }, (_, i) => 10 * i);
  const positionsOf: PositionsOf = (rank) => shard.of(rank).positions(cuSeqlens);
  const made = ranks.map((communicator) => {
    const { rank, device } = communicator;
    const learned = new PartitionedPositionEmbedding(communicator, [13, 8], { dtype });
    const { parameter } = learned;
    const dtable = Tensor.zeros(parameter.shape, { device });
    const tape = new Tape();
    tape.watch(parameter);
    const y = learned.forward(positionsOf, { dtable });
    return { tape, parameter, dtable, y, dy: Tensor.normal(y.shape, { seed: rank, dtype, device }) };
  });
  for (const { tape, parameter, y, dy } of made) tape.backward(y, dy, [parameter]);
  return { made, positionsOf };
}

for (const dtype of ["float32", "bfloat16"] as const) {
  t.test(`${dtype} gradients: sums in float32, the same bits in every run`, async (t) => {
    const ranks = localRanks(4);
    const { made, positionsOf } = randomGradients(ranks, dtype);
    const again = randomGradients(ranks, dtype);
    const found: number[] = [];
    const sums = new Float64Array(13 * 8);
    for (const [rank, { dtable, dy }] of made.entries()) {
      t.strictSame(await differing({ x: again.made[rank]?.dtable as Tensor }, { x: dtable }), []);
      found.push(...(await dtable.data()));
      const values = await dy.data();
      for (const [row, position] of positionsOf(rank).entries()) {
        for (let c = 0; c < 8; c++)
          sums[position * 8 + c] = at(sums, position * 8 + c) + at(values, row * 8 + c);
      }
    }
    const error = relativeError(found, sums);
    t.ok(error < 1e-6, String(error));
  });
}

t.test("each row is held once, and goes to any number of ranks", async (t) => {
  await fc.assert(
    fc.asyncProperty(
      fc.integer({ min: 1, max: 20 }),
      fc.constantFrom(...counts),
      fc.constantFrom(...counts),
      async (positions, before, after) => {
        const shape = [positions, 3] as const;
        const whole = Tensor.normal(shape, { seed: 5, std: 0.02 });
        const tables = localRanks(before).map(
          (communicator) => new PartitionedPositionEmbedding(communicator, shape, { seed: 5 }),
        );
        t.strictSame(
          tables.flatMap(({ held }) =>
            Array.from({ length: held.end - held.begin }, (_, row) => held.begin + row),
          ),
          Array.from({ length: positions }, (_, position) => position),
        );
        const parts = await Promise.all(tables.map(async ({ parameter }) => [...(await parameter.data())]));
        t.strictSame(parts.flat(), [...(await whole.data())], "as one rank makes them");
        const gathered = tables.map((table) => table.gather());
        for (const table of gathered) t.strictSame(await differing({ table }, { table: whole }), []);
        const again = localRanks(after).map((communicator) =>
          PartitionedPositionEmbedding.from(communicator, gathered[0] as Tensor),
        );
        for (const table of again.map((part) => part.gather())) {
          t.strictSame(await differing({ table }, { table: whole }), []);
        }
      },
    ),
    { numRuns: 20 },
  );
});

t.test("a table in another dtype is loaded in place, and rounded", async (t) => {
  const whole = Tensor.normal([5, 4], { seed: 2 });
  const tables = localRanks(2).map((communicator) => {
    const table = new PartitionedPositionEmbedding(communicator, [5, 4], { dtype: "bfloat16" });
    const { parameter } = table;
    table.load(whole);
    t.equal(table.parameter, parameter);
    return table;
  });
  const [gathered] = tables.map((table) => table.gather());
  t.strictSame(await gathered?.data(), await whole.to("bfloat16").data());
  const [communicator] = localRanks(1) as [Communicator];
  t.equal(
    PartitionedPositionEmbedding.from(communicator, whole, { dtype: "float16" }).parameter.dtype,
    "float16",
  );
});

t.test("a step on the ranks is a step of the whole table", async (t) => {
  const shape = [10, 4] as const;
  const shard = SequenceShard.zigzag(9, 3, 0);
  const positionsOf: PositionsOf = (rank) => shard.of(rank).positions([0, 4, 9]);
  const forward = localRanks(3).map((communicator) => {
    const table = new PartitionedPositionEmbedding(communicator, shape, { seed: 1 });
    const optimizer = new AdamW([table.parameter], { learningRate: 0.1 });
    const tape = new Tape();
    tape.watch(table.parameter);
    return { table, optimizer, tape, y: table.forward(positionsOf) };
  });
  for (const { table, optimizer, tape, y } of forward) {
    const { device } = table.communicator;
    const dy = Tensor.from(integers(y.size, 0), y.shape, { device });
    optimizer.step(tape.backward(y, dy, [table.parameter]));
    t.strictSame(
      optimizer.firstMoments.map((moment) => moment.shape[0]),
      [table.held.end - table.held.begin],
    );
  }
  const whole = Tensor.normal(shape, { seed: 1, std: 0.02 });
  const optimizer = new AdamW([whole], { learningRate: 0.1 });
  const tape = new Tape();
  tape.watch(whole);
  const all = [0, 1, 2].map((rank) => [...positionsOf(rank)]);
  const y = embedding(whole, Tensor.from(Int32Array.from(all.flat()), [9]));
  const dy = all.flatMap((own) => integers(own.length * 4, 0));
  optimizer.step(tape.backward(y, Tensor.from(dy, y.shape), [whole]));
  const [gathered] = forward.map(({ table }) => table.gather()) as [Tensor];
  t.strictSame(await gathered.data(), await whole.data());
});

t.test("a rank holds its rows, and nothing is left of a call", async (t) => {
  const shape = [1 << 14, 64] as const;
  const shard = SequenceShard.contiguous(800, 4, 0);
  const ranks = localRanks(4);
  const live = () => ranks.map(({ device }) => device.memory().liveBytes);
  const idle = live();
  const tables = ranks.map((communicator) => new PartitionedPositionEmbedding(communicator, shape));
  await Promise.all(ranks.map(({ device }) => device.synchronize()));
  const held = live();
  for (const [rank, bytes] of held.entries()) {
    const own = (shape[0] * shape[1] * 4) / 4;
    t.ok(bytes - at(idle, rank) < 1.1 * own, `${bytes - at(idle, rank)} bytes, of ${own}`);
  }
  Scope.run(() => {
    const tapes = tables.map(({ parameter }) => {
      const tape = new Tape();
      tape.watch(parameter);
      return tape;
    });
    const rows = tables.map((table) => table.forward((rank) => shard.of(rank).positions([0, 300, 800])));
    for (const [rank, y] of rows.entries()) {
      const { parameter } = tables[rank] as PartitionedPositionEmbedding;
      tapes[rank]?.backward(y, y, [parameter]);
    }
  });
  await Promise.all(ranks.map(({ device }) => device.synchronize()));
  t.strictSame(live(), held);
  for (const table of tables) table.dispose();
  t.strictSame(live(), idle);
  Scope.run(() => tables.push(new PartitionedPositionEmbedding(ranks[0] as Communicator, [4, 4])));
  t.notOk(tables.at(-1)?.parameter.disposed, "a scope does not own it");
});

t.test("what cannot be is refused at the call", async (t) => {
  const [first, second] = localRanks(2, { timeoutMs: 20_000 }) as [Communicator, Communicator];
  const make = (communicator: Communicator, shape: unknown, options?: object) =>
    new PartitionedPositionEmbedding(communicator, shape as [number, number], options);
  const tables = [make(first, [4, 2]), make(second, [4, 2])] as const;
  const [table] = tables;
  const of = (...positions: number[]) => Int32Array.from(positions);
  const name = "PartitionedPositionEmbedding";
  const { from } = PartitionedPositionEmbedding;
  const { device } = first;
  const sum = (shape: readonly number[], dtype: "float32" | "bfloat16" = "float32") =>
    Tensor.zeros(shape, { dtype, device });
  refuses(t, [
    [() => make({} as Communicator, [4, 2]), "ERR_OPTION", `${name}: communicator is object, expected`],
    [() => make(first, undefined), "ERR_OPTION", `${name}: shape is undefined, expected [positions, hidden]`],
    [() => make(first, [0, 2]), "ERR_SHAPE", `${name}: shape is [0, 2], expected`],
    [() => make(first, [4, 2, 1]), "ERR_SHAPE", `${name}: shape is [4, 2, 1], expected`],
    [() => make(first, [4, 2], { dtype: "int32" }), "ERR_DTYPE", `${name}: dtype is int32, expected`],
    [() => make(first, [4, 2], { seed: -1 }), "ERR_OPTION", /seed is -1/],
    [() => from(first, Tensor.zeros([4])), "ERR_SHAPE", `${name}: shape is [4], expected`],
    [() => from(first, [1] as unknown as Tensor), "ERR_OPTION", `${name}.from: whole is an array, expected`],
    [
      () => table.load(Tensor.zeros([2, 2])),
      "ERR_SHAPE",
      `${name}.load: whole has the shape [2, 2], expected [4, 2]`,
    ],
    [
      () => table.forward(of(1) as unknown as PositionsOf),
      "ERR_OPTION",
      `${name}: positionsOf is object, expected`,
    ],
    [
      () => table.forward(() => [1] as unknown as Int32Array),
      "ERR_OPTION",
      `${name}: the positions of rank 0 is an array, expected an Int32Array`,
    ],
    [
      () => table.forward(() => of(0), { batch: 1.5 }),
      "ERR_OPTION",
      `${name}: batch is 1.5, expected an integer of 0 or more`,
    ],
    [() => table.forward(() => of(0), { dtable: sum([4, 2]) }), "ERR_SHAPE", `${name}: dtable has the shape`],
    [
      () => table.forward(() => of(0), { dtable: sum([2, 2], "bfloat16") }),
      "ERR_DTYPE",
      `${name}: dtable is`,
    ],
    ...tables.flatMap((any) =>
      [-1, 4].map(
        (position): Refused => [
          () => any.forward((rank) => (rank === 0 ? of(0) : of(0, position))),
          "ERR_OPTION",
          `${name}: rank 1 has a row at position ${position}, expected 0 to 3`,
        ],
      ),
    ),
  ]);
  for (const y of tables.map((any) => any.forward((rank) => of(rank, 3 - rank)))) {
    t.strictSame(y.shape, [2, 2], "and the ranks go on");
    await y.data();
  }
  const differently = tables.map((any, rank) => any.forward(() => (rank === 0 ? of(3, 2) : of(3))));
  await t.rejects(Promise.all(differently.map((y) => y.data())), { code: "ERR_COMM" });
});
