// DeepSpeed-Ulysses (Jacobs et al., 2023): between the products every rank has its rows and all heads, within attention
// all rows and its heads; an all-to-all leads from one to the other. It goes by chunks of the heads, so that those of
// one chunk are on their way while attention is computed for another.
import { checkOptions, failure, shown } from "../errors.ts";
import { Tensor } from "../tensor.ts";
import type { Communicator } from "./communicator.ts";
import {
  type Attended,
  type AttentionCore,
  allRounded,
  attend,
  type Gradients,
  wholeAttention,
} from "./core.ts";
import { toHeads, toRows } from "./head-moves.ts";
import { chunksOf, divideHeads, type HeadRange } from "./heads.ts";
import type { Pending } from "./pending.ts";
import { release, sum } from "./portions.ts";
import { SequenceShard } from "./shard.ts";
import {
  checkCommunicator,
  type Range,
  replicated,
  type ShardedAttentionOptions,
  type Strategy,
} from "./strategy.ts";

/** Most chunks of a rank's heads: with so many, a fourth of the way is left that no attention hides. */
const mostChunks = 4;

/**
 * Queries times heads of a rank's chunk, at least. On a GPU that is 1,024 blocks of 128 queries, 8 for each
 * multiprocessor of an H100: the last of them, which leave on average half of it idle, then cost a sixteenth at most.
 */
const leastChunk = 1 << 17;

/** How the all-to-all goes beside attention. */
export interface UlyssesOptions {
  /**
   * Chunks that a rank's heads are cut into, the same on every rank; no more than a rank has key heads. By default up to
   * 4, where each is work enough; 1 moves all heads at once. Results are the same.
   */
  chunks?: number;
}

/**
 * Any number of heads, also one that does not divide; where there are fewer key heads than ranks, several ranks get the
 * same one, and their gradients of it are summed in float32.
 *
 * @param length tokens of the whole sequence; any number.
 * @throws `ERR_OPTION` where `chunks` is no integer of 1 or more.
 * @example
 * const ranks = Communicator.local([new Device("cpu"), new Device("cpu")]);
 * const outs = ranks.map((communicator) => {
 *   const { shard, attend } = ulysses(communicator, 9);
 *   const q = shard.take(Tensor.normal([1, 9, 3, 8], { seed: 1, device: communicator.device }));
 *   return attend(q, q, q, { causal: true });
 * });
 * outs.map(({ shape }) => shape[1]); // [4, 5]
 */
export function ulysses(communicator: Communicator, length: number, options: UlyssesOptions = {}): Strategy {
  checkCommunicator("ulysses", communicator);
  checkOptions("ulysses", options, { chunks: true });
  const { chunks } = options;
  if (chunks !== undefined && (!Number.isSafeInteger(chunks) || chunks < 1))
    throw failure("ERR_OPTION", `ulysses: chunks is ${shown(chunks)}, expected an integer of 1 or more`);
  const shard = SequenceShard.contiguous(length, communicator.size, communicator.rank);
  const counts = Array.from({ length: communicator.size }, (_, rank) => shard.of(rank).size);
  const core = ulyssesAttention(communicator, counts, wholeAttention, chunks);
  return {
    name: "ulysses",
    ...replicated(shard, (x) => communicator.allReduce(x).wait()),
    attend: (q, k, v, options, keep) => attend(core, shard, q, k, v, options, keep),
  };
}

