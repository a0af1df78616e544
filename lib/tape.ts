import { failure } from "./errors.ts";
import { type Hold, type Save, Saved } from "./saved.ts";
import { Scope } from "./scope.ts";
import { TapeGradients } from "./tape-gradients.ts";
import { checkBackward } from "./tape-input.ts";
import { handleOf, Tensor, writesOf } from "./tensor.ts";
import { type Alike, alike, nameIn, type TensorGroup, tensorsOf } from "./tensor-group.ts";

/** From the gradients of an operation's outputs to those of its inputs; null where an input has none, or none is wanted. */
export type VectorJacobianProduct = (gradients: Tensor[], wanted: readonly boolean[]) => (Tensor | null)[];

/** @internal */
interface Step {
  inputs: readonly Tensor[];
  outputs: readonly Tensor[];
  saved: Saved;
  product: VectorJacobianProduct;
}

/** Which tape follows a tensor. Tensors carry their tape with them: nothing is global, so many tapes can be open. */
const tapes = new WeakMap<Tensor, Tape>();

/**
 * Notes the operations on the tensors it watches, and what follows from those, so that gradients can be asked for
 * (reverse-mode differentiation). What an operation saves is freed as soon as its product has run; it is no copy, so
 * where that was changed since (`Tensor.write`, `AdamW.step`) `backward` is refused.
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
  /** Outputs of steps that are gone. */
  readonly #usedUp = new WeakSet<Tensor>();
  #isClosed = false;

  /**
   * Follows these tensors, alone or in groups, from here on. A tensor is on one tape at most: the last that watched it.
   * An operation on tensors of two open tapes is refused, with `ERR_OPTION`.
   *
   * @throws `ERR_DISPOSED`; `ERR_OPTION` for what is no Tensor.
   * @example
   * using tape = new Tape();
   * const x = Tensor.from([1, 2, 3, 4], [4]);
   * tape.watch(x);
   * const y = x.slice(0, 1, 3);
   * const [dx] = tape.backward(y, Tensor.from([5, 6], [2]), [x]);
   * await dx?.data(); // [0, 5, 6, 0]
   */
  watch(...tensors: readonly (Tensor | TensorGroup)[]): void {
    if (this.#isClosed) throw failure("ERR_DISPOSED", "watch: the tape was disposed");
    const each = (given: Tensor | TensorGroup) =>
      given instanceof Tensor ? [given] : tensorsOf("watch: a tensor", given);
    for (const tensor of tensors.flatMap(each)) {
      handleOf(tensor, "watch: a tensor");
      tapes.set(tensor, this);
    }
  }

  /**
   * The gradients of `sum(output * gradient)` in each of `wrt`, zeros where it does not depend on one. The steps are
   * used up: call it once, with all tensors that gradients are wanted of.
   *
   * @param output made of what this tape watches.
   * @param gradient of the output's shape and dtype.
   * @param wrt what this tape watches, or what was made of that: in an array, or by name.
   * @returns new tensors, in an array or by name as `wrt`, each of that tensor's shape and dtype.
   * @throws `ERR_OPTION` where the output or one of `wrt` is not on this tape, the output's steps are used up, or what an
   * operation saved was changed; `ERR_SHAPE`, `ERR_DTYPE` for another gradient; `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`.
   * @example
   * using tape = new Tape();
   * const [q, k] = [Tensor.normal([1, 8, 2, 64]), Tensor.normal([1, 256, 2, 64])];
   * tape.watch(q, k);
   * const out = attention(q, k, k);
   * const gradients = tape.backward(out, Tensor.normal(out.shape), { q, k });
   * gradients.k.shape; // [1, 256, 2, 64]
   */
  backward<const Group extends TensorGroup>(output: Tensor, gradient: Tensor, wrt: Group): Alike<Group> {
    const tensors = checkBackward(output, gradient, wrt);
    this.#checkFollowed(output, tensors, (at) => `wrt${nameIn(wrt, at)}`);
    return Scope.run(() => {
      const found = this.gradients(output, gradient, tensors);
      return alike(
        wrt,
        tensors.map((tensor, at) => found[at] ?? zerosLike(tensor)),
      );
    });
  }

  /**
   * What `backward` gives, for arguments that are right, but null where the output does not depend on a tensor.
   * @internal
   */
  gradients(output: Tensor, gradient: Tensor, wrt: readonly Tensor[]): (Tensor | null)[] {
    const steps = this.#steps;
    this.#steps = [];
    try {
      return Scope.run(() => this.#gradients(steps, output, gradient, wrt));
    } finally {
      this.#forget(steps);
    }
  }

  #checkFollowed(output: Tensor, tensors: readonly Tensor[], nameOf: (at: number) => string): void {
    if (this.#isClosed) throw failure("ERR_DISPOSED", "backward: the tape was disposed");
    if (tapes.get(output) !== this) {
      const why = this.#usedUp.has(output)
        ? " any more, its steps are used up: ask for all gradients in one call"
        : "";
      throw failure("ERR_OPTION", `backward: output is not on this tape${why}`);
    }
    for (const [at, tensor] of tensors.entries()) {
      if (tapes.get(tensor) === this) continue;
      throw failure("ERR_OPTION", `backward: ${nameOf(at)} is not on this tape: watch it before it is used`);
    }
  }

  #gradients(
    steps: readonly Step[],
    output: Tensor,
    gradient: Tensor,
    wrt: readonly Tensor[],
  ): (Tensor | null)[] {
    const wanted = new Set(wrt);
    const gradients = new TapeGradients(output, gradient);
    /** The step that gave a gradient: those of one are apart, as dq, dk and dv in one block of memory. */
    const makers = new Map<Tensor, Step>();
    for (const step of steps.toReversed()) {
      if (step.outputs.some((made) => gradients.get(made) !== undefined)) {
        step.saved.restore();
        const given = step.outputs.map((made) => gradients.get(made) ?? zerosLike(made));
        const isFollowed = step.inputs.map((input) => tapes.get(input) === this);
        for (const [i, part] of step.product(given, isFollowed).entries()) {
          const input = step.inputs[i];
          if (part === null || input === undefined || !isFollowed[i]) continue;
          makers.set(part, step);
          gradients.add(input, part);
        }
        // Nobody asks for these any more: those of a whole layer would take more memory than what it saved.
        for (const made of step.outputs) if (!wanted.has(made)) gradients.release(made);
      }
      step.saved.dispose();
    }
    // What is the caller's own, or was handed out, must not be handed out as if it were new. By memory: whose it is.
    const taken = new Map<object, { maker: Step | undefined; parts: Set<Tensor> }>();
    taken.set(writesOf(gradient), { maker: undefined, parts: new Set() });
    return wrt.map((tensor) => {
      const found = gradients.get(tensor);
      if (found === undefined) return null;
      const maker = makers.get(found);
      const { maker: owner, parts } = taken.get(writesOf(found)) ?? { maker, parts: new Set<Tensor>() };
      if (owner !== maker || parts.has(found) || found === gradient) return found.contiguous();
      taken.set(writesOf(found), { maker, parts: parts.add(found) });
      return found;
    });
  }

  /**
   * Adds a step; `saved` belongs to the tape from here on.
   * @internal
   */
  note(step: Step): void {
    for (const made of step.outputs) tapes.set(made, this);
    this.#steps.push(step);
  }

  /** @internal The tape that follows a tensor, unless it was disposed. */
  static of(tensor: Tensor): Tape | undefined {
    const tape = tapes.get(tensor);
    return tape === undefined || tape.#isClosed ? undefined : tape;
  }

  /** Frees what steps saved. Their outputs are not on the tape from here on, so asking for gradients again is refused. */
  #forget(steps: readonly Step[]): void {
    for (const step of steps) {
      step.saved.dispose();
      for (const made of step.outputs) {
        if (tapes.get(made) !== this) continue; // another has come to watch it
        tapes.delete(made);
        this.#usedUp.add(made);
      }
    }
  }

  /** Forgets the steps and frees what they saved; from here on it follows nothing. Twice is harmless. */
  dispose(): void {
    this.#isClosed = true;
    this.#forget(this.#steps);
    this.#steps = [];
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Whether a tape follows the tensor, so that an operation on it is noted. */
export function isOnTape(tensor: Tensor): boolean {
  return Tape.of(tensor) !== undefined;
}

/** The open one that follows the inputs. Two are refused, and the outputs let go: one would not hear of its inputs. */
function tapeOf(operation: string, inputs: readonly Tensor[], outputs: readonly Tensor[]): Tape | undefined {
  let tape: Tape | undefined;
  for (const input of inputs) {
    const found = Tape.of(input);
    if (found !== undefined && tape !== undefined && found !== tape) {
      for (const made of outputs) made.dispose();
      throw failure("ERR_OPTION", `${operation}: inputs are on two open tapes, expected one`);
    }
    tape ??= found;
  }
  return tape;
}

/**
 * Notes an operation on its inputs' tape, if any has one, and returns its first output. `differentiate` gets a
 * function that saves a tensor for the product, a reference of the tape's own, so that the caller may dispose its; and
 * one that does so of a place that the product writes to, whose values are nothing to it. What the product is told of
 * the inputs is whether their gradients are wanted.
 */
export function record(
  operation: string,
  outputs: readonly [Tensor, ...Tensor[]],
  inputs: readonly Tensor[],
  differentiate: (
    save: Save,
    hold: Hold,
  ) => (gradients: [Tensor, ...Tensor[]], wanted: readonly boolean[]) => (Tensor | null)[],
): Tensor {
  const tape = tapeOf(operation, inputs, outputs);
  if (tape !== undefined) {
    const saved = new Saved(operation);
    const product = differentiate(saved.keep, saved.hold) as VectorJacobianProduct;
    tape.note({ inputs, outputs, saved, product });
  }
  return outputs[0];
}

function zerosLike(tensor: Tensor): Tensor {
  return Tensor.zeros(tensor.shape, { dtype: tensor.dtype, device: tensor.device });
}
