// Ring attention (Liu et al., 2023): queries stay, keys and values travel from rank to rank, and what each block of keys
// gives is merged by its log-sum-exp. With zigzag shards (Llama 3; Grattafiori et al., 2024, 3.3.2) causal order leaves
// every rank the same work.
import { type AttentionResult, attentionBackward, attentionForward } from "../ops/attention.ts";
import type { Piece } from "../ops/attention-options.ts";
import { inDtype } from "../ops/matmul.ts";
import { Tensor } from "../tensor.ts";
import type { Communicator } from "./communicator.ts";
import { type AttentionCore, attend, type Gradients, rounded } from "./core.ts";
import { addInto, merged, packed, rowsIn, rowsOfPieces, spansOf } from "./key-values.ts";
import { orderedRingAttention } from "./ordered-ring.ts";
import type { Pending } from "./pending.ts";
import { placesOf, type RingPlan, type RingStep, ringPlan } from "./ring-plan.ts";
import { copyRows } from "./rows.ts";
import { SequenceShard } from "./shard.ts";
import { replicated, type ShardedAttentionOptions, type Strategy } from "./strategy.ts";

/**
 * Each rank has a stretch of the sequence. Under causal order the last ranks have most of the work: see `zigzag`. Keys that
 * no rank further on sees, by order, window, documents or mask, are not sent there. With `deterministic`, results have the
 * same bits at 1, 2, 4 and 8 ranks, and those of `zigzag`.
 *
 * @param length tokens of the whole sequence; any number.
 * @example
 * const outs = Communicator.local([new Device("cpu"), new Device("cpu")]).map((communicator) => {
 *   const { shard, attend } = ring(communicator, 16);
 *   const q = shard.take(Tensor.normal([1, 16, 2, 8], { seed: 1, device: communicator.device }));
 *   return attend(q, q, q, { cuSeqlens: [0, 8, 16] }); // a document a rank: nothing travels
 * });
 * outs.map(({ shape }) => shape[1]); // [8, 8]
 */
export function ring(communicator: Communicator, length: number): Strategy {
  return ringOf("ring", communicator, SequenceShard.contiguous(length, communicator.size, communicator.rank));
}

/**
 * As `ring`, but each rank has a stretch from the front of the sequence and one from its back, so that causal order
 * leaves all of them the same work.
 *
 * @param length tokens of the whole sequence; any number.
 * @example
 * const [first] = Communicator.local([new Device("cpu"), new Device("cpu")]);
 * first && zigzag(first, 16).shard.pieces; // [{"start":0,"length":4},{"start":12,"length":4}]
 */
export function zigzag(communicator: Communicator, length: number): Strategy {
  return ringOf("zigzag", communicator, SequenceShard.zigzag(length, communicator.size, communicator.rank));
}

function ringOf(name: "ring" | "zigzag", communicator: Communicator, shard: SequenceShard): Strategy {
  const pieces = Array.from({ length: communicator.size }, (_, rank) => shard.of(rank).pieces);
  const core = ringAttention(communicator, pieces);
  return {
    name,
    ...replicated(shard, (x) => communicator.allReduce(x).wait()),
    attend: (q, k, v, options, keep) => attend(core, shard.size, q, k, v, options, keep),
  };
}

/** `pieces` are those of each rank. */
export function ringAttention(
  communicator: Communicator,
  pieces: readonly (readonly Piece[])[],
): AttentionCore {
  const ordered = orderedRingAttention(communicator, pieces);
  return (q, k, v, options, keep) => {
    if (options.deterministic) return ordered(q, k, v, options, keep);
    const plan = ringPlan(pieces, communicator.rank, options);
    const { out, logSumExp } = keep(() => forward(communicator, plan, q, k, v, options));
    return {
      out,
      saved: [q, k, v, out, logSumExp],
      backward: (saved, dout, given, isWide) => {
        const gradients = backward(communicator, plan, saved as Saved, dout, given);
        return isWide ? gradients : rounded(gradients, q.dtype);
      },
    };
  };
}

type Saved = [q: Tensor, k: Tensor, v: Tensor, out: Tensor, logSumExp: Tensor];