/** The ranks have `counts` rows each; `core` is given those of all and a part of the heads. */
export function ulyssesAttention(
  communicator: Communicator,
  counts: readonly number[],
  core: AttentionCore,
  givenChunks?: number,
): AttentionCore {
  const { rank, size } = communicator;
  if (size === 1) return core; // all rows and heads are here
  return (q, k, v, options, keep) => {
    const [batch = 1, , queryHeads = 0] = q.shape;
    const [, , keyHeads = 0] = k.shape;
    const divided = divideHeads(queryHeads, keyHeads, size);
    const wanted =
      givenChunks ?? Math.min(mostChunks, (batch * sum(counts) * queryHeads) / size / leastChunk);
    const chunks = chunksOf(divided, countOf(divided, wanted)).map((ranges) => ({
      queries: ranges.map(({ query }) => query),
      keys: ranges.map(({ keyValue }) => keyValue),
    }));
    const isShared = sum(divided.map(({ keyValue }) => keyValue.end - keyValue.begin)) > keyHeads;
    const out = Tensor.empty(q.shape, { dtype: q.dtype, device: q.device });
    const attended: Attended[] = [];
    overlapped(
      chunks,
      ({ queries, keys }) =>
        toHeads(communicator, counts, [
          { tensor: q, heads: queries },
          { tensor: k, heads: keys },
          { tensor: v, heads: keys },
        ]),
      (inner, { queries }) => {
        const mine = queries[rank] as Range;
        const [q, k, v] = inner as [Tensor, Tensor, Tensor];
        const made =
          mine.begin === mine.end ? withoutHeads(q, k, v) : core(q, k, v, optionsOf(mine, options), keep);
        attended.push(made);
        return toRows(communicator, counts, [{ tensor: made.out, heads: queries, place: out }]);
      },
    );
    return {
      out,
      saved: attended.flatMap(({ saved }) => saved),
      backward: (saved, dout, given, isWide) => {
        const { dtype, device } = dout;
        const like = { dtype: isWide || isShared ? "float32" : dtype, device } as const;
        const places = [q, k, v].map(({ shape }) => Tensor.empty(shape, like)) as Gradients;
        let taken = 0;
        overlapped(
          chunks,
          ({ queries }) => toHeads(communicator, counts, [{ tensor: dout, heads: queries }]),
          (whole, { queries, keys }, i) => {
            const made = attended[i] as Attended;
            const kept = saved.slice(taken, taken + made.saved.length);
            taken += made.saved.length;
            const own = optionsOf(queries[rank] as Range, given);
            const gradients = made.backward(kept, whole[0] as Tensor, own, isWide || isShared);
            const moves = gradients.map((tensor, at) => ({
              tensor,
              heads: at === 0 ? queries : keys,
              place: places[at] as Tensor,
            }));
            const moved = toRows(communicator, counts, moves);
            release(whole, gradients);
            return moved;
          },
        );
        return isWide ? places : allRounded(places, dtype);
      },
    };
  };
}

/** Attention's options for a part of the heads. */
function optionsOf(heads: Range, options: ShardedAttentionOptions): ShardedAttentionOptions {
  const { alibiSlopes } = options;
  if (alibiSlopes === undefined) return options;
  return { ...options, alibiSlopes: alibiSlopes.slice(0, heads.begin, heads.end) };
}

/** A number of chunks that is not above what is wanted, nor above the key heads of any rank. */
function countOf(divided: readonly HeadRange[], wanted: number): number {
  const heads = divided.map(({ keyValue }) => keyValue.end - keyValue.begin);
  return Math.max(1, Math.min(Math.floor(wanted), ...heads));
}

/**
 * Each chunk's `work` while the next one arrives and the one before leaves. On every rank the communicator is given the
 * same steps in the same order.
 */
function overlapped<Chunk>(
  chunks: readonly Chunk[],
  arrive: (chunk: Chunk) => Pending<Tensor[]>,
  work: (arrived: Tensor[], chunk: Chunk, index: number) => Pending<void>,
): void {
  let next = arrive(chunks[0] as Chunk);
  let leaving: Pending<void> | undefined;
  for (const [i, chunk] of chunks.entries()) {
    const arrived = next.wait();
    const following = chunks[i + 1];
    if (following !== undefined) next = arrive(following);
    const left = work(arrived, chunk, i);
    leaving?.wait();
    leaving = left;
  }
  leaving?.wait();
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
