// Communicators of one process: what arrives where, the same bits everywhere, and errors instead of waiting for ever.
import { once } from "node:events";
import fc from "fast-check";
import { AdamW, Communicator, Device, Scope, Tensor } from "longseq";
import t from "tap";
import type { RankTask } from "../support/child/rank.ts";
import { work } from "../support/child.ts";
import { floatTypes } from "../support/compare.ts";
import { localRanks } from "../support/ranks.ts";
import { refuses } from "../support/refusals.ts";

const columns = 3;
/** Whole numbers that say where they are from: exact in every dtype, and so are their sums. */
const values = (rank: number, rows: number) =>
  Array.from({ length: rows * columns }, (_, i) => ((rank * 7 + i) % 11) - 5);
const rowsOf = ({ rank, device }: Communicator, rows: number, dtype: "float32" | "bfloat16" | "float16") =>
  Tensor.from(values(rank, rows), [rows, columns], { device, dtype });
const read = (tensors: readonly Tensor[]) => Promise.all(tensors.map(async (x) => [...(await x.data())]));
const counts = fc.array(fc.nat(5), { minLength: 1, maxLength: 6 });

t.test("all-gather, reduce-scatter and all-to-all of any counts", async (t) => {
  await fc.assert(
    fc.asyncProperty(counts, fc.constantFrom(...floatTypes), fc.nat(4), async (sizes, dtype, seed) => {
      const ranks = localRanks(sizes.length);
      const total = sizes.reduce((a, b) => a + b, 0);
      const gathered = ranks.map((all) => all.allGather(rowsOf(all, sizes[all.rank] ?? 0, dtype), sizes));
      const scattered = ranks.map((all) => all.reduceScatter(rowsOf(all, total, dtype), sizes));
      const table = sizes.map((_, i) => sizes.map((_, j) => (i * 3 + j * 5 + seed) % 4));
      const exchanged = ranks.map((all) => {
        const sends = table[all.rank] ?? [];
        const rows = sends.reduce((a, b) => a + b, 0);
        return all.allToAll(
          rowsOf(all, rows, dtype),
          sends,
          table.map((row) => row[all.rank] ?? 0),
        );
      });
      const waited = [gathered, scattered, exchanged].map((kind) => kind.map((pending) => pending.wait()));
      const [whole, parts, swapped] = await Promise.all(waited.map(read));
      const everyone = sizes.flatMap((rows, rank) => values(rank, rows));
      const sums = values(0, total).map((_, i) =>
        sizes.reduce((sum, _, rank) => sum + (values(rank, total)[i] ?? 0), 0),
      );
      const before = (list: readonly number[], end: number) =>
        list.slice(0, end).reduce((a, b) => a + b, 0) * columns;
      for (const [rank, size] of sizes.entries()) {
        t.strictSame(whole?.[rank], everyone);
        t.strictSame(parts?.[rank], sums.slice(before(sizes, rank), before(sizes, rank) + size * columns));
        const from = table.flatMap((row, peer) => {
          const start = before(row, rank);
          const rows = row.reduce((a, b) => a + b, 0);
          return values(peer, rows).slice(start, start + (row[rank] ?? 0) * columns);
        });
        t.strictSame(swapped?.[rank], from);
      }
      for (const all of ranks) all.dispose();
    }),
    { numRuns: 40 },
  );
});

