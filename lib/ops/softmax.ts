import { checkOptions, type OptionNames, wrongKind } from "../errors.ts";
import { native } from "../native.ts";
import { record } from "../tape.ts";
import { handleOf, type Tensor } from "../tensor.ts";
import { queued } from "./queued.ts";
import { emptyLike, withDenseRows } from "./rows.ts";

/** How scores are made of x, and which of them count. */
export interface SoftmaxOptions {
  /** Factor of x, a finite number. Default: 1. */
  scale?: number;
  /**
   * uint8, 0 where a column does not count (the opposite of Megatron's). Broadcast: its axes are aligned with x's last
   * ones, and 1 stands for any size; its rows are as long as x's.
   */
  mask?: Tensor;
  /** Row i of [..., Sq, Sk] sees the columns up to i + Sk - Sq, as in `attention`. Default: false. */
  causal?: boolean;
}

const softmaxOptionNames: OptionNames<SoftmaxOptions> = { scale: true, mask: true, causal: true };

/**
 * Softmax of each row, scaled and masked in the same pass (as Megatron-LM's fused kernels). Differentiable on a `Tape`,
 * in x. A row of which nothing counts gives zeros.
 *
 *     out_c = exp(scale x_c) / the sum of exp(scale x) over what counts, 0 for what does not
 *
 * @param x [..., C] in float32, bfloat16 or float16; computed in float32. Any strides on the leading axes.
 * @returns of x's shape and dtype.
 * @throws `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DEVICE` (tensors of two devices), `ERR_OPTION`, `ERR_DISPOSED`,
 * `ERR_OUT_OF_MEMORY`: at once, but for scratch, which the next `await` on the device reports.
 *
 * @example
 * const x = Tensor.zeros([2, 4]);
 * const mask = Tensor.from(Uint8Array.of(1, 0, 1, 0, 0, 0, 0, 0), [2, 4]);
 * await softmax(x, { mask }).data(); // [0.5, 0, 0.5, 0, 0, 0, 0, 0]
 */
export function softmax(x: Tensor, options: SoftmaxOptions = {}): Tensor {
  const input = handleOf(x, "softmax: x");
  checkOptions("softmax", options, softmaxOptionNames);
  const { mask, causal = false } = options;
  if (typeof causal !== "boolean") throw wrongKind("softmax: causal", "a boolean", causal);
  const scale = checkedScale(options);
  const handleOfMask = mask === undefined ? null : handleOf(mask, "softmax: mask");
  const out = emptyLike(x);
  queued([out], () => native.softmaxForward(input, handleOfMask, scale, causal, handleOf(out, "out")));
  return record("softmax", [out], [x], (save) => {
    const saved = save(out);
    return ([dout]) => [softmaxBackward({ out: saved, dout: withDenseRows(dout) }, { scale })];
  });
}

/**
 * The gradient of sum(out * dout) in x, from the output alone: what did not count is 0 there.
 *
 *     dx = scale out (dout - the row's sum of out dout)
 *
 * @param tensors what `softmax` gave, and its gradient, of its shape and dtype.
 * @param options the scale of the forward pass.
 * @throws the errors of `softmax`.
 *
 * @example
 * const out = softmax(Tensor.normal([4, 128]), { scale: 0.5 });
 * const dx = softmaxBackward({ out, dout: Tensor.normal(out.shape) }, { scale: 0.5 });
 */
export function softmaxBackward(
  tensors: { out: Tensor; dout: Tensor },
  options: Pick<SoftmaxOptions, "scale"> = {},
): Tensor {
  if (typeof tensors !== "object" || tensors === null) {
    throw wrongKind("softmaxBackward: tensors", "an object of Tensors", tensors);
  }
  const { out, dout } = tensors;
  const inputs = [handleOf(out, "softmax: out"), handleOf(dout, "softmax: dout")] as const;
  // All of the forward pass's: what a mask left out is 0 in the output.
  checkOptions("softmaxBackward", options, softmaxOptionNames);
  const scale = checkedScale(options);
  const dx = emptyLike(out);
  return queued([dx], () => {
    native.softmaxBackward(...inputs, scale, handleOf(dx, "dx"));
    return dx;
  });
}

function checkedScale({ scale = 1 }: SoftmaxOptions): number {
  if (typeof scale !== "number") throw wrongKind("softmax: scale", "a number", scale);
  return scale;
}
