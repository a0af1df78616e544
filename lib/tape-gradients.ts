import { native } from "./native.ts";
import { handleOf, Tensor } from "./tensor.ts";

/** The gradients so far, each disposed as soon as no tensor has it any more. */
export class TapeGradients {
  readonly #of = new Map<Tensor, Tensor>();
  /** How many tensors have a gradient: those of a sum are one and the same. */
  readonly #holders = new Map<Tensor, number>();

  /** `gradient` is the caller's, and stays. */
  constructor(output: Tensor, gradient: Tensor) {
    this.#hold(output, gradient);
    this.#holders.set(gradient, Number.POSITIVE_INFINITY);
  }

  get(tensor: Tensor): Tensor | undefined {
    return this.#of.get(tensor);
  }

  add(tensor: Tensor, part: Tensor): void {
    const before = this.#of.get(tensor);
    this.#hold(tensor, before === undefined ? part : sum(before, part));
    if (before === undefined) return;
    this.#drop(before);
    if (!this.#holders.has(part)) part.dispose();
  }

  release(tensor: Tensor): void {
    const gradient = this.#of.get(tensor);
    this.#of.delete(tensor);
    if (gradient) this.#drop(gradient);
  }

  #hold(tensor: Tensor, gradient: Tensor): void {
    this.#of.set(tensor, gradient);
    this.#holders.set(gradient, (this.#holders.get(gradient) ?? 0) + 1);
  }

  #drop(gradient: Tensor): void {
    const left = (this.#holders.get(gradient) ?? 0) - 1;
    this.#holders.set(gradient, left);
    if (left > 0) return;
    this.#holders.delete(gradient);
    gradient.dispose();
  }
}

function sum(a: Tensor, b: Tensor): Tensor {
  const total = Tensor.empty(a.shape, { dtype: a.dtype, device: a.device });
  native.add(handleOf(a, "sum"), handleOf(b, "sum"), handleOf(total, "sum"));
  return total;
}
