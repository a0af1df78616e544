import { Scope } from "./scope.ts";
import { alias, type Tensor } from "./tensor.ts";

/** A tensor of the same memory that is on no tape, and belongs to the scope here. */
export function referenceTo(tensor: Tensor): Tensor {
  const reference = alias(tensor);
  Scope.current?.adopt(reference);
  return reference;
}
