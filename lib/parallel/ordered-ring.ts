// Ring attention whose sums have the same order, and so the same bits, at any number of ranks whose shards are whole
// chunks: at 1, 2, 4 and 8, contiguous and zigzag. Every chunk of keys goes from its owner to whoever sees it, in
// ascending order; a chunk of queries takes in what each gives, and each chunk of keys the gradients of all queries,
// in ascending order too. That costs calls of a chunk each, and parts of gradients that travel one by one.
import type { AttentionMask } from "../mask.ts";
import { native } from "../native.ts";
import { type AttentionResult, attentionBackward, attentionForward } from "../ops/attention.ts";
import type { Piece } from "../ops/attention-options.ts";
import { handleOf, Tensor } from "../tensor.ts";
import type { Communicator } from "./communicator.ts";
import { type Attended, type AttentionCore, allRounded, type Gradients } from "./core.ts";
import { copyInto, mergeInto, packed } from "./key-values.ts";
import type { Parcel } from "./link.ts";
import type { Pending } from "./pending.ts";
import { partOfMask } from "./ring-meeting.ts";
import { isNeeded, keptByRule } from "./ring-plan.ts";
import type { ShardedAttentionOptions } from "./strategy.ts";

/** Zigzag shards of 8 ranks are two of these each. */
const leastChunks = 16;

/** Rows that neighbour each other, and who has them where. */
interface Chunk extends Piece {
  owner: number;
  /** Its first row among the owner's. */
  row: number;
}

/** The sequence in chunks, ascending: cut where a 16th of it ends, and where a shard does. */
function chunksOf(pieces: readonly (readonly Piece[])[]): Chunk[] {
  const ends = pieces.flat().map(({ start, length }) => start + length);
  const total = Math.max(0, ...ends);
  const cuts = Array.from({ length: leastChunks }, (_, chunk) => Math.floor((chunk * total) / leastChunks));
  const chunks = pieces.flatMap((own, owner) => {
    let row = 0;
    return own.flatMap(({ start, length }) => {
      const inside = cuts.filter((cut) => cut > start && cut < start + length);
      const bounds = [...new Set([start, ...inside, start + length])];
      return bounds.slice(1).map((end, i) => {
        const begin = bounds[i] ?? 0;
        row += end - begin;
        return { start: begin, length: end - begin, owner, row: row - (end - begin) };
      });
    });
  });
  return chunks.sort((a, b) => a.start - b.start);
}

/** A chunk of keys, and the chunks of queries that see any of it. */
interface Turn {
  keys: Chunk;
  seeing: readonly Chunk[];
}

function turnsOf(chunks: readonly Chunk[], options: ShardedAttentionOptions): Turn[] {
  return chunks.map((keys) => ({
    keys,
    seeing: chunks.filter((queries) => isNeeded([queries], keys, options)),
  }));
}

function placesOf(queries: Chunk, keys: Chunk, mask: AttentionMask | undefined) {
  return {
    queryPositions: [queries],
    keyPositions: [keys],
    ...(mask && { mask: partOfMask(mask, [queries], [keys]) }),
  };
}

const rowsOf = (x: Tensor, { row, length }: Chunk, axis: number) => x.slice(axis, row, row + length);

export function orderedRingAttention(
  communicator: Communicator,
  pieces: readonly (readonly Piece[])[],
): AttentionCore {
  const chunks = chunksOf(pieces);
  const turnsFor = keptByRule((options) => turnsOf(chunks, options));
  return (q, k, v, options, keep): Attended => {
    const turns = turnsFor(options);
    const { out, logSumExp } = keep(() => forward(communicator, turns, q, k, v, options));
    return {
      out,
      saved: [q, k, v, out, logSumExp],
      backward: (saved, dout, given, isWide) => {
        const gradients = backward(communicator, turns, saved, dout, given);
        return isWide ? gradients : allRounded(gradients, q.dtype);
      },
    };
  };
}

/**
 * Brings each chunk of keys, [2, B, n, H, D], to those that see it, the next while this one is worked on: `held` is
 * undefined on ranks that neither see nor own it.
 */
function eachTurn(
  communicator: Communicator,
  turns: readonly Turn[],
  k: Tensor,
  v: Tensor,
  work: (turn: Turn, held: Tensor | undefined) => void,
): void {
  const { rank, device } = communicator;
  const begin = ({ keys, seeing }: Turn): Pending<Tensor | undefined> => {
    const others = [...new Set(seeing.map(({ owner }) => owner))].filter((peer) => peer !== keys.owner);
    if (keys.owner === rank) {
      const held = packed(rowsOf(k, keys, 1), rowsOf(v, keys, 1));
      const parcels = others.map((peer) => ({ peer, tensor: held }));
      return communicator.exchange(parcels, []).map(() => held);
    }
    if (!others.includes(rank)) return communicator.exchange([], []).map(() => undefined);
    const held = Tensor.empty([2, ...k.shape.with(1, keys.length)], { dtype: k.dtype, device });
    return communicator.exchange([], [{ peer: keys.owner, tensor: held }]).map(() => held);
  };
  let next = turns[0] && begin(turns[0]);
  for (const [i, turn] of turns.entries()) {
    const held = next?.wait();
    const following = turns[i + 1];
    next = following && begin(following);
    work(turn, held);
    held?.dispose();
  }
}

