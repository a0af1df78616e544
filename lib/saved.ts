import { failure } from "./errors.ts";
import { AttentionMask, aliasOfMask } from "./mask.ts";
import { type Remade, recipeOf, remake } from "./recipe.ts";
import { type Tensor, writesOf } from "./tensor.ts";
import { alias } from "./view.ts";

/** Give a reference of the tape's own. */
export type Save = (tensor: Tensor) => Tensor;
export type Hold = <T extends Tensor | AttentionMask>(held: T) => T;

/** What an operation on a tape has saved for its product. */
export class Saved {
  readonly #operation: string;
  readonly #kept: (Tensor | AttentionMask)[] = [];
  /** How often their memory had been written then. */
  readonly #writes = new Map<Tensor, number>();
  readonly #remade: Remade[] = [];

  constructor(operation: string) {
    this.#operation = operation;
  }

  /** As `keep`, of a mask, or of a place that the product writes to: it may have whatever values till then. */
  readonly hold: Hold = (held) => {
    const own = held instanceof AttentionMask ? aliasOfMask(held) : alias(held);
    this.#kept.push(own);
    return own as typeof held;
  };

  /** A reference of its own, so the caller may dispose the tensor. */
  readonly keep: Save = (tensor) => {
    const kept = this.hold(tensor);
    const recipe = recipeOf(tensor);
    if (recipe) {
      kept.dispose();
      this.#remade.push({ kept, sources: recipe.sources.map(this.keep), make: recipe.make });
    } else {
      this.#writes.set(kept, writesOf(kept).count);
    }
    return kept;
  };

  /** Makes again what was saved as its recipe. Refused where values are not those of then. */
  restore(): void {
    for (const [tensor, writes] of this.#writes) {
      if (writesOf(tensor).count === writes) continue;
      throw failure(
        "ERR_OPTION",
        `backward: a tensor that ${this.#operation} has saved was written since, expected its values of then`,
      );
    }
    for (const remade of this.#remade) remake(remade);
  }

  dispose(): void {
    for (const kept of this.#kept) kept.dispose();
  }
}
