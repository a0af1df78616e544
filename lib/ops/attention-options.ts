// The options of attention: what they mean, and their way to the addon.
import { checkOptions, failure, type OptionNames, shown, wrongKind } from "../errors.ts";
import { type AttentionMask, handleOfMask } from "../mask.ts";
import type { MaskHandle, TensorHandle } from "../native.ts";
import { flatPieces } from "../pieces.ts";
import type { Hold, Save } from "../saved.ts";
import { handleOf, type Tensor } from "../tensor.ts";

/** How scores are made; in the order in which cuda/addon/operation_binding.cc reads them, and behind them the rule. */
export type NativeScoring = readonly [
  scale: number,
  softcap: number,
  alibiSlopes: TensorHandle | null,
  implementation: string | null,
  deterministic: boolean,
];
/** Which keys a query sees. */
export type NativeRule = readonly [
  causal: boolean,
  windowLeft: number,
  windowRight: number,
  cuSeqlens: Int32Array | Float64Array | readonly number[] | null,
  cuSeqlensKeys: Int32Array | readonly number[] | null,
  queryPositions: readonly number[] | null,
  keyPositions: readonly number[] | null,
  mask: MaskHandle | null,
];
export type NativeAttentionOptions = readonly [...NativeScoring, ...NativeRule];

/** Global positions that neighbouring rows of a shard stand at: start, start + 1 and so on, `length` of them. */
export interface Piece {
  /** 0 or more. */
  start: number;
  /** In rows. */
  length: number;
}

/**
 * How attention's scores are made and which keys a query sees: those that all of the options allow. Each is checked
 * when attention is called: `ERR_OPTION` for a name or value that cannot be, `ERR_SHAPE` for a mask or slopes of another
 * size.
 */
export interface AttentionOptions {
  /** Factor of the products, a finite number; default 1/sqrt(D). */
  scale?: number;
  /** A query sees no later key. Default: false. Aligned at the bottom right: query i stands at position i + Sk - Sq. */
  causal?: boolean;
  /** A query at position p sees the keys at p - left to p + right; -1, the default, is unbounded. */
  window?: readonly [left: number, right: number];
  /** Scores become cap * tanh(score / cap) (as in Gemma 2); 0, the default, leaves them. */
  softcap?: number;
  /** [Hq] float32: slope * distance in positions is taken off the scores (ALiBi; Press et al., 2022). No gradient. */
  alibiSlopes?: Tensor;
  /**
   * [Sq, Sk], for all batches and heads: by the rows of the q and k given, also where these have positions. For shards,
   * `AttentionMask.select` takes theirs out of the whole sequence's mask.
   */
  mask?: AttentionMask;
  /**
   * Boundaries of documents that lie one behind the other, 0 first and the length last: a query sees its own document
   * only. In positions; with queryPositions they are those of the whole sequence.
   */
  cuSeqlens?: Int32Array | readonly number[];
  /** The keys' own boundaries, where a document has other lengths in q and in k: each is then aligned at its end. */
  cuSeqlensKeys?: Int32Array | readonly number[];
  /** Where q's rows stand in the whole sequence, ascending: for shards and ring steps. Default: as `causal` says. */
  queryPositions?: readonly Piece[];
  /** The same of k's rows, where queryPositions is given. Default: from 0 on. */
  keyPositions?: readonly Piece[];
  /**
   * "reference" is the definition, in float64 and slow; "sm80" needs a GPU, "sm90" Hopper and 16 bits. Default: the
   * device's best, which `attentionKernels` names.
   */
  implementation?: "reference" | "cpu" | "sm80" | "sm90";
  /**
   * The same bits of all gradients in every run. Only dq of 16-bit tensors on a GPU needs it, and takes longer for it:
   * otherwise it is summed in float32 in an order that varies. Everything else always has the same bits. Default: false.
   */
  deterministic?: boolean;
  /** dtype of the result: float32 keeps partial results exact until `mergeAttention`. Default: that of q. */
  outDtype?: "float32";
}

export const attentionOptionNames: OptionNames<AttentionOptions> = {
  scale: true,
  causal: true,
  window: true,
  softcap: true,
  alibiSlopes: true,
  mask: true,
  cuSeqlens: true,
  cuSeqlensKeys: true,
  queryPositions: true,
  keyPositions: true,
  implementation: true,
  deterministic: true,
  outDtype: true,
};

