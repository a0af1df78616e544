import { checkNames, failure, type OptionNames, shown, wrongKind } from "../errors.ts";
import { native } from "../native.ts";
import { record } from "../tape.ts";
import { handleOf, noteWrite, Tensor } from "../tensor.ts";
import {
  type AttentionOptions,
  attentionOptionNames,
  type KeepAttention,
  keptOptions,
  nativeOptions,
} from "./attention-options.ts";
import { joined } from "./joined.ts";
import { queued } from "./queued.ts";

/** Attention's output and what the backward pass and merging need of it. */
export interface AttentionResult {
  /** Of q's shape. */
  out: Tensor;
  /** [B, Hq, Sq] float32 (packed: [Hq, T]): the natural log of the sum of exp of the final scores; -inf for none. */
  logSumExp: Tensor;
}

/**
 * Softmax attention: each query's mean of the values, weighted by exp(score). Differentiable on a `Tape`. A query that
 * sees no key gives 0.
 *
 *     s_ij = scale q_i . k_j      logSumExp_i = ln sum_j exp s_ij      out_i = sum_j exp(s_ij - logSumExp_i) v_j
 *
 * Tiled, as in FlashAttention-2 (Dao, 2023): memory grows with S, never with S x S.
 *
 * @param q [B, Sq, Hq, D], or [T, Hq, D] packed; float32, bfloat16 or float16; D a multiple of 8 up to 256. Any strides
 * on B, S and H, so q, k and v may be slices of one tensor.
 * @param k [B, Sk, Hkv, D]; Hq is a multiple of Hkv, and query head h reads head h / (Hq / Hkv).
 * @param v as k. A value that is not finite may also reach queries that do not see it (0 times NaN is NaN).
 * @returns of q's shape and dtype.
 * @throws `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DEVICE` (tensors of two devices), `ERR_OPTION`, `ERR_DISPOSED`,
 * `ERR_OUT_OF_MEMORY`: at once, but for scratch, which the next `await` on the device reports.
 *
 * @example
 * const q = Tensor.normal([1, 4096, 8, 64], { dtype: "bfloat16" });
 * const out = attention(q, q, q, { causal: true });
 * console.log(await out.data());
 */
export function attention(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions = {}): Tensor {
  return keptAttention(q, k, v, options);
}

/** As the attention of a layer that keeps what it gave, for when the layer is recomputed. */
export function keptAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: AttentionOptions = {},
  keep: KeepAttention = (forward) => forward(),
): Tensor {
  const { out, logSumExp: statistics } = keep(() => attentionForward(q, k, v, options));
  using logSumExp = statistics;
  return record("attention", [out], [q, k, v], (save, hold) => {
    const saved = { q: save(q), k: save(k), v: save(v), out: save(out), logSumExp: save(logSumExp) };
    const given = keptOptions(options, save, hold);
    return ([dout]) => {
      const { dq, dk, dv } = attentionBackward({ ...saved, dout }, given);
      return [dq, dk, dv];
    };
  });
}

/**
 * The forward pass alone: the output and the log-sum-exp, for `attentionBackward` and `mergeAttention`. Arguments and
 * errors are those of `attention`. A tape does not note it.
 *
 * @example
 * const q = Tensor.normal([1, 128, 8, 64]);
 * const { out, logSumExp } = attentionForward(q, q, q, { window: [64, 0] });
 */
export function attentionForward(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: AttentionOptions = {},
): AttentionResult {
  const handles = [
    handleOf(q, "attention: q"),
    handleOf(k, "attention: k"),
    handleOf(v, "attention: v"),
  ] as const;
  const given = nativeOptions(q, options);
  if (options.outDtype !== undefined && options.outDtype !== "float32") {
    throw failure("ERR_OPTION", `attention: outDtype is ${shown(options.outDtype)}, expected "float32"`);
  }
  const out = Tensor.empty(q.shape, { dtype: options.outDtype ?? q.dtype, device: q.device });
  const logSumExp = Tensor.empty(statisticsShape(q), { device: q.device });
  return queued([out, logSumExp], () => {
    native.attentionForward(...handles, handleOf(out, "out"), handleOf(logSumExp, "logSumExp"), given);
    return { out, logSumExp };
  });
}

const backwardOptionNames: OptionNames<Parameters<typeof attentionBackward>[1]> = {
  ...attentionOptionNames,
  gradientDtype: true,
  addTo: true,
};

/**
 * The gradients of sum(out * dout) + sum(logSumExp * dlogSumExp) in q, k and v. The same bits in every run and at any
 * thread count; on a GPU dq of 16-bit tensors needs the option `deterministic` for that, else its last bits vary.
 * Errors are those of `attention`.
 *
 *     P = exp(s - logSumExp)      dP = dout v^T      ds = P * (dP - rowsum(dout * out) + dlogSumExp)
 *     dq = scale ds k             dk = scale ds^T q  dv = P^T dout
 *
 * @param tensors q, k, v, what `attentionForward` returned for them under the same options (of all keys, where they
 * were split), and the gradients of those results: dout of out's shape and dtype, dlogSumExp [B, Hq, Sq] float32.
 * @param options those of the forward pass; gradientDtype: "float32" leaves the gradients of 16-bit tensors unrounded,
 * for sums of several parts'; addTo: tensors of float32, each of which the gradient is added to, and which is returned.
 * @returns of the shapes of q, k and v, and of their dtypes.
 *
 * @example
 * const q = Tensor.normal([1, 128, 8, 64]);
 * const { out, logSumExp } = attentionForward(q, q, q);
 * const { dq, dk, dv } = attentionBackward({ q, k: q, v: q, out, logSumExp, dout: Tensor.normal(out.shape) });
 */