t.test("all-reduce, of few elements and of many: in float32, in the order of the ranks", async (t) => {
  for (const dtype of floatTypes) {
    for (const size of [1, 2, 3, 8]) {
      for (const elements of [0, 1, 50, 20_011]) {
        const ranks = localRanks(size);
        const terms = ranks.map(({ rank, device }) =>
          Tensor.normal([elements], { seed: rank, dtype, device }),
        );
        const sums = ranks.map((all, rank) =>
          all.allReduce(terms[rank] as Tensor, { outDtype: "float32" }).wait(),
        );
        const rounded = ranks.map((all, rank) => all.allReduce(terms[rank] as Tensor).wait());
        const expected = new Float32Array(elements);
        for (const term of await read(terms))
          for (const i of expected.keys()) expected[i] = (expected[i] ?? 0) + (term[i] ?? 0);
        const label = `${dtype}, ${elements} of ${size}`;
        const found = await read(sums);
        t.ok(
          found.every((sum) => sum.every((value, i) => value === expected[i])),
          label,
        );
        const whole = Tensor.from(expected, [elements], { dtype });
        const half = [...(await whole.data())];
        t.strictSame((await read(rounded)).filter((sum) => String(sum) !== String(half)).length, 0, label);
      }
    }
  }
});

t.test("a step runs beside the device, and behind what it needs of it", async (t) => {
  const ranks = localRanks(3);
  const results = ranks.map((all) => {
    const { rank, device } = all;
    const x = Tensor.from([rank], [1], { device });
    const first = all.allGather(x);
    const doubled = Tensor.from([rank * 2], [1], { device });
    const second = all.allGather(doubled); // queued before anybody waits
    doubled.dispose();
    const later = first.wait();
    return [later, second.wait(), all.reduceScatter(later).wait()];
  });
  for (const [rank, [first, second, third]] of results.entries()) {
    t.strictSame([...((await first?.data()) ?? [])], [0, 1, 2]);
    t.strictSame([...((await second?.data()) ?? [])], [0, 2, 4]);
    t.strictSame([...((await third?.data()) ?? [])], [rank * 3]);
  }
});

t.test("what calls far ahead exchange is let go in their order", async (t) => {
  const ranks = localRanks(2);
  const own = ranks.map(({ device }) => Tensor.zeros([1 << 16], { device }));
  for (const { device } of ranks) await device.synchronize();
  for (const { device } of ranks) device.resetPeak();
  for (let i = 0; i < 100; i++) {
    const sums = ranks.map((all, rank) => all.allReduce(own[rank] as Tensor));
    for (const sum of sums) sum.wait().dispose();
  }
  for (const { device } of ranks) {
    await device.synchronize();
    const { peakBytes } = device.memory();
    t.ok(peakBytes < 20 * (own[0]?.bytes ?? 0), `${peakBytes / (own[0]?.bytes ?? 0)} tensors at once`);
  }
});

t.test("views, broadcasts, rings and groups", async (t) => {
  const ranks = localRanks(4);
  const turned = ranks.map((all) => {
    const x = Tensor.from([all.rank, 10, 20, 30, 40, 50], [2, 3], { device: all.device });
    return all.allGather(x.permute(1, 0)).wait();
  });
  t.strictSame((await read(turned))[3]?.slice(0, 6), [0, 30, 10, 40, 20, 50]);
  const sent = ranks.map((all) => {
    const x = Tensor.from([all.rank], [1], { device: all.device });
    all.broadcast(x, 2).wait();
    return x;
  });
  t.strictSame(await read(sent), [[2], [2], [2], [2]]);
  const shifted = ranks.map((all) => {
    const x = Tensor.from([all.rank], [1], { device: all.device });
    const from = Tensor.empty([1], { device: all.device });
    const [next, before] = [(all.rank + 1) % 4, (all.rank + 3) % 4];
    all.exchange([{ peer: next, tensor: x }], [{ peer: before, tensor: from }]).wait();
    return from;
  });
  t.strictSame(await read(shifted), [[3], [0], [1], [2]]);
  const grid = ranks.map((all) => [
    all.group(all.rank < 2 ? [0, 1] : [3, 2]),
    all.group(all.rank % 2 ? [1, 3] : [0, 2]),
  ]);
  t.strictSame(
    grid.map((pair) => pair.map(({ rank, size }) => [rank, size])),
    [
      [
        [0, 2],
        [0, 2],
      ],
      [
        [1, 2],
        [0, 2],
      ],
      [
        [1, 2],
        [1, 2],
      ],
      [
        [0, 2],
        [1, 2],
      ],
    ],
  );
  const named = ranks.map((all) => Tensor.from([all.rank], [1], { device: all.device }));
  const rows = grid.map(([row], i) => row?.allGather(named[i] as Tensor).wait() as Tensor);
  const across = grid.map(([, column], i) => column?.allGather(named[i] as Tensor).wait() as Tensor);
  t.strictSame(await read(rows), [
    [0, 1],
    [0, 1],
    [3, 2],
    [3, 2],
  ]);
  t.strictSame(await read(across), [
    [0, 2],
    [1, 3],
    [0, 2],
    [1, 3],
  ]);
});

