// DeepSpeed-Ulysses (Jacobs et al., 2023): between the products every rank has its rows and all heads, within attention
// all rows and its heads; an all-to-all leads from one to the other.
import { native } from "../native.ts";
import { inDtype } from "../ops/matmul.ts";
import { handleOf, Tensor } from "../tensor.ts";
import type { Communicator } from "./communicator.ts";
import { type Attended, type AttentionCore, attend, type Gradients, wholeAttention } from "./core.ts";
import { divideHeads } from "./heads.ts";
import type { Pending } from "./pending.ts";
import { release, splitRows, sum } from "./portions.ts";
import { SequenceShard } from "./shard.ts";
import { type Range, replicated, type ShardedAttentionOptions, type Strategy } from "./strategy.ts";

/**
 * Any number of heads, also one that does not divide; where there are fewer key heads than ranks, several ranks get the
 * same one, and their gradients of it are summed in float32.
 *
 * @param length tokens of the whole sequence; any number.
 * @example
 * const ranks = Communicator.local([new Device("cpu"), new Device("cpu")]);
 * const outs = ranks.map((communicator) => {
 *   const { shard, attend } = ulysses(communicator, 9);
 *   const q = shard.take(Tensor.normal([1, 9, 3, 8], { seed: 1, device: communicator.device }));
 *   return attend(q, q, q, { causal: true });
 * });
 * outs.map(({ shape }) => shape[1]); // [4, 5]
 */
export function ulysses(communicator: Communicator, length: number): Strategy {
  const shard = SequenceShard.contiguous(length, communicator.size, communicator.rank);
  const counts = Array.from({ length: communicator.size }, (_, rank) => shard.of(rank).size);
  const core = ulyssesAttention(communicator, counts, wholeAttention);
  return {
    name: "ulysses",
    ...replicated(shard, (x) => communicator.allReduce(x).wait()),
    attend: (q, k, v, options, keep) => attend(core, shard.size, q, k, v, options, keep),
  };
}

/** The ranks have `counts` rows each; `core` is given those of all and a part of the heads. */
export function ulyssesAttention(
  communicator: Communicator,
  counts: readonly number[],
  core: AttentionCore,
): AttentionCore {
  const { rank, size } = communicator;
  return (q, k, v, options, keep) => {
    const [, , queryHeads = 0] = q.shape;
    const [, , keyHeads = 0] = k.shape;
    const divided = divideHeads(queryHeads, keyHeads, size);
    const queries = divided.map(({ query }) => query);
    const keys = divided.map(({ keyValue }) => keyValue);
    const mine = queries[rank] as Range;
    const moves = [
      toHeads(communicator, q, counts, queries),
      toHeads(communicator, k, counts, keys),
      toHeads(communicator, v, counts, keys),
    ];
    const inner = moves.map((move) => move.wait()) as [Tensor, Tensor, Tensor];
    const own = ({ alibiSlopes, ...others }: ShardedAttentionOptions) => ({
      ...others,
      ...(alibiSlopes && { alibiSlopes: alibiSlopes.slice(0, mine.begin, mine.end) }),
    });
    const attended = mine.begin === mine.end ? withoutHeads(...inner) : core(...inner, own(options), keep);
    const out = toRows(communicator, attended.out, counts, queries, queryHeads);
    const isShared = keys.some((range, i) => keys.some((other, j) => i !== j && overlaps(range, other)));
    return {
      out,
      saved: attended.saved,
      backward: (saved, dout, given, isWide) => {
        const whole = toHeads(communicator, dout, counts, queries).wait();
        const gradients = attended.backward(saved, whole, own(given), isWide || isShared);
        const heads = [queryHeads, keyHeads, keyHeads];
        return gradients.map((gradient, i) => {
          const rows = toRows(communicator, gradient, counts, i === 0 ? queries : keys, heads[i] ?? 0);
          return isWide ? rows : inDtype(rows, dout.dtype);
        }) as Gradients;
      },
    };
  };
}

function overlaps(a: Range, b: Range): boolean {
  return Math.max(a.begin, b.begin) < Math.min(a.end, b.end);
}

function withoutHeads(q: Tensor, k: Tensor, v: Tensor): Attended {
  return {
    out: Tensor.empty(q.shape, { dtype: q.dtype, device: q.device }),
    saved: [],
    backward: (_saved, dout, _options, isWide) =>
      [q, k, v].map(({ shape, device }) =>
        Tensor.empty(shape, { dtype: isWide ? "float32" : dout.dtype, device }),
      ) as Gradients,
  };
}

/** This rank's rows of all heads [B, n, H, D] to all rows of its own heads [B, S, h, D]. */
function toHeads(
  communicator: Communicator,
  x: Tensor,
  counts: readonly number[],
  heads: readonly Range[],
): Pending<Tensor> {
  const { rank, device } = communicator;
  const [batch = 1, , , columns = 0] = x.shape;
  const own = heads[rank] as Range;
  const whole = Tensor.empty([batch, sum(counts), own.end - own.begin, columns], { dtype: x.dtype, device });
  const places = splitRows(whole, counts, 1);
  const sent = heads.map(({ begin, end }) => x.slice(2, begin, end).contiguous());
  const received = places.map((place) =>
    place.isContiguous ? place : Tensor.empty(place.shape, { dtype: x.dtype, device }),
  );
  const moved = communicator.exchange(
    sent.map((tensor, peer) => ({ peer, tensor })),
    received.map((tensor, peer) => ({ peer, tensor })),
  );
  release(sent);
  return moved.map(() => {
    for (const [peer, place] of places.entries()) {
      const rows = received[peer] as Tensor;
      if (rows !== place) native.copy(handleOf(rows, "rows"), handleOf(place, "place"));
    }
    release(received, places);
    return whole;
  });
}

/** The way back. Heads that several ranks have are summed, in the order of the ranks. */
function toRows(
  communicator: Communicator,
  y: Tensor,
  counts: readonly number[],
  heads: readonly Range[],
  count: number,
): Tensor {
  const { rank, device } = communicator;
  const [batch = 1, , , columns = 0] = y.shape;
  const rows = counts[rank] ?? 0;
  const like = { dtype: y.dtype, device };
  const parts = splitRows(y, counts, 1);
  const sent = parts.map((part) => (part.isContiguous ? part : part.contiguous()));
  const received = heads.map(({ begin, end }) => Tensor.empty([batch, rows, end - begin, columns], like));
  communicator
    .exchange(
      sent.map((tensor, peer) => ({ peer, tensor })),
      received.map((tensor, peer) => ({ peer, tensor })),
    )
    .wait();
  const out = Tensor.empty([batch, rows, count, columns], like);
  let filled = 0;
  for (const [peer, range] of heads.entries()) {
    const part = received[peer] as Tensor;
    using place = out.slice(2, range.begin, range.end);
    const [from, to] = [handleOf(part, "heads"), handleOf(place, "place")];
    if (range.begin >= filled) native.copy(from, to);
    else native.add(to, from, to);
    filled = Math.max(filled, range.end);
  }
  release(parts, sent, received);
  return out;
}
