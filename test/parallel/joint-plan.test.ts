// Which keys ranks that share memory see of each other: all that are visible, in whole tiles, and added up where another
// rank sees them too.
import fc from "fast-check";
import { SequenceShard, sees } from "longseq";
import t from "tap";
import { isJoint, type JointPlan, jointPlan } from "../../lib/parallel/joint-plan.ts";

const tile = 128;

/** The tiles of a rank's shard: where each stands, row by row. */
const tilesOf = (shard: SequenceShard) =>
  shard.pieces.flatMap(({ start, length }) =>
    Array.from({ length: length / tile }, (_, i) => ({ start: start + i * tile, length: tile })),
  );

/** The tiles of a plan's parts: whose, which of that rank's, and whether it is added up. */
const partsOf = ({ parts, owners }: JointPlan, rank: number) =>
  Array.from({ length: parts.length / 3 }, (_, i) => {
    const [source = 0, first = 0, rows = 0] = parts.slice(3 * i);
    const owner = source < 2 ? rank : (owners[source - 2]?.peer as number);
    return Array.from({ length: rows / tile }, (_, at) => ({
      owner,
      index: first / tile + at,
      isShared: source > 0,
    }));
  }).flat();

const cases = fc.record({
  layout: fc.constantFrom("contiguous" as const, "zigzag" as const),
  ranks: fc.integer({ min: 1, max: 8 }),
  tiles: fc.integer({ min: 1, max: 3 }),
  causal: fc.boolean(),
  window: fc.option(fc.tuple(fc.integer({ min: -1, max: 600 }), fc.integer({ min: -1, max: 600 })), {
    nil: undefined,
  }),
  documents: fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { maxLength: 5 }),
});

t.test("a plan", (t) => {
  const property = fc.property(cases, ({ layout, ranks, tiles, causal, window, documents }) => {
    const length = 2 * ranks * tiles * tile;
    const boundaries = documents.map((at) => Math.floor(at * length)).sort((a, b) => a - b);
    const options = {
      causal,
      ...(window && { window }),
      ...(documents.length > 0 && { cuSeqlens: [0, ...boundaries, length] }),
    };
    const shards = Array.from({ length: ranks }, (_, rank) => SequenceShard[layout](length, ranks, rank));
    const pieces = shards.map((shard) => shard.pieces);
    t.ok(isJoint(pieces));
    const plans = pieces.map((_, rank) => jointPlan(pieces, rank, options));
    for (const [rank, plan] of plans.entries()) {
      const parts = partsOf(plan, rank);
      const standing = parts.map(({ owner, index }) => tilesOf(shards[owner] as SequenceShard)[index]?.start);
      t.strictSame(
        standing,
        standing.toSorted((a, b) => (a ?? 0) - (b ?? 0)),
        "in order",
      );
      t.equal(plan.meeting.keys.length, tile * parts.length);
      t.ok(plan.parts.length / 3 <= 20 && plan.owners.length <= 7, "as many as kernels take");
      for (const [owner, shard] of shards.entries()) {
        const all = tilesOf(shard);
        const given = new Set(parts.filter((part) => part.owner === owner).map(({ index }) => index));
        const visible = all.flatMap((one, i) => (sees(pieces[rank] ?? [], [one], options) ? [i] : []));
        t.ok(
          visible.every((i) => given.has(i)),
          "all that is visible",
        );
        if (owner === rank) t.equal(given.size, all.length, "gradients of all own keys are made");
        const isPeer = plan.owners.some(({ peer }) => peer === owner);
        t.equal(isPeer, owner !== rank && given.size > 0);
        t.equal(isPeer, plans[owner]?.viewers.includes(rank), "who sees is seen");
        const shared = plans[owner]?.shared.flatMap(({ start, length }) =>
          Array.from({ length: length / tile }, (_, i) => start / tile + i),
        );
        if (isPeer)
          t.ok(
            [...given].every((i) => shared?.includes(i)),
            "what is seen is added up",
          );
      }
      const added = parts.filter(({ owner, isShared }) => owner === rank && isShared);
      t.strictSame(
        added.map(({ index }) => index).toSorted((a, b) => a - b),
        plan.shared.flatMap(({ start, length }) =>
          Array.from({ length: length / tile }, (_, i) => start / tile + i),
        ),
        "and by its owner too",
      );
    }
  });
  fc.assert(property);
  t.end();
});

t.test("tiles of one rank each, of up to eight ranks", (t) => {
  const held = (length: number, ranks: number) =>
    Array.from({ length: ranks }, (_, rank) => SequenceShard.zigzag(length, ranks, rank).pieces);
  t.ok(isJoint(held(2 * 8 * tile, 8)));
  t.notOk(isJoint(held(2 * 8 * tile + 1, 8)));
  t.notOk(isJoint(held(8 * tile, 8)));
  t.notOk(isJoint(held(2 * 9 * tile, 9)));
  t.notOk(isJoint(held(0, 2)));
  t.end();
});
