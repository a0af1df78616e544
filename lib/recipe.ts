import { refill, type Tensor } from "./tensor.ts";

/** How a tensor is made of others. */
export interface Recipe {
  sources: readonly Tensor[];
  make: (...sources: Tensor[]) => Tensor;
}

/** A tensor that was saved as its recipe: disposed until it is needed. */
export interface Remade extends Recipe {
  kept: Tensor;
}

const recipes = new WeakMap<Tensor, Recipe>();

/** Where a tape would save the tensor it saves the sources, and has `make` make it again, with the same bits. */
export function savedAs<Sources extends Tensor[]>(
  tensor: Tensor,
  sources: Sources,
  make: (...sources: Sources) => Tensor,
): Tensor {
  recipes.set(tensor, { sources, make: make as Recipe["make"] });
  return tensor;
}

export function recipeOf(tensor: Tensor): Recipe | undefined {
  return recipes.get(tensor);
}

export function remake({ kept, sources, make }: Remade): void {
  refill(kept, make(...sources));
}
