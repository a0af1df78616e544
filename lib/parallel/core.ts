// Attention over a sequence that ranks share, as the layer's step: forward, and its backward pass.
import { attentionBackward, attentionForward } from "../ops/attention.ts";
import type { KeepAttention } from "../ops/attention-options.ts";
import { Scope } from "../scope.ts";
import { record } from "../tape.ts";
import { alias, type Tensor } from "../tensor.ts";
import type { ShardedAttentionOptions } from "./strategy.ts";

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

/** The step of a layer, noted on its inputs' tape. */
export function attend(
  core: AttentionCore,
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: ShardedAttentionOptions = {},
  keep: KeepAttention = (forward) => forward(),
): Tensor {
  const untracked = [alias(q), alias(k), alias(v)] as const;
  const { out, saved, backward } = Scope.run(() => core(...untracked, options, keep));
  record("attention", [out], [q, k, v], (save) => {
    const kept = saved.map(save);
    const { alibiSlopes } = options;
    const given = { ...options, ...(alibiSlopes && { alibiSlopes: save(alibiSlopes) }) };
    return ([dout]) => Scope.run(() => backward(kept, dout, given, false));
  });
  for (const tensor of [...saved, ...untracked]) if (tensor !== out) tensor.dispose();
  return out;
}