const failing = async (call: Promise<unknown>) => {
  try {
    await call;
  } catch (error) {
    const { code, message } = error as Error & { code: string };
    return `${code} ${message}`;
  }
  return "no error";
};

t.test("a rank that does not come, leaves, fails, or does something else ends all", async (t) => {
  const one = (all: Communicator) => Tensor.from([1], [1], { device: all.device });
  {
    const ranks = localRanks(4, { timeoutMs: 100 });
    const late = ranks.slice(0, 2).map((all) => all.allReduce(one(all)).wait().data());
    for (const found of await Promise.all(late.map(failing))) {
      t.equal(found, "ERR_COMM communicator: ranks 2, 3 did not come within 0.1 s");
    }
    const after = ranks.map((all) => all.barrier().wait());
    t.equal(after.length, 4);
    for (const error of await Promise.all(ranks.map((all) => failing(all.device.synchronize())))) {
      t.match(error, /^ERR_COMM .*ranks 2, 3/);
    }
    for (const all of ranks) t.strictSame([...(await one(all).data())], [1], "the device goes on");
  }
  {
    const [first, second] = localRanks(2) as [Communicator, Communicator];
    const waiting = first.allReduce(one(first)).wait().data();
    second.dispose();
    t.equal(await failing(waiting), "ERR_COMM communicator: rank 1 has left");
    t.throws(() => second.barrier(), { code: "ERR_DISPOSED" });
  }
  {
    const [first, second] = localRanks(2) as [Communicator, Communicator];
    const calls = [
      first.allGather(one(first)).wait(),
      second.allGather(Tensor.zeros([2], { device: second.device })).wait(),
    ];
    t.match(await Promise.all(calls.map((call) => failing(call.data()))), [
      /^ERR_COMM .*rank 1 sends \[2\] float32 to rank 0, which receives \[1\]/,
      /^ERR_COMM .*rank 0 sends \[1\] float32/,
    ]);
  }
  {
    const [first, second] = localRanks(2) as [Communicator, Communicator];
    const calls = [first.barrier(), second.allGather(one(second))];
    for (const call of calls) call.wait();
    t.match(await Promise.all([first, second].map((all) => failing(all.device.synchronize()))), [
      /^ERR_COMM .*rank 1 sends 1 tensors to rank 0, which receives 0/,
      /^ERR_COMM /,
    ]);
  }
});

t.test("an error of a rank's device is that rank's, and ends the others", async (t) => {
  const [first, second] = localRanks(2) as [Communicator, Communicator];
  const [doomed, absent] = Communicator.local([first.device, new Device()], { timeoutMs: 50 }) as [
    Communicator,
    Communicator,
  ];
  doomed.barrier().wait(); // to which nobody else comes
  const calls = [
    first.allReduce(Tensor.zeros([1], { device: first.device })).wait(),
    second.allReduce(Tensor.zeros([1], { device: second.device })).wait(),
  ];
  t.match(await Promise.all(calls.map((call) => failing(call.data()))), [
    /^ERR_COMM .*rank 1 did not come/,
    /^ERR_COMM .*rank 0 failed: .*rank 1 did not come/,
  ]);
  absent.dispose(); // the collector would have said that it has left
});

