// Rotary position embedding: which angles, and their way to the addon.
import { checkOptions, failure, type OptionNames, shown, wrongKind } from "../errors.ts";
import { native } from "../native.ts";
import { flatPieces } from "../pieces.ts";
import { record } from "../tape.ts";
import { handleOf, Tensor } from "../tensor.ts";
import { referenceTo } from "../view.ts";
import type { Piece } from "./attention-options.ts";
import { queued } from "./queued.ts";

/** That of the kernels: twice kMostPairs of cuda/rope/rope.h. */
const mostRotaryDim = 512;

/**
 * How frequencies are changed for sequences `factor` times as long as those trained on, f_i = base^(-2i/R) before:
 *
 * - `linear`, position interpolation (Chen et al., 2023): f_i / factor.
 * - `ntk`, NTK-aware (bloc97, 2023; section 3.1 of Peng et al.): the base becomes base factor^(R / (R - 2)).
 * - `yarn` (Peng et al., "YaRN", 2023): (1 - g) f_i / factor + g f_i, where g rises from 0 to 1 as the turns that pair i
 *   makes in the trained length, originalLength f_i / (2 pi), go from betaSlow to betaFast. Cosine and sine are also
 *   multiplied by attentionFactor, 0.1 ln(factor) + 1 where none is given. (The authors' code lets g rise linearly in i
 *   instead; this is the paper's.)
 */
export type RotaryScaling =
  | { type: "linear" | "ntk"; factor: number }
  | {
      type: "yarn";
      factor: number;
      /** Tokens of the sequences that were trained on. */
      originalLength: number;
      /** Default: 32. */
      betaFast?: number;
      /** Default: 1. */
      betaSlow?: number;
      attentionFactor?: number;
    };

/** Which angles a rotary embedding turns by, but for the positions. */
export interface RotaryFrequencyOptions {
  /** Default: 10,000. */
  base?: number;
  /** Default: none. */
  scaling?: RotaryScaling;
}

const frequencyOptionNames: OptionNames<RotaryFrequencyOptions> = { base: true, scaling: true };
const plainScaling = { type: true, factor: true } as const;
const scalingOptionNames = {
  linear: plainScaling,
  ntk: plainScaling,
  yarn: { ...plainScaling, originalLength: true, betaFast: true, betaSlow: true, attentionFactor: true },
} as const;

/** How a rotary embedding turns, and where the rows stand. */
export interface RotaryOptions extends RotaryFrequencyOptions {
  /** Pairs are (0, 1), (2, 3) and so on. Default, false: (0, R/2), (1, R/2 + 1) and so on. */
  interleaved?: boolean;
  /** R, even, at most 512: the elements that turn; those behind are copied. Default: D. */
  rotaryDim?: number;
  /** Position of row 0; the others follow. Default: 0. */
  offset?: number;
  /**
   * Where the rows stand instead: pieces of a shard as attention's queryPositions, in any order, or an int32 tensor [S],
   * or [B, S].
   */
  positions?: readonly Piece[] | Tensor;
}

const rotaryOptionNames: OptionNames<RotaryOptions> = {
  ...frequencyOptionNames,
  interleaved: true,
  rotaryDim: true,
  offset: true,
  positions: true,
};

/**
 * Rotary position embedding (Su et al., "RoFormer", 2021): pair i of a row at position p turns by the angle p f_i.
 * Differentiable on a `Tape`.
 *
 *     y_a = x_a cos(p f_i) - x_b sin(p f_i)      y_b = x_b cos(p f_i) + x_a sin(p f_i)      f_i = base^(-2i/R)
 *
 * Angles are exact at any position: whole turns are taken off in integers.
 *
 * @param x [B, S, H, D], or [T, H, D]; float32, bfloat16 or float16. Any strides on B, S and H.
 * @returns of x's shape and dtype, contiguous.
 * @throws `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DEVICE` (tensors of two devices), `ERR_OPTION`, `ERR_DISPOSED`,
 * `ERR_OUT_OF_MEMORY`.
 *
 * @example
 * const q = Tensor.normal([1, 128, 8, 64], { dtype: "bfloat16" });
 * const turned = rotaryEmbedding(q, { base: 500_000, offset: 131_072 });
 * const shard = rotaryEmbedding(q, {
 *   positions: [{ start: 0, length: 64 }, { start: 960, length: 64 }],
 *   scaling: { type: "yarn", factor: 4, originalLength: 256 },
 * });
 */
