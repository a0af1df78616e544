import { failure, wrongKind } from "./errors.ts";
import type { Hold, Save } from "./saved.ts";
import { Scope } from "./scope.ts";
import { isOnTape, record, Tape } from "./tape.ts";
import { handleOf, Tensor } from "./tensor.ts";
import { referenceTo } from "./view.ts";

/** Keeps what work uses beside its inputs. */
export type KeepForAgain = (save: Save, hold: Hold) => void;

/** What is run once more on the backward pass. */
export type Recomputed<Inputs extends readonly Tensor[]> = (...inputs: Inputs) => Tensor;

/**
 * Runs `work`, and keeps of it the inputs and the result alone: on the backward pass of a `Tape` it is run again, on a
 * tape of its own, for what its operations save (gradient checkpointing; Chen et al., 2016). It takes the time of a
 * second forward pass. Checkpoints may be nested.
 *
 * `work` must be a function of its inputs, so that it gives the same values again: what is random in it must have a
 * seed. It gets references of the inputs, which end with it. Inputs that are on no tape cost no gradient.
 *
 * @param inputs all that `work` uses and gradients are wanted of, parameters too; they may be disposed after the call.
 * @returns what `work` returns; what else it made is disposed.
 * @throws what `work` throws, here or on the backward pass; `ERR_OPTION` where it returns no Tensor, or uses one that is
 * on a tape and not among the inputs; `ERR_SHAPE` (on the backward pass) where it then gives another shape; the errors of
 * any operation for an input.
 *
 * @example
 * const [x, weight] = [Tensor.normal([64, 32]), Tensor.normal([128, 32], { seed: 1 })];
 * using tape = new Tape();
 * tape.watch(x, weight);
 * const y = checkpoint((rows, matrix) => gelu(linear(rows, matrix)), x, weight);
 * const [dx, dweight] = tape.backward(y, Tensor.normal(y.shape, { seed: 2 }), [x, weight]);
 * dweight?.shape; // [128, 32]
 */
export function checkpoint<Inputs extends Tensor[]>(work: Recomputed<Inputs>, ...inputs: Inputs): Tensor {
  if (typeof work !== "function") throw wrongKind("checkpoint: work", "a function", work);
  for (const [at, input] of inputs.entries()) handleOf(input, `checkpoint: input ${at}`);
  return checkpointed(work, inputs, () => {});
}

/** `keep` is called behind `work` where it will be run again, for what that uses beside its inputs. */
export function checkpointed<Inputs extends Tensor[]>(
  work: Recomputed<Inputs>,
  inputs: Inputs,
  keep: KeepForAgain,
): Tensor {
  const result = run("checkpoint", work, inputs);
  return record("checkpoint", [result], inputs, (save, hold) => {
    keep(save, hold);
    const saved = inputs.map(save) as Inputs;
    const wanted = inputs.map(isOnTape);
    return ([gradient]) => runAgain("checkpoint", work, saved, gradient, wanted);
  });
}

/** `work`'s result, on no tape. */
export function run<Inputs extends Tensor[]>(
  operation: string,
  work: Recomputed<Inputs>,
  inputs: Inputs,
): Tensor {
  return Scope.run((scope) => {
    const made = checkedResult(operation, work(...(inputs.map(referenceTo) as Inputs)));
    // What work has from elsewhere stays its owner's.
    const result = scope.owns(made) ? made : referenceTo(made);
    if (isOnTape(made)) {
      throw failure(
        "ERR_OPTION",
        `${operation}: work uses a tensor that is on a tape, expected it to be an input`,
      );
    }
    return result;
  });
}

/** The gradients of the inputs that are wanted, of the result's; null for the others, and where there is none. */
export function runAgain<Inputs extends Tensor[]>(
  operation: string,
  work: Recomputed<Inputs>,
  inputs: Inputs,
  gradient: Tensor,
  wanted: readonly boolean[],
): (Tensor | null)[] {
  return Scope.run(() => {
    using tape = new Tape();
    const references = inputs.map(referenceTo) as Inputs;
    const watched = references.filter((_, at) => wanted[at]);
    tape.watch(...watched);
    // Ends what work made before the backward pass: only the tape keeps some, and lets it go step by step.
    const [result, isOwn] = Scope.run((scope) => {
      const made = checkedResult(operation, work(...references));
      return [made, scope.owns(made)] as const;
    });
    if (result.shape.join() !== gradient.shape.join() || result.dtype !== gradient.dtype) {
      throw failure(
        "ERR_SHAPE",
        `${operation}: work gave ${result.dtype} [${result.shape.join(", ")}] when it ran again, expected ${gradient.dtype} [${gradient.shape.join(", ")}]`,
      );
    }
    // Its values were there before.
    if (isOwn) result.dispose();
    const found = tape.gradients(result, gradient, watched);
    return references.map((reference, at) =>
      wanted[at] ? (found[watched.indexOf(reference)] ?? null) : null,
    );
  });
}

function checkedResult(operation: string, result: unknown): Tensor {
  if (result instanceof Tensor) {
    handleOf(result, `${operation}: the result of work`);
    return result;
  }
  // It goes nowhere, so its error would end the process.
  if (result instanceof Promise) result.catch(() => undefined);
  throw wrongKind(`${operation}: the result of work`, "a Tensor", result);
}
