// A checkpoint that keeps what attention gave: most of a long sequence's work, for a small part of its memory
// (rematerialisation-aware checkpointing of DISTFLASHATTN; Li et al., 2024).
import { run, runAgain } from "../checkpoint.ts";
import type { KeepAttention } from "../ops/attention-options.ts";
import { referenceTo } from "../reference.ts";
import { isOnTape, record } from "../tape.ts";
import { alias, type Tensor } from "../tensor.ts";

/** A `checkpoint` whose work is told to keep its attention. What it keeps is the tape's, as the inputs are. */
export function checkpointAroundAttention(
  work: (keep: KeepAttention, ...inputs: Tensor[]) => Tensor,
  ...inputs: Tensor[]
): Tensor {
  const kept: Tensor[] = [];
  try {
    const first: KeepAttention = (forward) => {
      const made = forward();
      kept.push(alias(made.out), alias(made.logSumExp));
      return made;
    };
    const result = run("checkpoint", (...given) => work(first, ...given), inputs);
    return record("checkpoint", [result], inputs, (save) => {
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