export function attentionBackward(
  tensors: {
    q: Tensor;
    k: Tensor;
    v: Tensor;
    out: Tensor;
    logSumExp: Tensor;
    dout: Tensor;
    dlogSumExp?: Tensor;
  },
  options: AttentionOptions & {
    gradientDtype?: "float32";
    addTo?: { dq?: Tensor; dk?: Tensor; dv?: Tensor };
  } = {},
): { dq: Tensor; dk: Tensor; dv: Tensor } {
  if (typeof tensors !== "object" || tensors === null) {
    throw wrongKind("attentionBackward: tensors", "an object of Tensors", tensors);
  }
  const { q, k, v, out, logSumExp, dout, dlogSumExp } = tensors;
  const inputs = Object.entries({ q, k, v, out, logSumExp, dout }).map(([name, tensor]) =>
    handleOf(tensor, `attention: ${name}`),
  ) as [Handle, Handle, Handle, Handle, Handle, Handle];
  const extra = dlogSumExp === undefined ? null : handleOf(dlogSumExp, "attention: dlogSumExp");
  const given = nativeOptions(q, options, backwardOptionNames);
  const { gradientDtype } = options;
  if (gradientDtype !== undefined && gradientDtype !== "float32") {
    throw failure("ERR_OPTION", `attention: gradientDtype is ${shown(gradientDtype)}, expected "float32"`);
  }
  const { addTo = {} } = options;
  if (typeof addTo !== "object" || addTo === null) {
    throw wrongKind("attentionBackward: addTo", "an object of Tensors", addTo);
  }
  checkNames("attentionBackward: addTo", addTo, { dq: true, dk: true, dv: true });
  const sums = [addTo.dq, addTo.dk, addTo.dv];
  const gradients = gradientsLike([q, k, v], sums, gradientDtype);
  const made = gradients.filter((_, i) => sums[i] === undefined);
  return queued(made, () => {
    const [dq, dk, dv] = gradients;
    native.attentionBackward(
      ...inputs,
      extra,
      handleOf(dq, "attention: dq"),
      handleOf(dk, "attention: dk"),
      handleOf(dv, "attention: dv"),
      addTo.dq !== undefined,
      addTo.dk !== undefined,
      addTo.dv !== undefined,
      given,
    );
    for (const sum of sums) if (sum) noteWrite(sum);
    return { dq, dk, dv };
  });
}

/**
 * Attention over all keys, from attention over each part of them: float32 sums in the parts' order. A tape does not note it.
 *
 *     logSumExp = ln sum_p exp(logSumExp_p)      out = sum_p exp(logSumExp_p - logSumExp) out_p
 *
 * @param parts at least one, all of one shape; out [B, Sq, Hq, D] in float32, bfloat16 or float16, logSumExp
 * [B, Hq, Sq] float32.
 * @returns out in the first part's dtype.
 * @throws `ERR_OPTION` where there are no parts; `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DEVICE`, `ERR_DISPOSED`,
 * `ERR_OUT_OF_MEMORY`.
 *
 * @example
 * const [q, k] = [Tensor.normal([1, 8, 2, 64]), Tensor.normal([1, 256, 2, 64])];
 * const parts = [0, 128].map((start) => {
 *   const keys = k.slice(1, start, start + 128);
 *   return attentionForward(q, keys, keys, { outDtype: "float32" });
 * });
 * const { out } = mergeAttention(parts);
 */
export function mergeAttention(parts: readonly AttentionResult[]): AttentionResult {
  if (!Array.isArray(parts))
    throw wrongKind("mergeAttention: parts", "an array of { out, logSumExp }", parts);
  const outs = parts.map((part) => handleOf(part?.out, "mergeAttention: a part's out"));
  const statistics = parts.map((part) => handleOf(part?.logSumExp, "mergeAttention: a part's logSumExp"));
  const [first] = parts as readonly AttentionResult[];
  if (first === undefined) throw failure("ERR_OPTION", "mergeAttention: there are no parts");
  const out = Tensor.empty(first.out.shape, { dtype: first.out.dtype, device: first.out.device });
  const logSumExp = Tensor.empty(first.logSumExp.shape, { device: first.out.device });
  return queued([out, logSumExp], () => {
    native.attentionMerge(outs, statistics, handleOf(out, "out"), handleOf(logSumExp, "logSumExp"));
    return { out, logSumExp };
  });
}

type Handle = ReturnType<typeof handleOf>;

type Tensors = [Tensor, Tensor, Tensor];

/**
 * The sums, and tensors where there are none. Where q, k and v are parts of one tensor, as one product gives them, parts
 * of one too: nothing puts them together later.
 */
export function gradientsLike(
  inputs: Tensors,
  sums: readonly (Tensor | undefined)[],
  wide: "float32" | undefined,
): Tensors {
  const axis = inputs[0].shape.length - 2;
  const [{ dtype, device }] = inputs;
  const options = { dtype: wide ?? dtype, device };
  using whole = sums.some((sum) => sum) ? undefined : joined(inputs, axis);
  if (!whole) return inputs.map(({ shape }, i) => sums[i] ?? Tensor.empty(shape, options)) as Tensors;
  using packed = Tensor.empty(whole.shape, options);
  let begin = 0;
  return inputs.map(({ shape }) => {
    begin += shape[axis] ?? 0;
    return packed.slice(axis, begin - (shape[axis] ?? 0), begin);
  }) as Tensors;
}

function statisticsShape(q: Tensor): number[] {
  const [batch = 0, queries = 0, heads = 0] = q.shape.length === 3 ? [1, ...q.shape] : q.shape;
  return q.shape.length === 3 ? [heads, queries] : [batch, heads, queries];
}
