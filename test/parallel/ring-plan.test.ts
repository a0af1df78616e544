// What a ring's plan says: every pair that is visible is computed once, and what a rank sends is what comes.
import { setTimeout } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import fc from "fast-check";
import t from "tap";
import { AttentionMask } from "../../lib/mask.ts";
import { keptByRule, type RingStep, ringPlan } from "../../lib/parallel/ring-plan.ts";
import { documentOf, positionsOf } from "../support/shards.ts";

type Pieces = { start: number; length: number }[];

/** Any pieces for any rank: also more than two, also none. */
const cases = fc.record({
  cuts: fc.array(fc.tuple(fc.integer({ min: 0, max: 9 }), fc.nat(4)), { minLength: 1, maxLength: 12 }),
  size: fc.integer({ min: 1, max: 5 }),
  causal: fc.boolean(),
  window: fc.option(fc.tuple(fc.integer({ min: -1, max: 20 }), fc.integer({ min: -1, max: 20 })), {
    nil: undefined,
  }),
  documents: fc.array(fc.nat(80), { maxLength: 4 }),
});

t.test("a plan", (t) => {
  const property = fc.property(cases, ({ cuts, size, causal, window, documents }) => {
    const pieces = Array.from({ length: size }, (): Pieces => []);
    let length = 0;
    for (const [rows, owner] of cuts) {
      pieces[owner % size]?.push({ start: length, length: rows });
      length += rows;
    }
    const cuSeqlens = [0, ...documents.filter((end) => end < length).sort((a, b) => a - b), length];
    const [left = -1, right = -1] = window ?? [];
    const sees = (query: number, key: number) =>
      documentOf(cuSeqlens, query) === documentOf(cuSeqlens, key) &&
      (!causal || key <= query) &&
      (left < 0 || key >= query - left) &&
      (right < 0 || key <= query + right);
    const plans = pieces.map((_, rank) =>
      ringPlan(pieces, rank, {
        causal,
        ...(window && { window }),
        ...(documents.length > 0 && { cuSeqlens }),
      }),
    );
    const computed = new Set<string>();
    let [twice, missing] = [0, 0];
    for (const [rank, steps] of plans.entries()) {
      for (const [i, step] of steps.entries()) {
        const { distance, sent, queries, keys, places, isWhole } = step;
        const ahead = plans[(rank + distance) % size]?.[i] as RingStep;
        t.equal(ahead.distance, distance, "the same steps on every rank");
        t.strictSame(sent, ahead.keys, "what is sent is what comes");
        const owner = pieces[(rank + size - distance) % size] ?? [];
        for (const [run, all] of [
          [queries, pieces[rank] ?? []],
          [keys, owner],
        ] as const) {
          t.strictSame(
            positionsOf(run.pieces),
            positionsOf(all).slice(run.start, run.start + run.length),
            "neighbouring rows of the shard",
          );
        }
        const [rows, columns] = [positionsOf(queries.pieces), positionsOf(keys.pieces)];
        const moved = (rows[0] ?? 0) - (positionsOf(places.queryPositions)[0] ?? 0);
        t.strictSame(
          positionsOf(places.queryPositions),
          rows.map((at) => at - moved),
        );
        t.strictSame(
          positionsOf(places.keyPositions),
          columns.map((at) => at - moved),
        );
        t.ok(moved === 0 || documents.length === 0, "boundaries of documents are global");
        let visible = 0;
        for (const query of rows) {
          for (const key of columns) {
            if (computed.has(`${query} ${key}`)) twice++;
            computed.add(`${query} ${key}`);
            if (sees(query, key)) visible++;
          }
        }
        t.equal(isWhole, visible === rows.length * columns.length, "whole");
        if (distance > 0) t.equal(visible > 0, rows.length > 0 && columns.length > 0, "no step for nothing");
      }
    }
    const all = positionsOf(pieces.flat());
    for (const query of all)
      for (const key of all) if (sees(query, key) && !computed.has(`${query} ${key}`)) missing++;
    t.strictSame({ twice, missing }, { twice: 0, missing: 0 }, "all that is visible, once");
  });
  fc.assert(property, { numRuns: 100 });
  t.end();
});

t.test("keys go where they are seen, and no further than is seen of them", (t) => {
  const pieces = [0, 1, 2, 3].map((rank) => [{ start: 10 * rank, length: 10 }]);
  // A document from the end of the first shard to the start of the second: its rows alone meet.
  const steps = ringPlan(pieces, 1, { cuSeqlens: [0, 7, 12, 40], causal: true });
  const next = steps.at(-1);
  t.equal(steps.length, 3);
  t.strictSame(
    [next?.distance, next?.keys.pieces, next?.queries.pieces],
    [1, [{ start: 7, length: 3 }], [{ start: 10, length: 2 }]],
  );
  t.end();
});

t.test("what is kept is that of the mask, or of none", async (t) => {
  setFlagsFromString("--expose_gc");
  const collect = runInNewContext("gc") as () => void;
  let made = 0;
  const of = keptByRule(() => ++made);
  const gone = new WeakRef(
    (() => {
      const mask = AttentionMask.causal(4);
      t.equal(of({ mask }), 1);
      t.equal(of({ mask }), 1);
      return mask;
    })(),
  );
  for (let turn = 0; gone.deref() !== undefined && turn < 50; turn++) {
    await setTimeout(10);
    collect();
  }
  t.equal(gone.deref(), undefined);
  t.equal(of({}), 2, "a mask that was collected is not none");
  t.equal(of({}), 2);
  t.equal(of({ mask: AttentionMask.causal(4) }), 3);
});