export function rotaryEmbedding(x: Tensor, options: RotaryOptions = {}): Tensor {
  return noted(x, rotated(x, options, false), options);
}

/** The same in x's place, whose values nobody may need later: a view of it. */
export function rotaryEmbeddingInPlace(x: Tensor, options: RotaryOptions): Tensor {
  return noted(x, rotated(x, options, false, referenceTo(x)), options);
}

function noted(x: Tensor, y: Tensor, options: RotaryOptions): Tensor {
  return record("rotaryEmbedding", [y], [x], (save) => {
    const { positions } = options;
    const given = positions instanceof Tensor ? { ...options, positions: save(positions) } : { ...options };
    return ([dy]) => [rotated(dy, given, true)];
  });
}

/**
 * The gradient of sum(rotaryEmbedding(x) * dy) in x: dy turned by the negative angles.
 *
 * @param dy of x's shape and dtype.
 * @param options those of the forward pass.
 * @returns of dy's shape and dtype.
 * @throws the errors of `rotaryEmbedding`.
 *
 * @example
 * const dx = rotaryEmbeddingBackward(Tensor.normal([1, 128, 8, 64]), { interleaved: true });
 */
export function rotaryEmbeddingBackward(dy: Tensor, options: RotaryOptions = {}): Tensor {
  return rotated(dy, options, true);
}

/**
 * The frequencies f_i of a rotary embedding, in radians a position.
 *
 * @param rotaryDim R, even, at most 512.
 * @returns R / 2 numbers, the highest frequency first.
 * @throws `ERR_OPTION`.
 * @example
 * rotaryFrequencies(4, { base: 100 }); // [1, 0.1]
 */
export function rotaryFrequencies(rotaryDim: number, options: RotaryFrequencyOptions = {}): Float64Array {
  checkOptions("rotaryFrequencies", options, frequencyOptionNames);
  return frequenciesOf(rotaryDim, options);
}

function frequenciesOf(rotaryDim: number, { base = 10_000, scaling }: RotaryFrequencyOptions): Float64Array {
  if (!Number.isSafeInteger(rotaryDim) || rotaryDim < 0 || rotaryDim % 2 !== 0) {
    throw failure("ERR_OPTION", `rotaryEmbedding: rotaryDim is ${shown(rotaryDim)}, expected an even number`);
  }
  if (rotaryDim > mostRotaryDim) {
    throw failure(
      "ERR_OPTION",
      `rotaryEmbedding: rotaryDim is ${rotaryDim}, expected at most ${mostRotaryDim}`,
    );
  }
  positive("base", base);
  const powers = (of: number) =>
    Float64Array.from({ length: rotaryDim / 2 }, (_, i) => of ** ((-2 * i) / rotaryDim));
  if (scaling === undefined) return powers(base);
  checkOptions("rotaryEmbedding: scaling", scaling);
  const { type, factor } = scaling;
  if (!Object.hasOwn(scalingOptionNames, type)) {
    throw failure(
      "ERR_OPTION",
      `rotaryEmbedding: scaling.type is ${shown(type)}, expected "linear", "ntk" or "yarn"`,
    );
  }
  checkOptions("rotaryEmbedding: scaling", scaling, scalingOptionNames[type] as OptionNames<RotaryScaling>);
  positive("scaling.factor", factor);
  switch (type) {
    case "linear":
      return powers(base).map((frequency) => frequency / factor);
    case "ntk":
      // A lone pair has frequency 1 whatever the base is.
      return powers(rotaryDim > 2 ? base * factor ** (rotaryDim / (rotaryDim - 2)) : base);
    case "yarn": {
      const { originalLength, betaFast = 32, betaSlow = 1 } = scaling;
      positive("scaling.originalLength", originalLength);
      positive("scaling.betaFast", betaFast);
      positive("scaling.betaSlow", betaSlow);
      if (scaling.attentionFactor !== undefined) positive("scaling.attentionFactor", scaling.attentionFactor);
      if (betaFast <= betaSlow) {
        throw failure(
          "ERR_OPTION",
          `rotaryEmbedding: scaling.betaFast is ${betaFast}, expected more than ${betaSlow} (betaSlow)`,
        );
      }
      return powers(base).map((frequency) => {
        const turns = (originalLength * frequency) / (2 * Math.PI);
        const kept = Math.min(Math.max((turns - betaSlow) / (betaFast - betaSlow), 0), 1);
        return ((1 - kept) * frequency) / factor + kept * frequency;
      });
    }
  }
}

