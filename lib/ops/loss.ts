import { checkOptions, failure, type OptionNames, shown, wrongKind } from "../errors.ts";
import { native } from "../native.ts";
import { record } from "../tape.ts";
import { handleOf, noteWrite, Tensor } from "../tensor.ts";
import { asContiguous, referenceTo } from "../view.ts";
import { queued } from "./queued.ts";
import { emptyLike, emptyStatistic } from "./rows.ts";

/** Which rows count, and what becomes of their losses. */
export interface CrossEntropyOptions {
  /** An int32; rows with this target count for nothing. Default: -100. */
  ignoreIndex?: number;
  /** "mean", the default, is over the targets that are not ignored, 0 where all are; "none" keeps each row's loss. */
  reduction?: "mean" | "sum" | "none";
}

/** Where the gradient goes. */
export interface CrossEntropyPlace {
  /**
   * The gradient is written over the logits, which saves their memory once more: for logits that nothing else needs
   * then, neither the caller nor another operation's gradient. Default: false.
   */
  overwriteLogits?: boolean;
}

/** Of both passes: those who run each of them may give both the same. */
const crossEntropyOptionNames: OptionNames<CrossEntropyOptions & CrossEntropyPlace> = {
  ignoreIndex: true,
  reduction: true,
  overwriteLogits: true,
};

/** What `crossEntropyForward` gives. */
export interface CrossEntropyResult {
  /** float32: [], or each row's for the reduction "none". */
  loss: Tensor;
  /** [...] float32, one a row: the natural log of the sum of exp of the logits. */
  logSumExp: Tensor;
  /** [] float32: how many targets are not ignored. */
  count: Tensor;
}

/**
 * Cross entropy of each row's softmax and its target: -ln of the probability that the target has. Differentiable on a
 * `Tape`, in the logits.
 *
 *     loss_r = ln(sum_v exp x_rv) - x_rt      t = targets_r
 *
 * Where all targets are ignored, the loss and its gradient are 0. A target that is neither ignored nor in [0, V) makes
 * its row's loss and gradient NaN, and so the mean and the sum: targets are known on the device alone, when the call has
 * long returned. No memory is read or written for it.
 *
 * @param logits [..., V] in float32, bfloat16 or float16; computed in float32. Any strides on the leading axes.
 * @param targets [...] int32.
 * @returns float32: [], or [...] for the reduction "none".
 * @throws `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DEVICE` (tensors of two devices), `ERR_OPTION`, `ERR_DISPOSED`,
 * `ERR_OUT_OF_MEMORY`: at once, but for scratch, which the next `await` on the device reports.
 *
 * @example
 * using tape = new Tape();
 * const logits = Tensor.zeros([3, 4]);
 * tape.watch(logits);
 * const loss = crossEntropy(logits, Tensor.from(Int32Array.of(0, 3, -100), [3]));
 * console.log(await loss.data()); // ln 4
 * const [dlogits] = tape.backward(loss, Tensor.from([1], []), [logits]);
 * console.log(await dlogits?.data()); // -3/8 for the targets, 1/8 beside them, 0 where ignored
 */
export function crossEntropy(
  logits: Tensor,
  targets: Tensor,
  options: CrossEntropyOptions & CrossEntropyPlace = {},
): Tensor {
  const { loss, ...made } = crossEntropyForward(logits, targets, options);
  using logSumExp = made.logSumExp;
  using count = made.count;
  const given = { ...options };
  return record("crossEntropy", [loss], [logits], (save) => {
    const saved = {
      logits: save(logits),
      targets: save(targets),
      logSumExp: save(logSumExp),
      count: save(count),
    };
    return ([dloss]) => [crossEntropyBackward({ ...saved, dloss: asContiguous(dloss) }, given)];
  });
}

/**
 * The forward pass of `crossEntropy`, with what its backward pass needs: its arguments and errors. A tape does not note
 * it.
 *
 * @example
 * const [logits, targets] = [Tensor.normal([4, 100]), Tensor.zeros([4], { dtype: "int32" })];
 * const { loss, logSumExp } = crossEntropyForward(logits, targets, { reduction: "none" });
 */
