// Ring attention (Liu et al., 2023): queries stay, keys and values come from one rank after the other, at each step from
// another distance, and what each block of keys gives is merged by its log-sum-exp. With zigzag shards (Llama 3;
// Grattafiori et al., 2024, 3.3.2) causal order leaves every rank the same work.
import { handleOfDevice } from "../device.ts";
import { native, type TensorPlace } from "../native.ts";
import {
  type AttentionResult,
  attentionBackward,
  attentionForward,
  gradientsLike,
} from "../ops/attention.ts";
import { nativeScoring, type Piece } from "../ops/attention-options.ts";
import { QueryGradient } from "../ops/query-gradient.ts";
import { handleOf, Tensor } from "../tensor.ts";
import { dtypes } from "../values.ts";
import { placeOf } from "../view.ts";
import type { Communicator } from "./communicator.ts";
import { type AttentionCore, attend, type Gradients } from "./core.ts";
import { jointPasses } from "./joint-attention.ts";
import { isJoint, jointPlan } from "./joint-plan.ts";
import { attendInto } from "./key-values.ts";
import { orderedRingAttention } from "./ordered-ring.ts";
import { type KeyPlaces, type KeyValues, pair, rowsOf } from "./ring-exchange.ts";
import { ringKeys } from "./ring-keys.ts";
import { type Meeting, optionsAt, type Rows, ruleAt } from "./ring-meeting.ts";
import { isAmong, type RingParts, ringParts } from "./ring-parts.ts";
import { keptByRule, type RingStep } from "./ring-plan.ts";
import { SequenceShard } from "./shard.ts";
import { checkCommunicator, replicated, type ShardedAttentionOptions, type Strategy } from "./strategy.ts";

/**
 * Each rank has a stretch of the sequence. Under causal order the last ranks have most of the work: see `zigzag`. Keys
 * are sent to the ranks that see them, by order, window, documents or mask, and to no others. With `deterministic`,
 * results have the same bits at 1, 2, 4 and 8 ranks, and those of `zigzag`.
 *
 * Up to 8 ranks of one process and one thread that share a Hopper GPU, in 16 bits, need no steps where stretches are
 * multiples of 128 tokens: a call each way reaches all of them, for a few percent more than one rank takes.
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
  return ringOf("ring", SequenceShard.contiguous, communicator, length);
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
  return ringOf("zigzag", SequenceShard.zigzag, communicator, length);
}

function ringOf(
  name: "ring" | "zigzag",
  shardOf: typeof SequenceShard.contiguous,
  communicator: Communicator,
  length: number,
): Strategy {
  checkCommunicator(name, communicator);
  const shard = shardOf(length, communicator.size, communicator.rank);
  const pieces = Array.from({ length: communicator.size }, (_, rank) => shard.of(rank).pieces);
  const core = ringAttention(communicator, pieces);
  return {
    name,
    ...replicated(shard, (x) => communicator.allReduce(x).wait()),
    attend: (q, k, v, options, keep) => attend(core, shard, q, k, v, options, keep),
  };
}

/** `pieces` are those of each rank. */
export function ringAttention(
  communicator: Communicator,
  pieces: readonly (readonly Piece[])[],
): AttentionCore {
  const ordered = orderedRingAttention(communicator, pieces);
  const partsFor = keptByRule((options) => ringParts(pieces, communicator.rank, options));
  const jointFor = keptByRule((options) => jointPlan(pieces, communicator.rank, options));
  const canJoin = isJoint(pieces);
  return (q, k, v, options, keep) => {
    if (options.deterministic) return ordered(q, k, v, options, keep);
    const joint = canJoin && seesAllMemory(communicator, q, options) ? jointFor(options) : undefined;
    const passes = joint?.isShared
      ? jointPasses(communicator, joint)
      : passesInSteps(communicator, partsFor(options));
    const { out, logSumExp } = keep(() => passes.forward([q, k, v], options));
    return {
      out,
      saved: [q, k, v, out, logSumExp],
      backward: (saved, dout, given, isWide) => passes.backward(saved as Saved, dout, given, isWide),
    };
  };
}

function passesInSteps(communicator: Communicator, parts: RingParts) {
  return {
    forward: forward.bind(null, communicator, parts),
    backward: backward.bind(null, communicator, parts),
  };
}

/** Whether a kernel reaches all ranks' rows. */
function seesAllMemory(
  communicator: Communicator,
  q: Tensor,
  { mask, implementation }: ShardedAttentionOptions,
): boolean {
  if (mask !== undefined || q.size === 0 || !communicator.sharesMemory) return false;
  const headDim = q.shape.at(-1) ?? 0;
  return native.attentionTakesParts(
    handleOfDevice(q.device),
    dtypes.indexOf(q.dtype),
    headDim,
    implementation ?? null,
  );
}

type Saved = [q: Tensor, k: Tensor, v: Tensor, out: Tensor, logSumExp: Tensor];

const isSeen = ({ queries }: RingStep) => queries.length > 0;

