// A checkpoint that keeps what attention gave: most of a long sequence's work, for a small part of its memory
// (rematerialisation-aware checkpointing of DISTFLASHATTN; Li et al., 2024).
import { type KeepForAgain, run, runAgain } from "../checkpoint.ts";
import type { KeepAttention } from "../ops/attention-options.ts";
import { isOnTape, record } from "../tape.ts";
import type { Tensor } from "../tensor.ts";
import { alias, referenceTo } from "../view.ts";

/** From least to most. */
export const recomputes: readonly Recompute[] = ["none", "pointwise", "attention", "full"];
/** What of a layer is computed again on the backward pass. */
export type Recompute = "none" | "pointwise" | "attention" | "full";

/** Whether products are computed again. */
export const isOfProducts = (recompute: Recompute): boolean =>
  recompute === "attention" || recompute === "full";

/** What becomes of a layer's intermediate results. */
export interface RecomputeOptions {
  /**
   * What is computed again on the backward pass, so that it need not be kept: nothing; norms and activations, which is a
   * hundredth of the time for a third of the memory; everything but attention, whose result is kept with x (as in
   * DISTFLASHATTN; Li et al., 2024); or everything, from x (Chen et al., 2016). The results are the same bits, unless the
   * MLP is so large that it works on parts of the activation one after the other: then a GPU's products may be summed in
   * another order than with "none". Default: "pointwise".
   */
  recompute?: Recompute;
  /**
   * Tiles of rows that the MLP works on one after the other, each of them computed again on the backward pass, so that its
   * F columns exist for one tile at a time. Not for a strategy that divides the MLP's columns. Default: 1.
   */
  mlpTiles?: number;
}

/** A `checkpointed` whose work is told to keep its attention. What it keeps is the tape's, as the inputs are. */
export function checkpointAroundAttention(
  work: (keep: KeepAttention, ...inputs: Tensor[]) => Tensor,
  inputs: Tensor[],
  keep: KeepForAgain,
): Tensor {
  const kept: Tensor[] = [];
  try {
    const first: KeepAttention = (forward) => {
      const made = forward();
      kept.push(alias(made.out), alias(made.logSumExp));
      return made;
    };
    const result = run("checkpoint", (...given) => work(first, ...given), inputs);
    return record("checkpoint", [result], inputs, (save, hold) => {
      keep(save, hold);
      const saved = inputs.map(save);
      const wanted = inputs.map(isOnTape);
      const results = kept.map(save);
      return ([gradient]) => {
        let at = 0;
        const again: KeepAttention = () => {
          const [out, logSumExp] = results.slice(at, at + 2) as [Tensor, Tensor];
          at += 2;
          return { out: referenceTo(out), logSumExp: referenceTo(logSumExp) };
        };
        return runAgain("checkpoint", (...given) => work(again, ...given), saved, gradient, wanted);
      };
    });
  } finally {
    for (const tensor of kept) tensor.dispose();
  }
}
