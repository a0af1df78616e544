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
import { addInto, copyInto, mergeInto, packed } from "./key-values.ts";
import type { Parcel } from "./link.ts";
import type { Pending } from "./pending.ts";
import { isNeeded, keptByRule, partOfMask } from "./ring-plan.ts";
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
  let finish: (() => void) | undefined;
  eachTurn(communicator, turns, k, v, ({ keys, seeing }, held) => {
    const parts = new Map<Chunk, Tensor>();
    for (const queries of seeing.filter(({ owner }) => owner === rank)) {
      const [k, v] = [0, 1].map((i) => (held as Tensor).select(0, i)) as [Tensor, Tensor];
      const [rows, results, gradients] = [q, out, dout].map((x) => rowsOf(x, queries, 1)) as [
        Tensor,
        Tensor,
        Tensor,
      ];
      const made = attentionBackward(
        {
          q: rows,
          k,
          v,
          out: results,
          logSumExp: rowsOf(logSumExp, queries, 2),
          dout: gradients,
        },
        { ...options, ...placesOf(queries, keys, options.mask), gradientDtype: "float32" },
      );
      addInto(rowsOf(dq, queries, 1), made.dq);
      parts.set(queries, packed(made.dk, made.dv));
      for (const tensor of Object.values(made)) tensor.dispose();
    }
    const isOwner = keys.owner === rank;
    const terms = isOwner
      ? seeing.map(
          (queries) => parts.get(queries) ?? Tensor.empty([2, ...k.shape.with(1, keys.length)], { device }),
        )
      : [];
    const incoming: Parcel[] = terms.flatMap((tensor, i) => {
      const peer = seeing[i]?.owner ?? rank;
      return peer === rank ? [] : [{ peer, tensor }];
    });
    const outgoing = isOwner ? [] : [...parts.values()].map((tensor) => ({ peer: keys.owner, tensor }));
    const moved = communicator.exchange(outgoing, incoming);
    finish?.();
    finish = () => {
      moved.wait();
      if (terms.length > 0) sumInto(rowsOf(dkv, keys, 2), terms);
      for (const tensor of [...parts.values(), ...terms]) tensor.dispose();
    };
  });
  finish?.();
  return [dq, dkv.select(0, 0), dkv.select(0, 1)];
}

function sumInto(place: Tensor, terms: readonly Tensor[]): void {
  using total = Tensor.empty(place.shape, { device: place.device });
  native.sum(
    terms.map((term) => handleOf(term, "term")),
    handleOf(total, "sum"),
  );
  copyInto(place, total);
}
