// The second product of an MLP, without all of the activation before it: on the forward pass that is there for some rows
// after the others, on the backward pass for some columns, so that a weight's gradient is still one product over all rows.
import { checkOptions, type OptionNames } from "../errors.ts";
import { native } from "../native.ts";
import { Scope } from "../scope.ts";
import { record } from "../tape.ts";
import { handleOf, Tensor } from "../tensor.ts";
import { asContiguous, referenceTo } from "../view.ts";
import { activateInto, checkActivated, differentiateInPlace, partsOf, roomFor, widest } from "./activated.ts";
import type { Activation } from "./activation.ts";
import {
  biasGradient,
  checkLinear,
  heldSums,
  type LinearOptions,
  linear,
  linearOptionNames,
} from "./linear.ts";
import { asMatrix, inDtype } from "./matmul.ts";
import { queued } from "./queued.ts";

/** `linear`'s options, and what x goes through first. */
export interface ActivatedLinearOptions extends LinearOptions {
  /**
   * The product is of gelu(x) (its tanh form), or of swiglu(gate, up), x being both side by side: [.., 2 F]. x is used up:
   * on the backward pass its gradient takes its memory. Default: of x itself.
   */
  activation?: Activation;
}

export const activatedLinearOptionNames: OptionNames<ActivatedLinearOptions> = {
  ...linearOptionNames,
  activation: true,
};

/** `linear` of x, or of its activation. */
export function activatedLinear(
  x: Tensor,
  weight: Tensor,
  bias?: Tensor,
  given: ActivatedLinearOptions = {},
): Tensor {
  checkOptions("linear", given, activatedLinearOptionNames);
  const { activation, ...options } = given;
  if (activation === undefined) return linear(x, weight, bias, options);
  checkActivated("linear", activation, x, weight);
  checkLinear("linear", weight, bias, options);
  const { outDtype } = options;
  const own = asContiguous(x);
  const { dtype, device } = x;
  const shape = [...x.shape.slice(0, -1), weight.shape[0] ?? 0];
  const y = Tensor.empty(shape, { dtype: outDtype ?? dtype, device });
  queued([y], () =>
    Scope.run(() => multiplyRows(activation, asMatrix(referenceTo(own)), weight, bias, asMatrix(y))),
  );
  return record("linear", [y], bias === undefined ? [own, weight] : [own, weight, bias], (save, hold) => {
    const saved = { x: save(own), weight: save(weight) };
    const sums = heldSums(options, hold);
    return ([dy]) =>
      Scope.run(() => {
        const given = asMatrix(inDtype(dy, saved.weight.dtype));
        const rows = asMatrix(saved.x);
        const ofWeight = weightGradient(activation, rows, saved.weight, given, sums.dweight);
        const ofBias = bias ? [biasGradient(given, saved.weight, sums.dbias)] : [];
        return [referenceTo(saved.x), ofWeight, ...ofBias];
      });
  });
}

function multiplyRows(
  activation: Activation,
  x: Tensor,
  weight: Tensor,
  bias: Tensor | undefined,
  y: Tensor,
): void {
  const parameters = [
    handleOf(weight, "linear: weight"),
    bias ? handleOf(bias, "linear: bias") : null,
  ] as const;
  const [outputs = 0, columns = 0] = weight.shape;
  const parts = partsOf(x.shape[0] ?? 0, outputs, x.device);
  const room = roomFor(widest(parts) * columns, x);
  for (const { begin, end } of parts) {
    const activated = room([end - begin, columns]);
    activateInto(activation, x.slice(0, begin, end), { begin: 0, end: columns }, activated);
    const out = handleOf(y.slice(0, begin, end), "y");
    native.linear(handleOf(activated, "linear: x"), ...parameters, out);
  }
}

/** That of the weight, or null where it is added to `sum`. x's takes x's place. */
function weightGradient(
  activation: Activation,
  x: Tensor,
  weight: Tensor,
  dy: Tensor,
  sum: Tensor | undefined,
): Tensor | null {
  const [outputs = 0, columns = 0] = weight.shape;
  const [rows = 0] = x.shape;
  const parts = partsOf(columns, Math.min(rows, outputs), x.device);
  const room = roomFor(rows * widest(parts), x);
  const dweight = sum ?? Tensor.empty(weight.shape, { dtype: weight.dtype, device: weight.device });
  const given = handleOf(dy, "linear: dy");
  for (const part of parts) {
    const { begin, end } = part;
    const activated = room([rows, end - begin]);
    activateInto(activation, x, part, activated);
    const place = handleOf(activated, "linear: x");
    const matrix = handleOf(weight.slice(1, begin, end), "linear: weight");
    const gradient = handleOf(dweight.slice(1, begin, end), "linear: dweight");
    native.linearBackward(given, place, matrix, null, gradient, null, sum !== undefined, false);
    // Its gradient has its place, for nothing needs it any more.
    native.linearBackward(given, null, matrix, place, null, null, false, false);
    differentiateInPlace(activation, x, part, activated);
  }
  return sum ? null : dweight;
}