/**
 * Gives what `forward` gives, or without its work what that gave when it was first called: for a layer that is
 * recomputed on the backward pass, but for its attention. The tensors are the caller's.
 */
export type KeepAttention = (forward: () => { out: Tensor; logSumExp: Tensor }) => {
  out: Tensor;
  logSumExp: Tensor;
};

/** The options as they are now, for the backward pass, whatever becomes of what they are made of. */
export function keptOptions<Options extends AttentionOptions>(
  options: Options,
  save: Save,
  hold: Hold,
): Options {
  const { window, cuSeqlens, cuSeqlensKeys, queryPositions, keyPositions, alibiSlopes, mask } = options;
  return {
    ...options,
    ...(window && { window: [window[0], window[1]] }),
    ...(cuSeqlens && { cuSeqlens: cuSeqlens.slice() }),
    ...(cuSeqlensKeys && { cuSeqlensKeys: cuSeqlensKeys.slice() }),
    ...(queryPositions && { queryPositions: queryPositions.map((piece) => ({ ...piece })) }),
    ...(keyPositions && { keyPositions: keyPositions.map((piece) => ({ ...piece })) }),
    ...(alibiSlopes && { alibiSlopes: save(alibiSlopes) }),
    ...(mask && { mask: hold(mask) }),
  };
}

/** As the addon takes it. */
export function isWindowSide(side: unknown): side is number {
  return typeof side === "number" && Number.isInteger(side) && side >= -1 && side < 2 ** 31;
}

/** Checks the options' names and kinds and brings them in the addon's order; null where there is nothing. */
export function nativeOptions(
  q: Tensor,
  options: AttentionOptions,
  names = attentionOptionNames,
): NativeAttentionOptions {
  checkOptions("attention", options, names);
  return [...nativeScoring(q, options), ...nativeRule(options)];
}

export function nativeScoring(q: Tensor, options: AttentionOptions): NativeScoring {
  const { scale = 1 / Math.sqrt(q.shape.at(-1) ?? 1), softcap = 0, deterministic = false } = options;
  const { alibiSlopes, implementation = null } = options;
  if (typeof scale !== "number") throw wrongKind("attention: scale", "a number", scale);
  if (typeof softcap !== "number") throw wrongKind("attention: softcap", "a number", softcap);
  if (typeof deterministic !== "boolean")
    throw wrongKind("attention: deterministic", "a boolean", deterministic);
  if (implementation !== null && typeof implementation !== "string")
    throw wrongKind("attention: implementation", "a string", implementation);
  const slopes = alibiSlopes === undefined ? null : handleOf(alibiSlopes, "attention: alibiSlopes");
  return [scale, softcap, slopes, implementation, deterministic];
}

export function nativeRule(options: AttentionOptions): NativeRule {
  const { causal = false, window = [-1, -1], queryPositions, keyPositions, mask } = options;
  if (typeof causal !== "boolean") throw wrongKind("attention: causal", "a boolean", causal);
  if (!Array.isArray(window)) throw wrongKind("attention: window", "[left, right]", window);
  if (window.length !== 2 || !window.every(isWindowSide)) {
    throw failure(
      "ERR_OPTION",
      `attention: window is ${shown(window)}, expected two integers of 0 to 2^31 - 1, or -1 for unbounded`,
    );
  }
  return [
    causal,
    window[0],
    window[1],
    boundaries("cuSeqlens", options.cuSeqlens),
    boundaries("cuSeqlensKeys", options.cuSeqlensKeys),
    queryPositions === undefined ? null : flatPieces("attention: queryPositions", queryPositions),
    keyPositions === undefined ? null : flatPieces("attention: keyPositions", keyPositions),
    mask === undefined ? null : handleOfMask(mask, "attention: mask"),
  ];
}

function boundaries(
  name: string,
  given: Int32Array | readonly number[] | undefined,
): Int32Array | readonly number[] | null {
  if (given === undefined) return null;
  if (given instanceof Int32Array) return given;
  if (!Array.isArray(given))
    throw wrongKind(`attention: ${name}`, "an Int32Array or an array of integers", given);
  if (!given.every(Number.isSafeInteger))
    throw failure("ERR_OPTION", `attention: ${name} holds a number that is no integer`);
  return given as readonly number[];
}
