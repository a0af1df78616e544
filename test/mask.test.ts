import { setImmediate } from "node:timers/promises";
import fc from "fast-check";
import { AttentionMask, attention, SequenceShard, Tensor } from "longseq";
import t from "tap";
import { denseOf, pairOf, scatter, shape } from "./support/masks.ts";
import { pieces, positionsOf } from "./support/shards.ts";

const pair = shape.chain(([queries, keys]) => pairOf(queries, keys));
const masks = (count: number) =>
  shape.chain(([queries, keys]) => fc.array(pairOf(queries, keys), { minLength: count, maxLength: count }));

/** Whether each row's visible keys are one run, and these runs can be ordered with both ends never decreasing. */
function areIntervals(values: Uint8Array, queries: number, keys: number): boolean {
  let [lastBegin, lastEnd] = [0, 0];
  for (let query = 0; query < queries; query++) {
    const row = values.subarray(query * keys, (query + 1) * keys);
    const [begin, end] = [row.indexOf(1), row.lastIndexOf(1) + 1];
    if (begin < 0) {
      lastBegin = lastEnd;
      continue;
    }
    if (row.subarray(begin, end).includes(0) || begin < lastBegin || end < lastEnd) return false;
    [lastBegin, lastEnd] = [begin, end];
  }
  return true;
}

const same = (a: AttentionMask, b: AttentionMask) =>
  a.kind === b.kind && a.density === b.density && Buffer.compare(a.toDense(), b.toDense()) === 0;

t.test("a mask is what its definition says", async (t) => {
  const property = fc.property(pair, ({ mask, sees }) => {
    const { queries, keys, density, kind } = mask;
    const expected = denseOf(queries, keys, sees);
    const visible = expected.reduce((sum, value) => sum + value, 0);
    return (
      Buffer.compare(mask.toDense(), expected) === 0 &&
      density === (visible === 0 ? 0 : visible / (queries * keys)) &&
      kind === (areIntervals(expected, queries, keys) ? "intervals" : "blocks")
    );
  });
  t.doesNotThrow(() => fc.assert(property, { numRuns: 500 }));
});

t.test("algebra", async (t) => {
  const property = fc.property(masks(3), ([x, y, z]) => {
    const [a, b, c] = [x, y, z].map((made) => made?.mask) as [AttentionMask, AttentionMask, AttentionMask];
    return (
      same(a.and(b).not(), a.not().or(b.not())) &&
      same(a.or(b).not(), a.not().and(b.not())) &&
      same(a.not().not(), a) &&
      same(a.and(a), a) &&
      same(a.or(a), a) &&
      same(a.and(b), b.and(a)) &&
      same(a.or(b), b.or(a)) &&
      same(a.and(b.or(c)), a.and(b).or(a.and(c))) &&
      same(a.or(a.and(b)), a) &&
      a.and(a.not()).density === 0
    );
  });
  t.doesNotThrow(() => fc.assert(property, { numRuns: 100 }));
});

t.test("a selection's rows and columns are those of the pieces", async (t) => {
  const selected = pair.chain((whole) =>
    fc.tuple(fc.constant(whole), pieces(whole.mask.queries), pieces(whole.mask.keys)),
  );
  const property = fc.property(selected, ([{ mask, sees }, queryPieces, keyPieces]) => {
    const part = mask.select(queryPieces, keyPieces);
    const [rows, columns] = [positionsOf(queryPieces), positionsOf(keyPieces)];
    const expected = denseOf(rows.length, columns.length, (row, column) =>
      sees(rows[row] ?? -1, columns[column] ?? -1),
    );
    const { queries, keys, kind, visible } = part;
    return (
      queries === rows.length &&
      keys === columns.length &&
      Buffer.compare(part.toDense(), expected) === 0 &&
      visible === expected.reduce((sum, value) => sum + value, 0) &&
      kind === (areIntervals(expected, queries, keys) ? "intervals" : "blocks")
    );
  });
  t.doesNotThrow(() => fc.assert(property, { numRuns: 1000 }));
});

t.test("a function is called once for each pair, row by row", async (t) => {
  const calls: number[][] = [];
  AttentionMask.from(130, 3, (query, key) => calls.push([query, key]) > 0);
  t.same(
    calls,
    Array.from({ length: 390 }, (_, at) => [Math.floor(at / 3), at % 3]),
  );
  const fault = new Error("mine");
  const failing = () => {
    throw fault;
  };
  t.throws(() => AttentionMask.from(2, 2, failing), fault);
  t.equal(AttentionMask.from(0, 5, failing).queries, 0);
  t.equal(AttentionMask.from(5, 0, failing).keys, 0);
});

t.test("values are read as booleans", async (t) => {
  t.same([...AttentionMask.dense(Uint8Array.of(0, 1, 2, 255), 2, 2).toDense()], [0, 1, 1, 1]);
  t.same([...AttentionMask.dense([true, false, false, true], 2, 2).toDense()], [1, 0, 0, 1]);
  const offset = new Uint8Array(Uint8Array.of(9, 0, 1).buffer, 1);
  t.same([...AttentionMask.dense(offset, 1, 2).toDense()], [0, 1]);
});