t.test("ranks in workers", async (t) => {
  const begin = (task: RankTask) => once(work("rank.ts", task), "message").then(([message]) => message);
  const size = 3;
  const name = "workers";
  t.strictSame(
    await Promise.all([0, 1, 2].map((rank) => begin({ name, rank, size, timeoutMs: 60_000 }))),
    [0, 1, 2].map(() => [[3], [0, 2, 4]]),
  );
  const stayed = [0, 1].map((rank) => begin({ name: "left", rank, size, timeoutMs: 60_000 }));
  work("rank.ts", { name: "left", rank: 2, size, timeoutMs: 60_000, isDeserter: true } satisfies RankTask);
  t.match(
    await Promise.all(stayed),
    [0, 1].map(() => [[3], /^ERR_COMM communicator: rank 2 has left/]),
  );
});

t.test("what cannot be", async (t) => {
  const [all] = localRanks(1) as [Communicator];
  const { device } = all;
  const x = Tensor.zeros([2, 2], { device });
  refuses(t, [
    [() => Communicator.local([]), "ERR_OPTION", "Communicator.local: there are no devices"],
    [
      () => Communicator.local([device, device]),
      "ERR_DEVICE",
      "Communicator.local: ranks 0 and 1 have one Device, expected one each",
    ],
    [
      () => Communicator.local(device as never),
      "ERR_OPTION",
      "Communicator.local: devices is object, expected an array of Devices",
    ],
    [
      () => Communicator.local([device], { timeoutMs: Number.NaN }),
      "ERR_OPTION",
      "Communicator: timeoutMs is NaN, expected a number above 0",
    ],
    [
      () => Communicator.join({ name: "x", rank: 1, size: 1, device }),
      "ERR_OPTION",
      "Communicator.join: rank is 1, expected 0 to 0",
    ],
    [
      () => Communicator.join({ name: "x", rank: 0.5, size: 1, device }),
      "ERR_OPTION",
      "Communicator.join: rank is 0.5, expected an integer",
    ],
    [() => all.group([]), "ERR_OPTION", "group: rank 0 itself is not among the ranks"],
    [() => all.group([0, 0]), "ERR_OPTION", "group: rank 0 is named twice"],
    [() => all.group([1]), "ERR_OPTION", "group: a rank is 1, expected 0 to 0"],
    [() => all.allGather(x, [1]), "ERR_SHAPE", "allGather: x has 2 rows, expected 1 (its counts)"],
    [
      () => all.allGather(Tensor.zeros([], { device })),
      "ERR_SHAPE",
      "allGather: x has no axis, expected [n, ..]",
    ],
    [() => all.reduceScatter(x, [3]), "ERR_SHAPE", "reduceScatter: x has 2 rows, expected 3 (its counts)"],
    [
      () => all.reduceScatter(x, [-1]),
      "ERR_OPTION",
      "reduceScatter: counts is [-1], expected 1 integers from 0 on",
    ],
    [
      () => all.allReduce(x.to("int32")),
      "ERR_DTYPE",
      "sum: the terms are int32, expected float32, bfloat16 or float16",
    ],
    [() => all.allReduce({} as never), "ERR_OPTION", "allReduce: x is object, expected a Tensor"],
    [() => all.allReduce(x, null as never), "ERR_OPTION", "allReduce: options is null, expected an object"],
    [() => all.reduceScatter(x, [2], 5 as never), "ERR_OPTION", "reduceScatter: options is number, expected"],
    [
      () => all.allReduce(x, { outDtype: "bfloat16" as never }),
      "ERR_OPTION",
      'allReduce: outDtype is bfloat16, expected "float32"',
    ],
    [() => all.allReduce(Tensor.zeros([1], { device: new Device() })), "ERR_DEVICE", /of another device/],
    [() => all.broadcast(x, 1), "ERR_OPTION", "broadcast: root is 1, expected 0 to 0"],
    [() => all.exchange([{ peer: 1, tensor: x }], []), "ERR_OPTION", "exchange: peer is 1, expected 0 to 0"],
    [
      () => all.exchange([{ peer: 0, tensor: x.permute(1, 0) }], []),
      "ERR_SHAPE",
      "exchange: a tensor to send is not contiguous",
    ],
    [
      () => all.exchange([null as never], []),
      "ERR_OPTION",
      /parcel's tensor is undefined, expected a Tensor/,
    ],
  ]);
  const gone = new Device();
  const [left] = Communicator.local([gone]) as [Communicator];
  gone.dispose();
  refuses(t, [[() => left.barrier(), "ERR_DISPOSED", "communicator: its device was disposed"]]);
});

