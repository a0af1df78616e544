import { checkOptions, failure, type OptionNames, shown, wrongKind } from "../errors.ts";
import { native } from "../native.ts";
import { record } from "../tape.ts";
import { handleOf, type Tensor } from "../tensor.ts";
import { queued } from "./queued.ts";
import { emptyLike } from "./rows.ts";
import { split } from "./split.ts";

/** Which GeLU, and of what. */
export interface GeluOptions {
  /** [F], of x's dtype: added to every row first. Default: none. */
  bias?: Tensor;
  /** "none", the default, is z times the normal distribution's function; "tanh" is its usual approximation. */
  approximate?: "none" | "tanh";
}

const geluOptionNames: OptionNames<GeluOptions> = { bias: true, approximate: true };

/**
 * Gaussian error linear units (Hendrycks and Gimpel, 2016) of x + bias, in one pass. Differentiable on a `Tape`.
 *
 *     gelu(z) = z Phi(z)                                                        none
 *     gelu(z) = z (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))) / 2               tanh
 *
 * @param x [..., F]; float32, bfloat16 or float16, computed in float32. Any strides on the leading axes.
 * @returns of x's shape and dtype, contiguous.
 * @throws `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DEVICE` (tensors of two devices), `ERR_OPTION`, `ERR_DISPOSED`,
 * `ERR_OUT_OF_MEMORY`.
 *
 * @example
 * const x = Tensor.normal([4, 128], { dtype: "bfloat16" });
 * const y = gelu(x, { bias: Tensor.zeros([128], { dtype: "bfloat16" }), approximate: "tanh" });
 */
export function gelu(x: Tensor, options: GeluOptions = {}): Tensor {
  const handle = handleOf(x, "gelu: x");
  const { bias, isTanh } = checked(options);
  const biasHandle = bias === undefined ? null : handleOf(bias, "gelu: bias");
  const y = emptyLike(x);
  queued([y], () => native.geluForward(handle, biasHandle, isTanh, handleOf(y, "y")));
  return record("gelu", [y], bias === undefined ? [x] : [x, bias], (save) => {
    const saved = save(x);
    const given = { ...options, ...(bias && { bias: save(bias) }) };
    return ([dy]) => {
      const { dx, dbias } = geluBackward({ x: saved, dy }, given);
      return dbias === undefined ? [dx] : [dx, dbias];
    };
  });
}

/**
 * The gradients of sum(gelu(x + bias) * dy). Deterministic: the bias's is summed in a fixed order, in float32.
 *
 *     dx = dy gelu'(x + bias)      dbias = the sum of dx over the rows
 *
 * @param tensors x as it went into `gelu`, and dy of its shape and dtype.
 * @param options those of the forward pass.
 * @returns dx of x's shape and dtype; dbias where there is a bias.
 * @throws the errors of `gelu`.
 *
 * @example
 * const x = Tensor.normal([4, 128]);
 * const { dx } = geluBackward({ x, dy: Tensor.normal([4, 128], { seed: 1 }) });
 */
export function geluBackward(
  tensors: { x: Tensor; dy: Tensor },
  options: GeluOptions = {},
): { dx: Tensor; dbias?: Tensor } {
  const { x, dy } = checkedTensors("geluBackward", tensors);
  const handles = { x: handleOf(x, "gelu: x"), dy: handleOf(dy, "gelu: dy") };
  const { bias, isTanh } = checked(options);
  const biasHandle = bias === undefined ? null : handleOf(bias, "gelu: bias");
  const dx = emptyLike(x);
  const dbias = bias && emptyLike(bias);
  return queued(dbias ? [dx, dbias] : [dx], () => {
    const ofBias = dbias === undefined ? null : handleOf(dbias, "dbias");
    native.geluBackward(handles.x, biasHandle, isTanh, handles.dy, handleOf(dx, "dx"), ofBias);
    return { dx, ...(dbias && { dbias }) };
  });
}