function forward(
  communicator: Communicator,
  { steps, merged, byQueries }: RingParts,
  [q, k, v]: readonly [Tensor, Tensor, Tensor],
  options: ShardedAttentionOptions,
): AttentionResult {
  if (steps.length === 1) return attentionForward(q, k, v, optionsAt(steps[0] as RingStep, options));
  const { dtype, device, shape } = q;
  const [batch = 0, rows = 0, heads = 0] = shape;
  const out = Tensor.empty(shape, { dtype, device });
  const logSumExp = Tensor.empty([batch, heads, rows], { device });
  const sums = merged.map((rows) => ({ ...summed(out, rows), roundedBy: rows.roundedBy }));
  const scoring = nativeScoring(q, options);
  /** What the step gives of a part of the queries, and those before it, in their place. */
  const attendAt = (i: number, part: Meeting, held: KeyPlaces): void => {
    const { queries } = part;
    const among = sums.find(({ rows }) => isAmong(queries, rows));
    const sum = among && placeOf(among.sum, behind(queries, among.rows));
    const result = {
      out: sum && among.roundedBy !== i ? sum : placeOf(out, queries),
      logSumExp: placeOf(logSumExp, queries, 2),
    };
    const given = [...scoring, ...ruleAt(part, options)] as const;
    attendInto(result, placeOf(q, queries), held, given, i > 0 ? sum : undefined);
  };
  const keys = ringKeys(communicator, steps, [k, v]);
  for (const [i, step] of steps.entries()) {
    keys.begin();
    for (const part of i === 0 ? byQueries : []) attendAt(i, part, keysOf([k, v], part.keys));
    if (i > 0 && isSeen(step)) attendAt(i, step, keys.keys());
    keys.end();
  }
  const home = keys.finish();
  for (const sum of sums.filter(({ roundedBy }) => roundedBy < 0)) round(sum);
  home.wait();
  return { out, logSumExp };
}

/**
 * dq stays: each step adds to its sums. dk and dv of keys that others see are summed in float32, in the order of the
 * steps, others' are made in their place. Where no keys go anywhere, attention's gradients are all there is.
 */
function backward(
  communicator: Communicator,
  { steps, byKeys, aligned }: RingParts,
  [q, k, v, out, logSumExp]: Saved,
  dout: Tensor,
  options: ShardedAttentionOptions,
  isWide: boolean,
): Gradients {
  const wide = isWide ? ("float32" as const) : undefined;
  if (steps.length === 1) {
    const { dq, dk, dv } = attentionBackward(
      { q, k, v, out, logSumExp, dout },
      { ...optionsAt(steps[0] as RingStep, options), ...(wide && { gradientDtype: wide }) },
    );
    return [dq, dk, dv];
  }
  const { shared } = steps[0] as RingStep;
  const [dq, dk, dv] = gradientsLike([q, k, v], [], wide);
  const shares = [summed(dk, shared), summed(dv, shared)] as const;
  const sums: KeyValues = [shares[0].sum, shares[1].sum];
  using gradient = new QueryGradient({ q, out, logSumExp, dout }, nativeScoring(q, options));
  const keys = ringKeys(communicator, steps, [k, v], sums);
  for (const [i, step] of steps.entries()) {
    keys.begin();
    for (const part of i === 0 ? byKeys : []) {
      const isShared = isAmong(part.keys, shared);
      const into = isShared ? keysOf(sums, behind(part.keys, shared)) : keysOf([dk, dv], part.keys);
      gradient.add(part.queries, keysOf([k, v], part.keys), into, false, ruleAt(part, options));
    }
    if (i > 0 && isSeen(step)) {
      const part = aligned[i] as Meeting;
      const { places, adds } = keys.gradients();
      gradient.add(part.queries, keys.keys(), places, adds, ruleAt(part, options));
    }
    keys.end();
  }
  const home = keys.finish();
  gradient.finish(dq);
  home.wait();
  shares.forEach(round);
  return [dq, dk, dv];
}

/** Some rows of a result, summed up in float32: in their place, where that is of float32 and in one piece. */
interface Summed {
  rows: Rows;
  sum: Tensor;
  /** Where the sum belongs, if it is not there. */
  place?: TensorPlace;
}

function summed(x: Tensor, rows: Rows): Summed {
  const { dtype, shape, device } = x;
  const own = dtype === "float32" ? rowsOf(x, rows) : undefined;
  if (own?.isContiguous) return { rows, sum: own };
  return { rows, sum: Tensor.empty(shape.with(1, rows.length), { device }), place: placeOf(x, rows) };
}

function round({ place, sum }: Summed): void {
  if (place) native.copy(handleOf(sum, "a sum"), place);
}

function keysOf(keys: KeyValues, rows: Rows): KeyPlaces {
  return pair(keys, (x) => placeOf(x, rows));
}

/** Rows, counted from the first of those that they are among. */
function behind({ start, length }: Rows, others: Rows): Rows {
  return { start: start - others.start, length };
}