function forward(
  communicator: Communicator,
  turns: readonly Turn[],
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: ShardedAttentionOptions,
): AttentionResult {
  const { rank } = communicator;
  const results = new Map<Chunk, AttentionResult>();
  eachTurn(communicator, turns, k, v, ({ keys, seeing }, held) => {
    for (const queries of seeing.filter(({ owner }) => owner === rank)) {
      const [key, value] = [0, 1].map((i) => (held as Tensor).select(0, i)) as [Tensor, Tensor];
      const part = attentionForward(rowsOf(q, queries, 1), key, value, {
        ...options,
        ...placesOf(queries, keys, options.mask),
        outDtype: "float32",
      });
      const before = results.get(queries);
      if (before === undefined) results.set(queries, part);
      else mergeInto(before, part);
    }
  });
  const [batch = 1, rows = 0, heads = 0] = q.shape;
  const out = Tensor.zeros(q.shape, { dtype: q.dtype, device: q.device });
  const logSumExp = Tensor.empty([batch, heads, rows], { device: q.device });
  native.fill(handleOf(logSumExp, "logSumExp"), Number.NEGATIVE_INFINITY);
  for (const [queries, result] of results) {
    copyInto(rowsOf(out, queries, 1), result.out);
    copyInto(rowsOf(logSumExp, queries, 2), result.logSumExp);
    result.out.dispose();
    result.logSumExp.dispose();
  }
  return { out, logSumExp };
}

function backward(
  communicator: Communicator,
  turns: readonly Turn[],
  saved: readonly Tensor[],
  dout: Tensor,
  options: ShardedAttentionOptions,
): Gradients {
  const { rank, device } = communicator;
  const [q, k, v, out, logSumExp] = saved as [Tensor, Tensor, Tensor, Tensor, Tensor];
  const dq = Tensor.zeros(q.shape, { device });
  const dkv = Tensor.zeros([2, ...k.shape], { device });
  /** Of what a chunk of queries sees of one of keys. */
  const addGradients = (queries: Chunk, keys: Chunk, held: Tensor, dkv: Tensor) => {
    attentionBackward(
      {
        q: rowsOf(q, queries, 1),
        k: held.select(0, 0),
        v: held.select(0, 1),
        out: rowsOf(out, queries, 1),
        logSumExp: rowsOf(logSumExp, queries, 2),
        dout: rowsOf(dout, queries, 1),
      },
      {
        ...options,
        ...placesOf(queries, keys, options.mask),
        addTo: { dq: rowsOf(dq, queries, 1), dk: dkv.select(0, 0), dv: dkv.select(0, 1) },
      },
    );
  };
  let finish: (() => void) | undefined;
  eachTurn(communicator, turns, k, v, ({ keys, seeing }, held) => {
    /** dk and dv of these keys, from one chunk of queries after the other. */
    const terms: Tensor[] = [];
    const [outgoing, incoming]: [Parcel[], Parcel[]] = [[], []];
    const isOwner = keys.owner === rank;
    const shape = [2, ...k.shape.with(1, keys.length)];
    for (const queries of seeing) {
      if (queries.owner === rank) {
        // What is made here before anything comes adds up in one term: the order is the same.
        const begun = isOwner && incoming.length === 0 ? terms[0] : undefined;
        const term = begun ?? Tensor.zeros(shape, { device });
        addGradients(queries, keys, held as Tensor, term);
        if (!begun) terms.push(term);
        if (!isOwner) outgoing.push({ peer: keys.owner, tensor: term });
      } else if (isOwner) {
        const tensor = Tensor.empty(shape, { device });
        terms.push(tensor);
        incoming.push({ peer: queries.owner, tensor });
      }
    }
    const moved = communicator.exchange(outgoing, incoming);
    finish?.();
    finish = () => {
      moved.wait();
      if (isOwner && terms.length > 0) sumInto(rowsOf(dkv, keys, 2), terms);
      for (const term of terms) term.dispose();
    };
  });
  finish?.();
  return [dq, dkv.select(0, 0), dkv.select(0, 1)];
}

function sumInto(place: Tensor, terms: readonly Tensor[]): void {
  const [first] = terms;
  if (first && terms.length === 1) {
    copyInto(place, first);
    return;
  }
  using total = Tensor.empty(place.shape, { device: place.device });
  native.sum(
    terms.map((term) => handleOf(term, "term")),
    handleOf(total, "sum"),
  );
  copyInto(place, total);
}
