// How an operation is run from its vectors: a row of the table in verify.ts.
import type { AttentionOptions, DType, Tensor } from "../../index.ts";
import type { Rank } from "../rank-group.ts";
import type { VectorFile } from "./vector-file.ts";

export type FloatType = Extract<DType, "float32" | "bfloat16" | "float16">;

export interface Run {
  readonly dtype: FloatType;
  readonly implementation: AttentionOptions["implementation"] | undefined;
  /** Those that share a sequence of so many tokens. */
  readonly ranks: (length: number) => readonly Rank[];
}

export interface Result {
  readonly name: string;
  /** What the bound is: "model" for all of a whole model's. */
  readonly kind: "result" | "gradient" | "model";
  readonly value: Tensor;
  /** The file's own, of the same name. */
  readonly expected: Tensor;
}

export interface Operation {
  /** Options and tensors that it knows; a file with any other fails. */
  readonly options: readonly string[];
  readonly tensors: readonly string[];
  /** Computes what the file holds results for; the caller disposes the values. */
  run(file: VectorFile, run: Run): Promise<Result[]>;
}

/** Bounds on the relative error, from vectors/README.md: sums in float32, one rounding to the dtype. */
export const bounds: Readonly<Record<FloatType, Readonly<Record<Result["kind"], number>>>> = {
  float32: { result: 1e-5, gradient: 1e-5, model: 1e-4 },
  bfloat16: { result: 1e-2, gradient: 2e-2, model: 4e-2 },
  float16: { result: 2e-3, gradient: 4e-3, model: 1e-2 },
};

/**
 * ‖x - reference‖ / ‖reference‖ in float64. Infinities must be where the reference has them, and count for nothing
 * then; anywhere else, as with NaN, the error is NaN.
 */
export function relativeError(values: ArrayLike<number>, reference: ArrayLike<number>): number {
  if (values.length !== reference.length) return Number.NaN;
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < reference.length; i++) {
    const expected = reference[i] ?? Number.NaN;
    const value = values[i] ?? Number.NaN;
    if (!Number.isFinite(expected) && value === expected) continue;
    difference += (value - expected) ** 2;
    norm += expected ** 2;
  }
  // A reference of zeros (a lone empty row) leaves nothing to be relative to.
  const error = Math.sqrt(difference) / (norm === 0 ? 1 : Math.sqrt(norm));
  return Number.isFinite(error) ? error : Number.NaN;
}
