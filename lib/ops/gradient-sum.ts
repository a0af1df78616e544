// The tensors that a backward pass adds a parameter's gradient to, as the options dweight, dbias and dtable name them.
import { failure } from "../errors.ts";
import { native } from "../native.ts";
import { record } from "../tape.ts";
import { handleOf, type Tensor } from "../tensor.ts";
import { referenceTo } from "../view.ts";

/** Checked in the forward call, and not only on the backward pass: the mistake is there. */
export function checkGradientSum(operation: string, name: string, sum: Tensor, parameter: Tensor): void {
  handleOf(sum, `${operation}: ${name}`);
  if (sum.shape.join() !== parameter.shape.join() || !sum.isContiguous) {
    throw failure(
      "ERR_SHAPE",
      `${operation}: ${name} has the shape [${sum.shape.join(", ")}], expected [${parameter.shape.join(", ")}], contiguous`,
    );
  }
  if (sum.dtype !== "float32" && sum.dtype !== parameter.dtype) {
    const narrow = parameter.dtype === "float32" ? "" : ` or ${parameter.dtype}`;
    throw failure("ERR_DTYPE", `${operation}: ${name} is ${sum.dtype}, expected float32${narrow}`);
  }
  if (sum.device !== parameter.device) {
    throw failure("ERR_DEVICE", `${operation}: ${name} is on another device than the parameter`);
  }
}

/**
 * The parameter, for an operation on x that has no such option: a view whose gradient is added to `sum`, while the
 * parameter's own on the tape is zeros.
 */
export function summedInto(
  operation: string,
  name: string,
  sum: Tensor,
  parameter: Tensor,
  x: Tensor,
): Tensor {
  checkGradientSum(operation, `the sum of ${name}`, sum, parameter);
  const view = referenceTo(parameter);
  // On x's tape, also where the parameter is on none.
  return record(operation, [view], [parameter, x], (_save, hold) => {
    const into = handleOf(hold(sum), "sum");
    return ([gradient]) => {
      native.scale(handleOf(gradient, "gradient"), null, null, into, true);
      return [null, null];
    };
  });
}