export function crossEntropyForward(
  logits: Tensor,
  targets: Tensor,
  options: CrossEntropyOptions = {},
): CrossEntropyResult {
  const inputs = [
    handleOf(logits, "crossEntropy: logits"),
    handleOf(targets, "crossEntropy: targets"),
  ] as const;
  const { ignoreIndex, reduction } = checkedOptions("crossEntropy", options);
  const { device } = logits;
  const loss = reduction === "none" ? emptyStatistic(logits) : Tensor.empty([], { device });
  const logSumExp = emptyStatistic(logits);
  const count = Tensor.empty([], { device });
  return queued([loss, logSumExp, count], () => {
    native.crossEntropyForward(
      ...inputs,
      ignoreIndex,
      reduction,
      handleOf(loss, "loss"),
      handleOf(logSumExp, "logSumExp"),
      handleOf(count, "count"),
    );
    return { loss, logSumExp, count };
  });
}

/**
 * The gradient of sum(loss * dloss) in the logits.
 *
 *     dlogits_rv = (exp(x_rv - logSumExp_r) - [v = t]) dloss_r, over count for the mean
 *
 * @param tensors logits and targets as they went into `crossEntropyForward`, what that gave for them, and the gradient of
 * the loss, of its shape.
 * @param options those of the forward pass.
 * @returns of the logits' shape and dtype; with `overwriteLogits` a view of the same memory as theirs.
 * @throws the errors of `crossEntropy`.
 *
 * @example
 * const [logits, targets] = [Tensor.normal([4, 100]), Tensor.zeros([4], { dtype: "int32" })];
 * const { loss, logSumExp, count } = crossEntropyForward(logits, targets);
 * const dloss = Tensor.from([1], []);
 * const dlogits = crossEntropyBackward({ logits, targets, logSumExp, count, dloss }, { overwriteLogits: true });
 */
export function crossEntropyBackward(
  tensors: { logits: Tensor; targets: Tensor; logSumExp: Tensor; count: Tensor; dloss: Tensor },
  options: CrossEntropyOptions & CrossEntropyPlace = {},
): Tensor {
  if (typeof tensors !== "object" || tensors === null) {
    throw wrongKind("crossEntropyBackward: tensors", "an object of Tensors", tensors);
  }
  const { logits, targets, logSumExp, count, dloss } = tensors;
  const inputs = Object.entries({ logits, targets, logSumExp, count, dloss }).map(([name, tensor]) =>
    handleOf(tensor, `crossEntropy: ${name}`),
  ) as [Handle, Handle, Handle, Handle, Handle];
  const { ignoreIndex, reduction, overwriteLogits } = checkedOptions("crossEntropy", options);
  const dlogits = overwriteLogits ? referenceTo(logits) : emptyLike(logits);
  return queued([dlogits], () => {
    native.crossEntropyBackward(...inputs, ignoreIndex, reduction, handleOf(dlogits, "dlogits"));
    if (overwriteLogits) noteWrite(logits);
    return dlogits;
  });
}

type Handle = ReturnType<typeof handleOf>;

export function checkedOptions(
  operation: string,
  options: CrossEntropyOptions & CrossEntropyPlace,
  names: OptionNames<CrossEntropyOptions> = crossEntropyOptionNames,
) {
  checkOptions<CrossEntropyOptions>(operation, options, names);
  const { ignoreIndex = -100, reduction = "mean", overwriteLogits = false } = options;
  if (typeof ignoreIndex !== "number") throw wrongKind(`${operation}: ignoreIndex`, "an int32", ignoreIndex);
  if (ignoreIndex !== (ignoreIndex | 0)) {
    throw failure("ERR_OPTION", `${operation}: ignoreIndex is ${shown(ignoreIndex)}, expected an int32`);
  }
  if (typeof reduction !== "string") throw wrongKind(`${operation}: reduction`, "a string", reduction);
  if (typeof overwriteLogits !== "boolean")
    throw wrongKind(`${operation}: overwriteLogits`, "a boolean", overwriteLogits);
  return { ignoreIndex, reduction, overwriteLogits };
}
