// Keys and values on their way, and what becomes of results and gradients that are made of a part of them.
import { native, type TensorPlace } from "../native.ts";
import type { AttentionResult } from "../ops/attention.ts";
import type { NativeAttentionOptions } from "../ops/attention-options.ts";
import { handleOf, Tensor } from "../tensor.ts";
import { release } from "./portions.ts";

/** Keys and values in one tensor, [2, B, n, H, D], so that a piece is one parcel. */
export function packed(k: Tensor, v: Tensor): Tensor {
  const both = Tensor.empty([2, ...k.shape], { dtype: k.dtype, device: k.device });
  for (const [i, part] of [k, v].entries()) {
    using place = both.select(0, i);
    copyInto(place, part);
  }
  return both;
}

export function copyInto(place: Tensor, values: Tensor): void {
  native.copy(handleOf(values, "values"), handleOf(place, "place"));
}

/** In place. */
export function addInto(sum: Tensor, term: Tensor): void {
  const into = handleOf(sum, "sum");
  native.add(into, handleOf(term, "term"), into);
}

/**
 * Makes of `result` what attention gives over these keys; with `before`, of float32, over the keys too that gave that
 * and result's log-sum-exp. They may be one tensor.
 */
export function attendInto(
  { out, logSumExp }: { out: TensorPlace; logSumExp: TensorPlace },
  q: TensorPlace,
  [k, v]: readonly [TensorPlace, TensorPlace],
  options: NativeAttentionOptions,
  before?: TensorPlace,
): void {
  if (before) native.attentionForwardMerged(q, k, v, before, out, logSumExp, options);
  else native.attentionForward(q, k, v, out, logSumExp, options);
}

/** Makes of `whole` what attention gives over its keys and the part's. The part is let go. */
export function mergeInto(whole: AttentionResult, part: AttentionResult): void {
  const [out, logSumExp] = [handleOf(whole.out, "out"), handleOf(whole.logSumExp, "logSumExp")];
  const outs = [out, handleOf(part.out, "a part's out")];
  const statistics = [logSumExp, handleOf(part.logSumExp, "a part's logSumExp")];
  native.attentionMerge(outs, statistics, out, logSumExp);
  release([part.out, part.logSumExp]);
}
