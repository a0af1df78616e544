// Ring attention (Liu et al., 2023): queries stay, keys and values travel from rank to rank, and what each block of keys
// gives is merged by its log-sum-exp. With zigzag shards (Llama 3; Grattafiori et al., 2024, 3.3.2) causal order leaves
// every rank the same work.
import { type AttentionResult, attentionBackward, attentionForward } from "../ops/attention.ts";
import type { Piece } from "../ops/attention-options.ts";
import { inDtype } from "../ops/matmul.ts";
import { Tensor } from "../tensor.ts";
import type { Communicator } from "./communicator.ts";
import { type AttentionCore, attend, type Gradients, rounded } from "./core.ts";
import { addInto, mergeInto } from "./key-values.ts";
import { orderedRingAttention } from "./ordered-ring.ts";
import { release } from "./portions.ts";
import { type KeyValues, RingExchange, rowsOf } from "./ring-exchange.ts";
import { keptByRule, optionsAt, type RingPlan, type RingStep, type Run, ringPlan } from "./ring-plan.ts";
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
  const planFor = keptByRule((options) => ringPlan(pieces, communicator.rank, options));
  return (q, k, v, options, keep) => {
    if (options.deterministic) return ordered(q, k, v, options, keep);
    const plan = planFor(options);
    const { out, logSumExp } = keep(() => forward(communicator, plan, [q, k, v], options));
    return {
      out,
      saved: [q, k, v, out, logSumExp],
      backward: (saved, dout, given, isWide) => {
        const areSummed = plan.steps.length > 1;
        const gradients = backward(communicator, plan, saved as Saved, dout, given, isWide || areSummed);
        return isWide ? gradients : rounded(gradients, q.dtype);
      },
    };
  };
}

type Saved = [q: Tensor, k: Tensor, v: Tensor, out: Tensor, logSumExp: Tensor];

const isSeen = ({ distance, queries }: RingStep) => distance === 0 || queries.length > 0;

function forward(
  communicator: Communicator,
  { steps }: RingPlan,
  [q, k, v]: readonly [Tensor, Tensor, Tensor],
  options: ShardedAttentionOptions,
): AttentionResult {
  let held: KeyValues = [k, v];
  let result: AttentionResult | undefined;
  const isSplit = steps.filter(isSeen).length > 1;
  for (const [i, step] of steps.entries()) {
    const { queries, keys } = step;
    const exchange = new RingExchange(communicator);
    const next = i === steps.length - 1 ? undefined : exchange.passOn(held, step.onward, step.incoming);
    const arriving = next && exchange.start();
    if (isSeen(step)) {
      const part = withKeys(held, keys, (k, v) =>
        attentionForward(rowsOf(q, queries), k, v, {
          ...optionsAt(step, options),
          ...(isSplit && { outDtype: "float32" as const }),
        }),
      );
      if (result === undefined) result = part;
      else {
        const { out, logSumExp } = result;
        mergeInto({ out: rowsOf(out, queries), logSumExp: rowsOf(logSumExp, queries, 2) }, part);
      }
    }
    if (i > 0) release(held);
    arriving?.wait();
    if (next) held = next;
  }
  const { out, logSumExp } = result as AttentionResult;
  return { out: inDtype(out, q.dtype), logSumExp };
}

/**
 * dq stays, dk and dv follow their keys around the ring in float32: a rank adds its part to what has come, and hands it
 * on, with the keys of its next step, or back to the keys' owner where nobody further on sees them. Where no keys go
 * anywhere, attention's gradients are all there is.
 */
function backward(
  communicator: Communicator,
  { steps }: RingPlan,
  [q, k, v, out, logSumExp]: Saved,
  dout: Tensor,
  options: ShardedAttentionOptions,
  isWide: boolean,
): Gradients {
  const partOf = (step: RingStep, held: KeyValues): Gradients => {
    const { queries, keys } = step;
    const rows = { q: rowsOf(q, queries), out: rowsOf(out, queries), dout: rowsOf(dout, queries) };
    const { dq, dk, dv } = withKeys(held, keys, (k, v) =>
      attentionBackward(
        { ...rows, logSumExp: rowsOf(logSumExp, queries, 2), k, v },
        {
          ...optionsAt(step, options),
          ...(isWide && { gradientDtype: "float32" as const }),
        },
      ),
    );
    return [dq, dk, dv];
  };
  const [first] = steps as readonly [RingStep];
  if (steps.length === 1) return partOf(first, [k, v]);

  const own = [k, v].map(({ shape, device }) => Tensor.empty(shape, { device })) as [Tensor, Tensor];
  let held: KeyValues = [k, v];
  let dq: Tensor | undefined;
  let sums: { of: RingStep; dkv: KeyValues } | undefined;
  for (const [i, step] of steps.entries()) {
    const exchange = new RingExchange(communicator);
    const next = i === steps.length - 1 ? undefined : exchange.passOn(held, step.onward, step.incoming);
    const coming = sums && exchange.passOn(sums.dkv, sums.of.onward, sums.of.incoming);
    if (sums) exchange.giveBack(sums.dkv, sums.of, own);
    const arriving = exchange.start();
    if (sums) release(sums.dkv);
    const part = isSeen(step) ? partOf(step, held) : undefined;
    if (i > 0) release(held);
    if (part && dq) addRows(dq, part[0], step.queries);
    dq ??= part?.[0];
    arriving.wait();
    const made = part && ([part[1], part[2]] as const);
    if (made && coming) for (const [j, sum] of coming.entries()) addRows(sum, made[j] as Tensor, step.keys);
    sums = { of: step, dkv: (coming ?? made) as KeyValues };
    if (next) held = next;
  }
  const exchange = new RingExchange(communicator);
  const { of, dkv } = sums as NonNullable<typeof sums>;
  exchange.giveBack(dkv, of, own);
  exchange.start().wait();
  release(dkv);
  return [dq as Tensor, ...own];
}

/** `work` with some rows of keys and values. Views of them end with it: they would hold what is let go. */
function withKeys<T>(held: KeyValues, run: Run, work: (k: Tensor, v: Tensor) => T): T {
  const [k, v] = held.map((x) => rowsOf(x, run)) as [Tensor, Tensor];
  const made = work(k, v);
  release([k, v].filter((x) => !held.includes(x)));
  return made;
}

/** Adds a term that has some of the rows, and lets it go. */
function addRows(sum: Tensor, term: Tensor, run: Run): void {
  const rows = rowsOf(sum, run);
  addInto(rows, term);
  release(rows === sum ? [term] : [rows, term]);
}
