// How far a result may be from what is right.
import type { DType } from "longseq";

export type FloatType = Extract<DType, "float32" | "bfloat16" | "float16">;
export const floatTypes: readonly FloatType[] = ["float32", "bfloat16", "float16"];

/** Relative errors of vectors/README.md: sums in float32, results rounded to the dtype. */
export const bounds: Readonly<Record<FloatType, { result: number; gradient: number }>> = {
  float32: { result: 1e-5, gradient: 1e-5 },
  bfloat16: { result: 1e-2, gradient: 2e-2 },
  float16: { result: 2e-3, gradient: 4e-3 },
};

/** Half the distance of 1 to the next number. */
export const unitRoundoff: Readonly<Record<FloatType, number>> = {
  float32: 2 ** -24,
  bfloat16: 2 ** -8,
  float16: 2 ** -11,
};

export const at = (values: ArrayLike<number>, index: number): number => values[index] ?? Number.NaN;

export function norm(values: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += at(values, i) ** 2;
  return Math.sqrt(sum);
}

/** |actual - expected|; infinities must be the same ones. NaN where any value is, or the lengths differ. */
export function distance(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (actual.length !== expected.length) return Number.NaN;
  let sum = 0;
  for (let i = 0; i < expected.length; i++) {
    if (actual[i] !== expected[i]) sum += (at(actual, i) - at(expected, i)) ** 2;
  }
  return Math.sqrt(sum);
}

/** |actual - expected| / |expected|, where what is infinite counts for nothing in the norm. */
export function relativeError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  const scale = norm(Array.from(expected).filter(Number.isFinite));
  return distance(actual, expected) / (scale === 0 ? 1 : scale);
}