function forward(
  communicator: Communicator,
  plan: RingPlan,
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: ShardedAttentionOptions,
): AttentionResult {
  let held = packed(k, v);
  let result: AttentionResult | undefined;
  const isSplit = plan.steps.filter(({ isSeen }) => isSeen).length > 1;
  for (const step of plan.steps) {
    const next = passOn(communicator, plan, step, held);
    if (step.isSeen) {
      const part = attentionForward(q, held.select(0, 0), held.select(0, 1), {
        ...options,
        ...placesOf(plan.queries, step.held, options.mask),
        ...(isSplit && { outDtype: "float32" as const }),
      });
      result = result === undefined ? part : merged(result, part);
    }
    held.dispose();
    if (next !== undefined) held = next.wait();
  }
  const { out, logSumExp } = result as AttentionResult;
  return { out: inDtype(out, q.dtype), logSumExp };
}

/**
 * dq stays, dk and dv follow their keys around the ring in float32: a rank adds its part to what has come, and hands it
 * on, or back to the keys' owner where nobody further on sees them.
 */
function backward(
  communicator: Communicator,
  plan: RingPlan,
  [q, k, v, out, logSumExp]: Saved,
  dout: Tensor,
  options: ShardedAttentionOptions,
): Gradients {
  let held = packed(k, v);
  let dq: Tensor | undefined;
  let arriving: Pending<Tensor> | undefined;
  const own = Tensor.empty(held.shape, { device: q.device });
  for (const step of plan.steps) {
    const next = passOn(communicator, plan, step, held);
    let part: Tensor | undefined;
    if (step.isSeen) {
      const made = attentionBackward(
        { q, k: held.select(0, 0), v: held.select(0, 1), out, logSumExp, dout },
        { ...options, ...placesOf(plan.queries, step.held, options.mask), gradientDtype: "float32" },
      );
      dq = dq === undefined ? made.dq : added(dq, made.dq);
      part = packed(made.dk, made.dv);
      made.dk.dispose();
      made.dv.dispose();
    }
    const before = arriving?.wait();
    const total = before === undefined ? part : part === undefined ? before : added(before, part);
    arriving = handBack(communicator, plan, step, total as Tensor, own);
    held.dispose();
    if (next !== undefined) held = next.wait();
  }
  arriving?.wait();
  return [dq as Tensor, own.select(0, 0), own.select(0, 1)];
}

function added(sum: Tensor, term: Tensor): Tensor {
  addInto(sum, term);
  term.dispose();
  return sum;
}

const ahead = ({ rank, size }: RingPlan, distance: number) => (rank + distance) % size;
const behind = ({ rank, size }: RingPlan, distance: number) => (rank + size - distance) % size;

/** Sends what the next rank or one after it needs of the held keys, and receives the same from the rank before. */
function passOn(
  communicator: Communicator,
  plan: RingPlan,
  step: RingStep,
  held: Tensor,
): Pending<Tensor> | undefined {
  if (step.distance === plan.steps.length - 1) return undefined;
  const sent = rowsOfPieces(held, step.onward, step.held);
  const received = Tensor.empty(held.shape.with(2, rowsIn(step.incoming)), {
    dtype: held.dtype,
    device: held.device,
  });
  const moved = communicator.exchange(
    parcels(ahead(plan, 1), sent, step.onward),
    parcels(behind(plan, 1), received, step.incoming),
  );
  if (sent !== held) sent.dispose();
  return moved.map(() => received);
}

function parcels(peer: number, tensor: Tensor, pieces: readonly Piece[]) {
  return pieces.length === 0 ? [] : [{ peer, tensor }];
}

/** Sends gradients of the held keys on, or to their owner; gives what comes from the rank before. */
function handBack(
  communicator: Communicator,
  plan: RingPlan,
  step: RingStep,
  total: Tensor,
  own: Tensor,
): Pending<Tensor> {
  const { distance, held, onward, returning, incoming, returned } = step;
  const like = { device: total.device };
  const [moving, back] = [onward, returning].map((some) => rowsOfPieces(total, some, held)) as [
    Tensor,
    Tensor,
  ];
  const coming = Tensor.empty(own.shape.with(2, rowsIn(incoming)), like);
  const home = distance === 0 ? back : Tensor.empty(own.shape.with(2, rowsIn(returned)), like);
  const isAway = distance > 0;
  const moved = communicator.exchange(
    [
      ...parcels(ahead(plan, 1), moving, onward),
      ...(isAway ? parcels(behind(plan, distance), back, returning) : []),
    ],
    [
      ...parcels(behind(plan, 1), coming, incoming),
      ...(isAway ? parcels(ahead(plan, distance), home, returned) : []),
    ],
  );
  return moved.map(() => {
    copyRows("toWhole", own, home, spansOf(returned, plan.steps[0]?.held ?? []), 2);
    for (const tensor of [moving, back, home, total]) if (tensor !== coming) tensor.dispose();
    return coming;
  });
}
