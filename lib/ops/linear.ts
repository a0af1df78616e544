import { checkOptions, failure, type OptionNames } from "../errors.ts";
import { native } from "../native.ts";
import { record } from "../tape.ts";
import { handleOf, noteWrite, Tensor } from "../tensor.ts";
import { checkGradientSum } from "./gradient-sum.ts";
import { checkOutDtype, inDtype } from "./matmul.ts";
import { queued } from "./queued.ts";

/** Where `linear` puts the gradients of its parameters on the backward pass. */
export interface LinearOptions {
  /** The result's dtype, where it is to be wider than x's. */
  outDtype?: "float32";
  /**
   * Of weight's shape, float32 or weight's dtype: the backward pass of the tape adds weight's gradient to this, and
   * what it returns for weight is zeros. For gradients that are summed over many calls, in float32.
   */
  dweight?: Tensor;
  /** The same for the bias. */
  dbias?: Tensor;
}

export const linearOptionNames: OptionNames<LinearOptions> = { outDtype: true, dweight: true, dbias: true };

/**
 * A linear layer, `y = x weight^T + bias`. Differentiable on a `Tape`.
 *
 * @param x [.., I]; float32, bfloat16 or float16.
 * @param weight [O, I], of x's dtype.
 * @param bias [O], of x's dtype.
 * @returns [.., O], of x's dtype.
 * @throws the errors of `matmul`.
 *
 * @example
 * const weight = Tensor.from([1, 0, 1, 0, 1, 1], [2, 3]);
 * await linear(Tensor.from([1, 2, 3], [1, 3]), weight, Tensor.from([10, 20], [2])).data(); // [14, 25]
 *
 * @example
 * const x = Tensor.normal([4, 512, 64], { dtype: "bfloat16" });
 * const weight = Tensor.normal([256, 64], { std: 0.1, dtype: "bfloat16" });
 * const dweight = Tensor.zeros([256, 64]); // float32
 * using tape = new Tape();
 * tape.watch(x, weight);
 * const y = linear(x, weight, undefined, { dweight });
 * const [dx] = tape.backward(y, Tensor.normal(y.shape, { dtype: "bfloat16" }), [x]); // and dweight has its own
 */
export function linear(x: Tensor, weight: Tensor, bias?: Tensor, options: LinearOptions = {}): Tensor {
  checkOptions("linear", options, linearOptionNames);
  const operands = [
    handleOf(x, "linear: x"),
    handleOf(weight, "linear: weight"),
    bias === undefined ? null : handleOf(bias, "linear: bias"),
  ] as const;
  checkLinear("linear", weight, bias, options);
  const { outDtype, dweight, dbias } = options;
  const y = Tensor.empty([...x.shape.slice(0, -1), weight.shape[0] ?? 0], {
    dtype: outDtype ?? x.dtype,
    device: x.device,
  });
  queued([y], () => native.linear(...operands, handleOf(y, "y")));
  return record("linear", [y], bias === undefined ? [x, weight] : [x, weight, bias], (save, hold) => {
    const saved = { x: save(x), weight: save(weight) };
    const sums = heldSums(options, hold);
    return ([dy], [ofX = false, ofWeight = false, ofBias = false]) => {
      const made = gradientsOf({ ...saved, ...sums, dy }, { ofX, ofWeight, ofBias }, () => saved.x.dispose());
      return [made.dx, dweight ? null : made.dweight, ...(bias ? [dbias ? null : made.dbias] : [])];
    };
  });
}

/** Checked in the forward call, and not only on the backward pass: the mistake is there. */
export function checkLinear(
  operation: string,
  weight: Tensor,
  bias: Tensor | undefined,
  { outDtype, dweight, dbias }: LinearOptions,
): void {
  checkOutDtype(operation, outDtype);
  if (dweight !== undefined) checkGradientSum(operation, "dweight", dweight, weight);
  if (dbias === undefined) return;
  if (bias === undefined) throw failure("ERR_OPTION", `${operation}: dbias is given without bias`);
  checkGradientSum(operation, "dbias", dbias, bias);
}

/** The places that gradients are added to, for the tape. */
export function heldSums({ dweight, dbias }: LinearOptions, hold: (tensor: Tensor) => Tensor): LinearOptions {
  return { ...(dweight && { dweight: hold(dweight) }), ...(dbias && { dbias: hold(dbias) }) };
}

