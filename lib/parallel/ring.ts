// Ring attention (Liu et al., 2023): queries stay, keys and values come from one rank after the other, at each step from
// another distance, and what each block of keys gives is merged by its log-sum-exp. With zigzag shards (Llama 3;
// Grattafiori et al., 2024, 3.3.2) causal order leaves every rank the same work.
import { type AttentionResult, attentionBackward, attentionForward } from "../ops/attention.ts";
import type { Piece } from "../ops/attention-options.ts";
import type { Tensor } from "../tensor.ts";
import type { Communicator } from "./communicator.ts";
import { type AttentionCore, allRounded, attend, type Gradients, rounded } from "./core.ts";
import { addInto, attendInto } from "./key-values.ts";
import { orderedRingAttention } from "./ordered-ring.ts";
import { release } from "./portions.ts";
import { type KeyValues, RingExchange, rowsOf } from "./ring-exchange.ts";
import { keptByRule, optionsAt, type RingStep, type Run, ringPlan } from "./ring-plan.ts";
import { SequenceShard } from "./shard.ts";
import { replicated, type ShardedAttentionOptions, type Strategy } from "./strategy.ts";

/**
 * Each rank has a stretch of the sequence. Under causal order the last ranks have most of the work: see `zigzag`. Keys
 * are sent to the ranks that see them, by order, window, documents or mask, and to no others. With `deterministic`,
 * results have the same bits at 1, 2, 4 and 8 ranks, and those of `zigzag`.
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
  const stepsFor = keptByRule((options) => ringPlan(pieces, communicator.rank, options));
  return (q, k, v, options, keep) => {
    if (options.deterministic) return ordered(q, k, v, options, keep);
    const steps = stepsFor(options);
    const { out, logSumExp } = keep(() => forward(communicator, steps, [q, k, v], options));
    return {
      out,
      saved: [q, k, v, out, logSumExp],
      backward: (saved, dout, given, isWide) => {
        const areSummed = steps.length > 1;
        const gradients = backward(communicator, steps, saved as Saved, dout, given, isWide || areSummed);
        return isWide ? gradients : allRounded(gradients, q.dtype);
      },
    };
  };
}

/** In row-major order, as they are sent: one copy where there are several steps to send them at. */
function sentOften(own: KeyValues, steps: readonly RingStep[]): KeyValues {
  if (steps.length <= 2) return own;
  return own.map((x) => (x.isContiguous ? x : x.contiguous())) as readonly Tensor[] as KeyValues;
}

type Saved = [q: Tensor, k: Tensor, v: Tensor, out: Tensor, logSumExp: Tensor];

const isSeen = ({ distance, queries }: RingStep) => distance === 0 || queries.length > 0;

function forward(
  communicator: Communicator,
  steps: readonly RingStep[],
  [q, k, v]: readonly [Tensor, Tensor, Tensor],
  options: ShardedAttentionOptions,
): AttentionResult {
  const own = sentOften([k, v], steps);
  let held = own;
  let result: AttentionResult | undefined;
  const isSplit = steps.filter(isSeen).length > 1;
  for (const [i, step] of steps.entries()) {
    const { queries } = step;
    const following = steps[i + 1];
    const exchange = new RingExchange(communicator);
    const next = following && exchange.keys(own, following);
    const arriving = next && exchange.start();
    if (isSeen(step)) {
      const seeing = rowsOf(q, queries);
      const given = optionsAt(step, options);
      if (result === undefined) {
        result = attentionForward(seeing, ...held, {
          ...given,
          ...(isSplit && { outDtype: "float32" as const }),
        });
      } else {
        const { out, logSumExp } = result;
        attendInto(
          { out: rowsOf(out, queries), logSumExp: rowsOf(logSumExp, queries, 2) },
          seeing,
          held,
          given,
        );
      }
    }
    if (held !== own) release(held);
    arriving?.wait();
    held = next ?? own;
  }
  const { out, logSumExp } = result as AttentionResult;
  return { out: rounded(out, q.dtype), logSumExp };
}

/**
 * dq stays, and each step adds to it. dk and dv go to the keys' owner in float32, while the next step is computed, and
 * are summed there in the order of the steps. Where no keys go anywhere, attention's gradients are all there is.
 */
function backward(
  communicator: Communicator,
  steps: readonly RingStep[],
  [q, k, v, out, logSumExp]: Saved,
  dout: Tensor,
  options: ShardedAttentionOptions,
  isWide: boolean,
): Gradients {
  const partOf = (step: RingStep, [k, v]: KeyValues, sum?: Tensor): Gradients => {
    const { queries } = step;
    const rows = { q: rowsOf(q, queries), out: rowsOf(out, queries), dout: rowsOf(dout, queries) };
    const { dq, dk, dv } = attentionBackward(
      { ...rows, logSumExp: rowsOf(logSumExp, queries, 2), k, v },
      {
        ...optionsAt(step, options),
        ...(isWide && { gradientDtype: "float32" as const }),
        ...(sum && { addTo: { dq: rowsOf(sum, queries) } }),
      },
    );
    return [dq, dk, dv];
  };
  const own = sentOften([k, v], steps);
  let held = own;
  let sums: Gradients | undefined;
  /** Gradients of the keys that came for the step before. */
  let made: { by: RingStep; dkv: KeyValues } | undefined;
  for (const [i, step] of steps.entries()) {
    const following = steps[i + 1];
    const exchange = new RingExchange(communicator);
    const next = following && exchange.keys(own, following);
    const terms = made && exchange.gradients(made.dkv, made.by);
    const arriving = (next ?? terms) && exchange.start();
    if (made) release(made.dkv);
    const part = isSeen(step) ? partOf(step, held, sums?.[0]) : undefined;
    if (held !== own) release(held);
    sums ??= part as Gradients;
    arriving?.wait();
    if (made && terms) addKeys(sums, terms, made.by);
    // Where nothing was seen, nothing came: keys of no rows stand for their gradients.
    made = i === 0 ? undefined : { by: step, dkv: part ? [part[1], part[2]] : held };
    held = next ?? own;
  }
  if (made) {
    const exchange = new RingExchange(communicator);
    const terms = exchange.gradients(made.dkv, made.by);
    exchange.start().wait();
    release(made.dkv);
    addKeys(sums as Gradients, terms, made.by);
  }
  return sums as Gradients;
}

/** Adds what came back for the keys that were sent for a step. */
function addKeys([, dk, dv]: Gradients, terms: KeyValues, { sent }: RingStep): void {
  addRows(dk, terms[0], sent);
  addRows(dv, terms[1], sent);
}

/** Adds a term that has some of the rows, and lets it go. */
function addRows(sum: Tensor, term: Tensor, run: Run): void {
  if (run.length > 0) {
    const rows = rowsOf(sum, run);
    addInto(rows, term);
    if (rows !== sum) rows.dispose();
  }
  term.dispose();
}
