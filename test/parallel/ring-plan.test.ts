// What a ring's plan says: every pair that is visible is computed once, and what a rank sends is what the next expects.
import fc from "fast-check";
import t from "tap";
import { type Run, ringPlan } from "../../lib/parallel/ring-plan.ts";
import { sees } from "../../lib/parallel/visibility.ts";

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

const rows = ({ start, length }: Run) => [start, start + length];
const total = (pieces: Pieces) => pieces.reduce((sum, { length }) => sum + length, 0);

t.test("a plan", (t) => {
  const property = fc.property(cases, ({ cuts, size, causal, window, documents }) => {
    const pieces = Array.from({ length: size }, (): Pieces => []);
    let start = 0;
    for (const [length, owner] of cuts) {
      pieces[owner % size]?.push({ start, length });
      start += length;
    }
    const rule = {
      causal,
      ...(window && { window }),
      ...(documents.length > 0 && {
        cuSeqlens: [0, ...documents.filter((end) => end < start).sort((a, b) => a - b), start],
      }),
    };
    const plans = pieces.map((_, rank) => ringPlan(pieces, rank, rule));
    const computed = new Map<string, number>();
    for (const [rank, { steps }] of plans.entries()) {
      const own = pieces[rank] ?? [];
      let held = own;
      let owner = rank;
      t.equal(steps.length, plans[0]?.steps.length, "as many on every rank");
      for (const { distance, onward, returning, incoming, returned, queries, keys } of steps) {
        t.ok(keys.length === 0 || held.includes(keys.pieces[0] as Pieces[0]), "what is seen is held");
        for (const query of queries.pieces) {
          for (const key of keys.pieces) {
            const pair = `${query.start} ${query.length} ${key.start} ${key.length}`;
            computed.set(pair, (computed.get(pair) ?? 0) + 1);
          }
        }
        const going = new Set([...onward.pieces, ...returning.flatMap((run) => run.pieces)]);
        t.ok(
          held.every((piece) => piece.length === 0 || going.has(piece)),
          "goes on, or back",
        );
        const back = plans[owner]?.steps[distance]?.returned ?? [];
        t.strictSame(
          back.map((run) => run.pieces),
          returning.map((run) => run.pieces),
          "the owner expects it",
        );
        for (const run of [onward, ...returning]) {
          const [first, last] = [held.indexOf(run.pieces[0] as Pieces[0]), run.pieces.length];
          t.strictSame(run.pieces, first < 0 ? [] : held.slice(first, first + last), "neighbours");
          if (first >= 0) t.equal(run.start, total(held.slice(0, first)));
          t.equal(run.length, total([...run.pieces]));
        }
        for (const run of returned) t.ok((rows(run)[1] ?? 0) <= total(own));
        const before = plans[(rank + size - 1) % size]?.steps[distance];
        t.equal(incoming, before?.onward.length, "as much comes as was sent");
        held = [...(before?.onward.pieces ?? [])];
        owner = (owner + size - 1) % size;
      }
    }
    const all = pieces.flat().filter(({ length }) => length > 0);
    for (const query of all) {
      for (const key of all) {
        const times = computed.get(`${query.start} ${query.length} ${key.start} ${key.length}`) ?? 0;
        t.ok(
          times === 1 || (times === 0 && !sees([query], [key], rule)),
          "once, or never where nothing is seen",
        );
      }
    }
  });
  fc.assert(property, { numRuns: 100 });
  t.end();
});
