// What a backward pass may be asked for.
import { failure, wrongKind } from "./errors.ts";
import { handleOf, Tensor } from "./tensor.ts";
import { nameIn, type TensorGroup, tensorsOf } from "./tensor-group.ts";

/** Of the tensors alone: which tape they are on is the tape's to say. Gives those of `wrt`. */
export function checkBackward(output: Tensor, gradient: Tensor, wrt: TensorGroup): readonly Tensor[] {
  handleOf(gradient, "backward: gradient");
  if (!(output instanceof Tensor)) throw wrongKind("backward: output", "a Tensor", output);
  const tensors = tensorsOf("backward: wrt", wrt);
  for (const [at, tensor] of tensors.entries()) {
    if (!(tensor instanceof Tensor)) throw wrongKind(`backward: wrt${nameIn(wrt, at)}`, "a Tensor", tensor);
  }
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
  return tensors;
}