t.test("a collective that is refused leaves nothing behind", async (t) => {
  const [first] = localRanks(2) as [Communicator, Communicator];
  const { device } = first;
  const x = Tensor.zeros([4, 2], { device });
  first.dispose();
  const before = device.memory().tensors;
  const calls = [
    () => first.allReduce(x),
    () => first.allGather(x),
    () => first.reduceScatter(x),
    () => first.allToAll(x, [2, 2]),
    () => first.broadcast(x, 0),
    () => first.allReduce(x.permute(1, 0)),
  ];
  for (const call of calls) t.throws(() => Scope.run<unknown>(call), { code: "ERR_DISPOSED" });
  for (const call of calls.slice(0, -1)) t.throws(call, { code: "ERR_DISPOSED" });
  await device.synchronize();
  t.equal(device.memory().tensors, before);
});

t.test("messages of a part of the ranks call them by their numbers among all", async (t) => {
  const ranks = localRanks(6);
  const odd = [1, 3, 5].map((rank) => ranks[rank]?.group([1, 3, 5])) as Communicator[];
  const last = odd.slice(1).map((communicator) => communicator.group([1, 2])); // of the odd ones: 3 and 5
  const calls = last.map((communicator, i) => {
    const x = Tensor.zeros([i + 1], { device: communicator.device });
    return communicator.allGather(x).wait();
  });
  t.match(await Promise.all(calls.map((call) => failing(call.data()))), [
    /^ERR_COMM .*rank [35] sends \[[12]\] float32 to rank [35], which receives \[[12]\]/,
    /^ERR_COMM .*rank [35] sends \[[12]\] float32 to rank [35], which receives \[[12]\]/,
  ]);
  const [one, other] = [0, 1].map((i) => odd[i]?.group([0, 1])) as [Communicator, Communicator];
  const waiting = one.barrier();
  waiting.wait();
  other.dispose();
  t.equal(await failing(one.device.synchronize()), "ERR_COMM communicator: rank 3 has left");
});

t.test("ranks that broadcast their parameters go on with the same bits", async (t) => {
  const ranks = localRanks(2).map((communicator) => {
    const { device } = communicator;
    const weight = Tensor.from([1, 2, 3, 4], [4], { dtype: "bfloat16", device });
    const gradient = Tensor.from([1, -1, 2, 3], [4], { dtype: "bfloat16", device });
    return { communicator, weight, gradient, optimizer: new AdamW([weight], { learningRate: 1e-4 }) };
  });
  for (let step = 0; step < 30; step++) {
    for (const { optimizer, gradient } of ranks) optimizer.step([gradient]);
    if (step === 15) for (const { communicator, weight } of ranks) communicator.broadcast(weight, 0).wait();
  }
  const [first, second] = await Promise.all(
    ranks.map(({ optimizer }) => (optimizer.masters[0] as Tensor).bits()),
  );
  t.strictSame(first, second);
});

t.test("a name is free again once all that had it are disposed of", async (t) => {
  for (let round = 0; round < 4; round++) {
    const ranks = [0, 1].map((rank) =>
      Communicator.join({ name: "again and again", rank, size: 2, device: new Device() }),
    );
    const calls = ranks.map((all) => all.allReduce(Tensor.from([1], [], { device: all.device })).wait());
    t.strictSame(
      await Promise.all(calls.map((call) => call.item())),
      [2, 2].map((sum) => sum),
    );
    for (const communicator of ranks) communicator.dispose();
  }
});