function rotated(x: Tensor, options: RotaryOptions, isInverse: boolean, place?: Tensor): Tensor {
  const handle = handleOf(x, "rotaryEmbedding: x");
  checkOptions("rotaryEmbedding", options, rotaryOptionNames);
  const { interleaved = false, rotaryDim = x.shape.at(-1) ?? 0, scaling, positions } = options;
  if (typeof interleaved !== "boolean") {
    throw wrongKind("rotaryEmbedding: interleaved", "a boolean", interleaved);
  }
  const frequencies = frequenciesOf(rotaryDim, options);
  const rows = x.shape.at(-3) ?? 0;
  const tensor = positions instanceof Tensor ? handleOf(positions, "rotaryEmbedding: positions") : null;
  const pieces = positionPieces(options, rows);
  const y = place ?? Tensor.empty(x.shape, { dtype: x.dtype, device: x.device });
  return queued([y], () => {
    const factor = magnitude(scaling);
    native.rope(handle, frequencies, factor, interleaved, isInverse, pieces, tensor, handleOf(y, "y"));
    return y;
  });
}

/** What cosine and sine are multiplied by. */
function magnitude(scaling: RotaryScaling | undefined): number {
  if (scaling?.type !== "yarn") return 1;
  const { factor, attentionFactor = 0.1 * Math.log(Math.max(factor, 1)) + 1 } = scaling;
  positive("scaling.attentionFactor", attentionFactor);
  return attentionFactor;
}

/** start, length, start, length and so on; null where a tensor says it. */
function positionPieces({ offset, positions }: RotaryOptions, rows: number): readonly number[] | null {
  if (positions === undefined) {
    const start = offset ?? 0;
    if (typeof start !== "number") throw wrongKind("rotaryEmbedding: offset", "a number", start);
    if (!Number.isSafeInteger(start) || start < 0) {
      throw failure(
        "ERR_OPTION",
        `rotaryEmbedding: offset is ${shown(start)}, expected an integer of 0 or more`,
      );
    }
    return [start, rows];
  }
  if (offset !== undefined) {
    throw failure("ERR_OPTION", "rotaryEmbedding: offset is given beside positions");
  }
  if (positions instanceof Tensor) return null;
  if (!Array.isArray(positions)) {
    throw wrongKind("rotaryEmbedding: positions", "a Tensor or an array of { start, length }", positions);
  }
  return flatPieces("rotaryEmbedding: positions", positions);
}

function positive(name: string, value: number): void {
  if (typeof value !== "number") throw wrongKind(`rotaryEmbedding: ${name}`, "a number", value);
  if (!(value > 0 && value < Number.POSITIVE_INFINITY)) {
    throw failure("ERR_OPTION", `rotaryEmbedding: ${name} is ${value}, expected a finite number above 0`);
  }
}