t.test("524,288 x 524,288", async (t) => {
  const tokens = 524_288;
  const cuSeqlens = [0];
  for (let end = 0; end < tokens; cuSeqlens.push(end)) {
    end = Math.min(tokens, end + 1 + ((cuSeqlens.length * 7919) % 4001));
  }
  const timed = (make: () => AttentionMask) => {
    const start = performance.now();
    const mask = make();
    return { mask, seconds: (performance.now() - start) / 1000 };
  };
  const pairs = tokens * tokens;
  const lengths = cuSeqlens.slice(1).map((end, at) => end - (cuSeqlens[at] ?? 0));
  const sum = (of: (length: number) => number) => lengths.reduce((total, length) => total + of(length), 0);

  const causal = AttentionMask.causal(tokens);
  const documents = AttentionMask.documents(Int32Array.from(cuSeqlens));
  t.equal(documents.density, sum((n) => n * n) / pairs);
  const before = process.memoryUsage.rss();
  const both = timed(() => AttentionMask.causal(tokens).and(AttentionMask.documents(cuSeqlens)));
  t.equal(both.mask.kind, "intervals");
  t.equal(both.mask.density, sum((n) => (n * (n + 1)) / 2) / pairs);
  t.equal(causal.density, (tokens * (tokens + 1)) / 2 / pairs);
  t.ok(both.seconds < 2, `causal and documents took ${both.seconds} s`);
  t.ok(both.mask.bytes < 2 ** 23, `it holds ${both.mask.bytes} bytes`);
  t.ok(process.memoryUsage.rss() - before < 2 ** 26, "it was made in 64 MiB");

  const scattered = timed(() =>
    causal.and(documents.not()).or(AttentionMask.window(tokens, tokens, 512, 512)),
  );
  t.equal(scattered.mask.kind, "blocks");
  t.ok(scattered.seconds < 6, `the union took ${scattered.seconds} s`);
  t.ok(scattered.mask.bytes < 2 ** 26, `it holds ${scattered.mask.bytes} bytes`);
  t.ok(process.memoryUsage.rss() - before < 2 ** 28, "it was made in 256 MiB, its operands included");
  const back = documents.not().not();
  t.same([back.kind, back.bytes, back.density], [documents.kind, documents.bytes, documents.density]);
  const [shard, other] = [SequenceShard.zigzag(tokens, 8, 3), SequenceShard.zigzag(tokens, 8, 4)];
  const part = timed(() => scattered.mask.select(shard.pieces, other.pieces));
  t.equal(part.mask.kind, "blocks");
  t.ok(part.seconds < 1, `the selection took ${part.seconds} s`);
  t.ok(part.mask.bytes < scattered.mask.bytes / 8, `it holds ${part.mask.bytes} bytes`);
  const [selectedCausal, selectedDocuments, selectedWindow] = [
    causal,
    documents,
    AttentionMask.window(tokens, tokens, 512, 512),
  ].map((mask) => mask.select(shard.pieces, other.pieces)) as [AttentionMask, AttentionMask, AttentionMask];
  const ofSelections = selectedCausal.and(selectedDocuments.not()).or(selectedWindow);
  t.ok(part.mask.visible > 0);
  t.same([part.mask.visible, part.mask.bytes], [ofSelections.visible, ofSelections.bytes]);
  const windowed = AttentionMask.window(tokens, tokens, 512, 0);
  t.equal(windowed.select(shard.pieces, other.pieces).visible, (512 * 513) / 2, "the shards touch once");
  t.equal(windowed.select(shard.pieces, SequenceShard.zigzag(tokens, 8, 0).pieces).visible, 0);
  t.throws(() => causal.toDense(), { code: "ERR_OUT_OF_MEMORY" });
});

t.test("dispose", async (t) => {
  const mask = AttentionMask.from(200, 200, scatter(1, 100));
  const q = Tensor.normal([1, 200, 2, 16]);
  const expected = await attention(q, q, q, { mask, implementation: "reference" }).data();
  const out = attention(q, q, q, { mask });
  mask.dispose();
  mask.dispose();
  t.ok(mask.disposed);
  const values = Array.from(await out.data());
  const worst = Math.max(...values.map((value, at) => Math.abs(value - (expected[at] ?? 0))));
  t.ok(worst < 1e-5, `a call that was queued before still has its mask: it is off by ${worst}`);

  const live = AttentionMask.causal(200);
  const gone = { name: "Error", code: "ERR_DISPOSED" };
  t.throws(() => mask.toDense(), { ...gone, message: "AttentionMask.toDense: the mask was disposed" });
  t.throws(() => mask.select([], []), { ...gone, message: "AttentionMask.select: the mask was disposed" });
  t.throws(() => mask.not(), { ...gone, message: "AttentionMask.not: the mask was disposed" });
  t.throws(() => mask.and(live), { ...gone, message: "AttentionMask.and: the mask was disposed" });
  t.throws(() => live.or(mask), { ...gone, message: "AttentionMask.or: other was disposed" });
  t.throws(() => attention(q, q, q, { mask }), { ...gone, message: "attention: mask was disposed" });
  let kept: AttentionMask;
  {
    using inner = AttentionMask.causal(2);
    kept = inner;
    t.notOk(inner.disposed);
  }
  t.ok(kept.disposed);
});

t.test("2 GiB of masks, one after the other", async (t) => {
  const before = process.memoryUsage.rss();
  let most = before;
  const taken = () => {
    most = Math.max(most, process.memoryUsage.rss());
    return (most - before) / 2 ** 20;
  };
  for (let made = 0; made < 500; made++) {
    AttentionMask.causal(524_288).dispose();
    taken();
  }
  t.ok(taken() < 64, `disposed, they took ${taken()} MiB`);
  // The collector knows what hangs on each of them: it does not wait until its own heap is full.
  for (let turn = 0; turn < 25; turn++) {
    for (let made = 0; made < 20; made++) AttentionMask.causal(524_288);
    taken();
    await setImmediate();
  }
  t.ok(taken() < 1024, `left to the collector, they took ${taken()} MiB`);
});
