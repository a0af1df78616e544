// What a backward pass may be asked for.
import { failure, wrongKind } from "./errors.ts";
import { handleOf, Tensor } from "./tensor.ts";

/** Of the tensors alone: which tape they are on is the tape's to say. */
export function checkBackward(output: Tensor, gradient: Tensor, wrt: readonly Tensor[]): void {
  handleOf(gradient, "backward: gradient");
  if (!(output instanceof Tensor)) throw wrongKind("backward: output", "a Tensor", output);
  if (!Array.isArray(wrt)) throw wrongKind("backward: wrt", "an array of Tensors", wrt);
  for (const [at, tensor] of (wrt as readonly Tensor[]).entries()) {
    if (!(tensor instanceof Tensor)) throw wrongKind(`backward: wrt[${at}]`, "a Tensor", tensor);
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
}
