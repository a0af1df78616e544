// Attention over a sequence that ranks share, as the layer's step: forward, and its backward pass.
import { failure } from "../errors.ts";
import { checkSameShape } from "../layout.ts";
import { attentionBackward, attentionForward } from "../ops/attention.ts";
import { type KeepAttention, keptOptions, nativeOptions } from "../ops/attention-options.ts";
import { inDtype } from "../ops/matmul.ts";
import { Scope } from "../scope.ts";
import { record } from "../tape.ts";
import type { Tensor } from "../tensor.ts";
import type { DType } from "../values.ts";
import { alias, referenceTo } from "../view.ts";
import { checkedBoundaries } from "./documents.ts";
import { checkRows } from "./rows.ts";
import type { SequenceShard } from "./shard.ts";
import { checkAttend, type ShardedAttentionOptions } from "./strategy.ts";

/** What attention gives, and how its gradients are made of what it leaves for that. */
export interface Attended {
  out: Tensor;
  /** What `backward` needs; whoever called owns it. */
  saved: readonly Tensor[];
  /** Of q, k and v; new tensors, in float32 where `isWide`. `options` are those of the forward pass. */
  backward(
    saved: readonly Tensor[],
    dout: Tensor,
    options: ShardedAttentionOptions,
    isWide: boolean,
  ): Gradients;
}
export type Gradients = [dq: Tensor, dk: Tensor, dv: Tensor];

/** `x` itself where it has the dtype, else it is let go. */
function rounded(x: Tensor, dtype: DType): Tensor {
  const made = inDtype(x, dtype);
  if (made !== x) x.dispose();
  return made;
}

export function allRounded(gradients: Gradients, dtype: DType): Gradients {
  return gradients.map((wide) => rounded(wide, dtype)) as Gradients;
}

/** On every rank the same calls in the same order. Nothing of it is noted on a tape. */
export type AttentionCore = (
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: ShardedAttentionOptions,
  keep: KeepAttention,
) => Attended;

/** All rows and keys are here. */
export const wholeAttention: AttentionCore = (q, k, v, options, keep) => {
  const { out, logSumExp } = keep(() => attentionForward(q, k, v, options));
  return {
    out,
    saved: [q, k, v, out, logSumExp],
    backward: (saved, dout, options, isWide) => {
      const [q, k, v, out, logSumExp] = saved as [Tensor, Tensor, Tensor, Tensor, Tensor];
      const wide = isWide ? { gradientDtype: "float32" as const } : {};
      const { dq, dk, dv } = attentionBackward({ q, k, v, out, logSumExp, dout }, { ...options, ...wide });
      return [dq, dk, dv];
    },
  };
};

/** The step of a layer whose rank has these rows, noted on its inputs' tape. */
export function attend(
  core: AttentionCore,
  { size, length }: SequenceShard,
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: ShardedAttentionOptions = {},
  keep: KeepAttention = (forward) => forward(),
): Tensor {
  checkAttend(options, keep);
  // Here, since what does not fit would be known to the other ranks alone, and end the group.
  for (const [name, x] of Object.entries({ q, k, v })) {
    checkRows(`attend: ${name}`, x, 1, size, "those of the strategy's inner shard");
    if (x.shape.length !== 4) {
      throw failure("ERR_SHAPE", `attend: ${name} has ${x.shape.length} axes, expected [B, S, H, D]`);
    }
  }
  checkLike(q, k, v);
  checkWhole(q, options, length);
  const owned: Tensor[] = [alias(q), alias(k), alias(v)];
  try {
    const [ownQ, ownK, ownV] = owned as [Tensor, Tensor, Tensor];
    const { out, saved, backward } = Scope.run(() => core(ownQ, ownK, ownV, options, keep));
    owned.push(...saved.filter((tensor) => tensor !== out));
    return record("attention", [out], [q, k, v], (save, hold) => {
      const kept = saved.map(save);
      const given = keptOptions(options, save, hold);
      return ([dout]) => Scope.run(() => backward(kept, dout, given, false));
    });
  } finally {
    for (const tensor of owned) tensor.dispose();
  }
}

/** Options of the whole sequence and of all of q's heads: here, since a ring makes its plan of them, and a rank sees to
 * its own part of them alone. */
export function checkWhole(q: Tensor, options: ShardedAttentionOptions, length: number): void {
  nativeOptions(q, options);
  const { cuSeqlens, mask, alibiSlopes, scale, softcap, implementation } = options;
  if ([alibiSlopes, scale, softcap, implementation].some((given) => given !== undefined))
    checkScoring(q, options);
  if (alibiSlopes) checkSameShape("attention: alibiSlopes", alibiSlopes.shape, q.shape.slice(-2, -1));
  if (mask && (mask.queries !== length || mask.keys !== length)) {
    const message = `attention: mask is [${mask.queries}, ${mask.keys}], expected [${length}, ${length}]`;
    throw failure("ERR_SHAPE", message);
  }
  const last = cuSeqlens && checkedBoundaries("attention: cuSeqlens", cuSeqlens, 0).at(-1);
  if (last !== undefined && last !== length) {
    const message = `attention: cuSeqlens ends at ${last}, expected ${length} (the rows of the sequence)`;
    throw failure("ERR_OPTION", message);
  }
}

/** By an attention over nothing: not every rank has heads to find out with. */
function checkScoring(
  q: Tensor,
  { causal, window, cuSeqlens, mask, ...scoring }: ShardedAttentionOptions,
): void {
  Scope.run(() => {
    const none = referenceTo(q).slice(1, 0, 0);
    attentionForward(none, none, none, scoring);
  });
}

function checkLike(q: Tensor, k: Tensor, v: Tensor): void {
  const [batch, , queryHeads = 0, headDim] = q.shape;
  const [, , keyHeads = 0] = k.shape;
  const expected = [batch, k.shape[1], keyHeads, headDim].join();
  for (const [name, x] of Object.entries({ k, v })) {
    if (x.shape.join() !== expected) {
      throw failure("ERR_SHAPE", `attend: ${name} is [${x.shape}], expected [${expected}]`);
    }
    if (x.dtype !== q.dtype)
      throw failure("ERR_DTYPE", `attend: ${name} is ${x.dtype}, expected ${q.dtype} (q's)`);
    if (x.device !== q.device) throw failure("ERR_DEVICE", `attend: ${name} is on another device than q`);
  }
  if (keyHeads === 0 ? queryHeads > 0 : queryHeads % keyHeads !== 0) {
    throw failure(
      "ERR_SHAPE",
      `attend: q has ${queryHeads} heads, expected a multiple of ${keyHeads} (those of k)`,
    );
  }
}