/** What `linearBackward` gives. */
export interface LinearGradients {
  /** Of x's shape and dtype. */
  dx: Tensor;
  /** The one given, or new, of weight's shape and dtype. */
  dweight: Tensor;
  /** The one given, or new, [O] of weight's dtype; null where there is no bias. */
  dbias: Tensor | null;
}

/**
 * The gradients of sum(y * dy), y being `linear(x, weight, bias)`. Deterministic: the same bits at any thread count.
 *
 *     dx = dy weight      dweight = dy^T x      dbias = the sum of dy's rows
 *
 * @param tensors x and weight, the gradient dy [.., O], and where they are to be added to what is there already,
 * dweight and dbias, float32 or of weight's dtype.
 * @param options hasBias: whether there is a bias (where dbias is given there is).
 * @throws the errors of `matmul`.
 *
 * @example
 * const [x, weight] = [Tensor.from([1, 2], [1, 2]), Tensor.from([3, 4, 5, 6], [2, 2])];
 * const dweight = Tensor.from([10, 10, 10, 10], [2, 2]);
 * const { dx } = linearBackward({ x, weight, dy: Tensor.from([1, 1], [1, 2]), dweight });
 * await dx.data(); // [8, 10]
 * await dweight.data(); // [11, 12, 11, 12]
 */
export function linearBackward(
  tensors: { x: Tensor; weight: Tensor; dy: Tensor; dweight?: Tensor; dbias?: Tensor },
  options: { hasBias?: boolean } = {},
): LinearGradients {
  checkOptions("linearBackward: tensors", tensors);
  checkOptions("linearBackward", options, { hasBias: true });
  const ofBias = options.hasBias === true;
  const made = gradientsOf(tensors, { ofX: true, ofWeight: true, ofBias }) as LinearGradients;
  for (const sum of [tensors.dweight, tensors.dbias]) if (sum) noteWrite(sum);
  return made;
}

/** Those that are wanted, or have a place. `onRead` is called once nothing needs x any more: before there is dx, which
 * may take as much memory. */
function gradientsOf(
  tensors: Parameters<typeof linearBackward>[0],
  wanted: { ofX: boolean; ofWeight: boolean; ofBias: boolean },
  onRead = () => {},
): { [name in keyof LinearGradients]: Tensor | null } {
  const { x, weight, dy: given } = tensors;
  const operands = [handleOf(x, "linear: x"), handleOf(weight, "linear: weight")] as const;
  handleOf(given, "linear: dy");
  for (const name of ["dweight", "dbias"] as const) {
    if (tensors[name] !== undefined) handleOf(tensors[name], `linear: ${name}`);
  }
  const dy = inDtype(given, weight.dtype);
  const like = { dtype: weight.dtype, device: weight.device };
  const made: Tensor[] = [];
  const room = (shape: readonly number[]) => {
    const tensor = Tensor.empty(shape, like);
    made.push(tensor);
    return tensor;
  };
  const dweight = tensors.dweight ?? (wanted.ofWeight ? room(weight.shape) : null);
  const dbias = tensors.dbias ?? (wanted.ofBias ? room(weight.shape.slice(0, 1)) : null);
  const [isSummed, isBiasSummed] = [tensors.dweight !== undefined, tensors.dbias !== undefined];
  return queued(made, () => {
    const dyHandle = handleOf(dy, "dy");
    const results = [dweight && handleOf(dweight, "dweight"), dbias && handleOf(dbias, "dbias")] as const;
    const { shape, dtype, device } = x;
    if (dweight || dbias) {
      native.linearBackward(dyHandle, ...operands, null, ...results, isSummed, isBiasSummed);
    }
    onRead();
    if (!wanted.ofX) return { dx: null, dweight, dbias };
    const dx = Tensor.empty(shape, { dtype, device });
    queued([dx], () =>
      native.linearBackward(dyHandle, null, operands[1], handleOf(dx, "dx"), null, null, false, false),
    );
    return { dx, dweight, dbias };
  });
}

/** The sum of dy's rows [R, O], rounded once, or null where it is added to `sum`. */
export function biasGradient(dy: Tensor, weight: Tensor, sum: Tensor | undefined): Tensor | null {
  const { dtype, device, shape } = weight;
  const dbias = sum ?? Tensor.empty(shape.slice(0, 1), { dtype, device });
  const [given, matrix] = [handleOf(dy, "linear: dy"), handleOf(weight, "linear: weight")];
  native.linearBackward(given, null, matrix, null, null, handleOf(dbias, "dbias"), false, sum !== undefined);
  return sum ? null : dbias;
}
