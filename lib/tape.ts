import { failure, wrongKind } from "./errors.ts";
import { native } from "./native.ts";
import { Scope } from "./scope.ts";
import { alias, handleOf, Tensor } from "./tensor.ts";

/** From the gradients of an operation's outputs to those of its inputs; null where an input has none. */
export type VectorJacobianProduct = (gradients: Tensor[]) => (Tensor | null)[];

interface Step {
  operation: string;
  inputs: readonly Tensor[];
  outputs: readonly Tensor[];
  saved: readonly Tensor[];
  product: VectorJacobianProduct;
}

/** Which tape follows a tensor. Tensors carry their tape with them: nothing is global, so many tapes can be open. */
const tapes = new WeakMap<Tensor, Tape>();

/**
 * Notes the operations on the tensors it watches, and what follows from those, so that gradients can be asked for.
 * What an operation saves for that is freed as soon as its product has run.
 *
 * @example
 * using tape = new Tape();
 * const q = Tensor.normal([1, 128, 4, 64]);
 * tape.watch(q);
 * const out = attention(q, q, q, { causal: true });
 * const [dq] = tape.backward(out, Tensor.normal(out.shape), [q]);
 */
export class Tape implements Disposable {
  #steps: Step[] = [];

  watch(...tensors: readonly Tensor[]): void {
    for (const tensor of tensors) {
      handleOf(tensor, "watch: a tensor");
      tapes.set(tensor, this);
    }
  }

  /**
   * The gradients of `sum(output * gradient)` in each of `wrt`, zeros where it does not depend on one. The steps are
   * used up.
   * @param gradient of the output's shape and dtype.
   * @throws `ERR_OPTION` where the output is not on this tape; `ERR_SHAPE`, `ERR_DTYPE` for another gradient.
   */
  backward(output: Tensor, gradient: Tensor, wrt: readonly Tensor[]): Tensor[] {
    handleOf(gradient, "backward: gradient");
    if (!(output instanceof Tensor)) throw wrongKind("backward: output", "a Tensor", output);
    if (!Array.isArray(wrt)) throw wrongKind("backward: wrt", "an array of Tensors", wrt);
    for (const tensor of wrt as readonly Tensor[]) {
      if (!(tensor instanceof Tensor)) throw wrongKind("backward: a tensor of wrt", "a Tensor", tensor);
    }
    if (tapes.get(output) !== this) throw failure("ERR_OPTION", "backward: output is not on this tape");
    if (gradient.dtype !== output.dtype) {
      throw failure(
        "ERR_DTYPE",
        `backward: gradient is ${gradient.dtype}, expected ${output.dtype} (that of output)`,
      );
    }
    if (gradient.shape.join() !== output.shape.join()) {
      throw failure(
        "ERR_SHAPE",
        `backward: gradient is [${gradient.shape}], expected [${output.shape}] (that of output)`,
      );
    }
    const steps = this.#steps;
    this.#steps = [];
    return Scope.run(() => {
      const gradients = new Map<Tensor, Tensor>([[output, gradient]]);
      for (const step of steps.reverse()) {
        if (step.outputs.some((made) => gradients.has(made))) {
          const given = step.outputs.map((made) => gradients.get(made) ?? zerosLike(made));
          for (const [i, part] of step.product(given).entries()) {
            const input = step.inputs[i];
            if (part === null || input === undefined || tapes.get(input) !== this) continue;
            const before = gradients.get(input);
            gradients.set(input, before === undefined ? part : sum(before, part));
          }
        }
        for (const tensor of step.saved) tensor.dispose();
      }
      // A gradient that is the caller's own, or asked for twice, must not be handed out as if it were new.
      const seen = new Set<Tensor>([gradient]);
      return wrt.map((tensor) => {
        const found = gradients.get(tensor) ?? zerosLike(tensor);
        if (!seen.has(found)) {
          seen.add(found);
          return found;
        }
        return found.contiguous();
      });
    });
  }

  /** Adds a step; `saved` belongs to the tape from here on. */
  note(step: Step): void {
    for (const made of step.outputs) tapes.set(made, this);
    this.#steps.push(step);
  }

  dispose(): void {
    for (const step of this.#steps) for (const tensor of step.saved) tensor.dispose();
    this.#steps = [];
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * Notes an operation on its inputs' tape, if any has one, and returns its first output. `differentiate` gets a
 * function that saves a tensor for the product: a reference of the tape's own, so the caller may dispose its.
 */
export function record(
  operation: string,
  outputs: readonly [Tensor, ...Tensor[]],
  inputs: readonly Tensor[],
  differentiate: (
    save: (tensor: Tensor) => Tensor,
  ) => (gradients: [Tensor, ...Tensor[]]) => (Tensor | null)[],
): Tensor {
  const tape = inputs.map((input) => tapes.get(input)).find((found) => found !== undefined);
  if (tape !== undefined) {
    const saved: Tensor[] = [];
    const product = differentiate((tensor) => {
      const kept = alias(tensor);
      saved.push(kept);
      return kept;
    });
    tape.note({ operation, inputs, outputs, saved, product: product as VectorJacobianProduct });
  }
  return outputs[0];
}

function zerosLike(tensor: Tensor): Tensor {
  return Tensor.zeros(tensor.shape, { dtype: tensor.dtype, device: tensor.device });
}

function sum(a: Tensor, b: Tensor): Tensor {
  const total = Tensor.empty(a.shape, { dtype: a.dtype, device: a.device });
  native.add(handleOf(a, "sum"), handleOf(b, "sum"), handleOf(total, "sum"));
  return total;
}
