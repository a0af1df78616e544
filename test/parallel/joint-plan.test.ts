// Which rows of ranks that share memory meet: all that do, in whole tiles.
import fc from "fast-check";
import { type Piece, SequenceShard, sees } from "longseq";
import t from "tap";
import { isJoint, type JointMeeting, jointPlan } from "../../lib/parallel/joint-plan.ts";

const tile = 128;

/** The tiles of a rank's shard: where each stands, row by row. */
const tilesOf = (shard: SequenceShard) =>
  shard.pieces.flatMap(({ start, length }) =>
    Array.from({ length: length / tile }, (_, i) => ({ start: start + i * tile, length: tile })),
  );

/** The tiles of a meeting's parts: whose, and which of that rank's. */
const partsOf = ({ parts, peers }: JointMeeting) =>
  Array.from({ length: parts.length / 3 }, (_, i) => {
    const [source = 0, first = 0, rows = 0] = parts.slice(3 * i);
    return Array.from({ length: rows / tile }, (_, at) => ({
      peer: peers[source] as number,
      index: first / tile + at,
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
    for (const [rank, { forward, backward }] of plans.entries()) {
      const own = pieces[rank] ?? [];
      t.equal(forward.meeting.queries.length, shards[rank]?.size);
      t.equal(backward.meeting.keys.length, shards[rank]?.size);
      for (const [meeting, rows, isVisible] of [
        [forward, forward.meeting.keys, (key) => sees(own, [key], options)],
        [backward, backward.meeting.queries, (query) => sees([query], own, options)],
      ] satisfies [JointMeeting, { length: number }, (piece: Piece) => boolean][]) {
        const parts = partsOf(meeting);
        const standing = parts.map(({ peer, index }) => tilesOf(shards[peer] as SequenceShard)[index]?.start);
        t.strictSame(
          standing,
          standing.toSorted((a, b) => (a ?? 0) - (b ?? 0)),
          "in order",
        );
        t.equal(rows.length, tile * parts.length);
        t.ok(meeting.parts.length / 3 <= 16 && meeting.peers.length <= 8, "as many as kernels take");
        t.equal(meeting.peers[0], rank);
        for (const [other, shard] of shards.entries()) {
          const given = new Set(parts.filter(({ peer }) => peer === other).map(({ index }) => index));
          const visible = tilesOf(shard).flatMap((piece, i) => (isVisible(piece) ? [i] : []));
          t.ok(
            visible.every((i) => given.has(i)),
            "all that is visible",
          );
          t.equal(meeting.peers.includes(other), other === rank || given.size > 0);
        }
      }
      for (const [other, plan] of plans.entries())
        t.equal(forward.peers.includes(other), plan.backward.peers.includes(rank), "who sees is seen");
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