/**
 * The gate of SwiGLU (Shazeer, "GLU variants improve Transformer", 2020), in one pass. Differentiable on a `Tape`.
 *
 *     y = silu(gate) up      silu(g) = g / (1 + exp(-g))
 *
 * @param gate [..., F]; float32, bfloat16 or float16, computed in float32. Any strides on the leading axes, so gate and
 * up may be the halves of one [..., 2 F].
 * @param up of gate's shape and dtype.
 * @returns of gate's shape and dtype, contiguous.
 * @throws `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DEVICE` (tensors of two devices), `ERR_OPTION`, `ERR_DISPOSED`,
 * `ERR_OUT_OF_MEMORY`.
 *
 * @example
 * const packed = Tensor.normal([4, 256]);
 * const y = swiglu(packed.slice(1, 0, 128), packed.slice(1, 128, 256));
 * y.shape; // [4, 128]
 */
export function swiglu(gate: Tensor, up: Tensor): Tensor {
  const handles = [handleOf(gate, "swiglu: gate"), handleOf(up, "swiglu: up")] as const;
  const y = emptyLike(gate);
  queued([y], () => native.swigluForward(...handles, handleOf(y, "y")));
  return record("swiglu", [y], [gate, up], (save) => {
    const saved = { gate: save(gate), up: save(up) };
    return ([dy]) => {
      const { dgate, dup } = swigluBackward({ ...saved, dy });
      return [dgate, dup];
    };
  });
}

/**
 * The gradients of sum(swiglu(gate, up) * dy).
 *
 *     dgate = dy up silu'(gate)      dup = dy silu(gate)
 *
 * @param tensors gate and up as they went into `swiglu`, and dy of their shape and dtype.
 * @returns of the shape and dtype of gate.
 * @throws the errors of `swiglu`.
 *
 * @example
 * const [gate, up, dy] = [Tensor.normal([4, 128]), Tensor.normal([4, 128]), Tensor.normal([4, 128])];
 * const { dgate, dup } = swigluBackward({ gate, up, dy });
 */
export function swigluBackward(tensors: { gate: Tensor; up: Tensor; dy: Tensor }): {
  dgate: Tensor;
  dup: Tensor;
} {
  const { gate, up, dy } = checkedTensors("swigluBackward", tensors);
  const handles = [
    handleOf(gate, "swiglu: gate"),
    handleOf(up, "swiglu: up"),
    handleOf(dy, "swiglu: dy"),
  ] as const;
  const [dgate, dup] = [emptyLike(gate), emptyLike(gate)];
  return queued([dgate, dup], () => {
    native.swigluBackward(...handles, handleOf(dgate, "dgate"), handleOf(dup, "dup"));
    return { dgate, dup };
  });
}

/** GeLU in its tanh form; or SwiGLU, whose gate and what it is multiplied by lie side by side, [.., 2 F]. */
export type Activation = "gelu" | "swiglu";

export function activated(activation: Activation, x: Tensor): Tensor {
  if (activation === "gelu") return gelu(x, { approximate: "tanh" });
  const axis = x.shape.length - 1;
  const columns = (x.shape[axis] ?? 0) / 2;
  const [gate, up] = split(x, axis, [columns, columns]) as [Tensor, Tensor];
  return swiglu(gate, up);
}

function checked(options: GeluOptions): { bias: Tensor | undefined; isTanh: boolean } {
  checkOptions("gelu", options, geluOptionNames);
  const { bias, approximate = "none" } = options;
  if (approximate !== "none" && approximate !== "tanh") {
    throw failure("ERR_OPTION", `gelu: approximate is ${shown(approximate)}, expected "none" or "tanh"`);
  }
  return { bias, isTanh: approximate === "tanh" };
}

function checkedTensors<T extends object>(what: string, tensors: T): T {
  if (typeof tensors !== "object" || tensors === null) {
    throw wrongKind(`${what}: tensors`, "an object of Tensors", tensors);
  }
  return tensors;
}
