// Tensors of rows for the tests of operations on them: shapes, places in memory, values.
import fc from "fast-check";
import { Tensor } from "longseq";
import { at, distance, type FloatType, norm } from "./compare.ts";
import { inside } from "./layouts.ts";

/** Around the sizes of vectors, of 16 bytes, of warps and blocks, and of what is held in registers. */
export const widths = fc.oneof(
  fc.integer({ min: 1, max: 40 }),
  fc.constantFrom(
    1,
    8,
    24,
    64,
    72,
    127,
    128,
    129,
    200,
    256,
    264,
    384,
    500,
    512,
    1000,
    1024,
    1032,
    2048,
    4104,
  ),
);

/** Leading axes. */
export const leading = fc.array(fc.integer({ min: 1, max: 5 }), { maxLength: 3 });

/** The same values elsewhere: packed, as every second of longer rows that lie on 16 bytes, or amid others. */
export const layouts = {
  packed: async (tensor: Tensor): Promise<Tensor> => tensor,
  apart: async (tensor: Tensor): Promise<Tensor> => {
    const { shape, dtype } = tensor;
    const last = shape.at(-1) ?? 0;
    const larger = Tensor.empty([...shape.slice(0, -1), 2, last + (16 - (last % 16))], { dtype });
    const view = larger.select(shape.length - 1, 1).slice(shape.length - 1, 0, last);
    const bits = await tensor.bits();
    view.write(bits instanceof Uint32Array ? new Float32Array(bits.buffer) : bits);
    return view;
  },
  inside,
};
export type Layout = keyof typeof layouts;
export const layoutNames = fc.constantFrom<Layout>("packed", "apart", "inside");

/** Normal values as the tensor's dtype has them. */
export function random(shape: readonly number[], seed: number, dtype: FloatType, mean = 0): Tensor {
  return Tensor.normal(shape, { seed, dtype, mean });
}

export async function values(tensor: Tensor): Promise<Float64Array> {
  return Float64Array.from(await tensor.data());
}

/** The rows of row-major values. */
export function rowsOf(flat: Float64Array, columns: number, count: number): Float64Array[] {
  return Array.from({ length: count }, (_, row) => flat.subarray(row * columns, (row + 1) * columns));
}

export const sum = (list: ArrayLike<number>): number => Array.from(list).reduce((a, b) => a + b, 0);
export const dot = (a: ArrayLike<number>, b: ArrayLike<number>): number =>
  Array.from(a).reduce((total, value, i) => total + value * at(b, i), 0);

/** |actual - expected| relative to the terms that expected is a sum of: differences of like numbers have no digits. */
export function errorAmong(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  terms: ArrayLike<number>,
): number {
  const scale = Math.max(norm(expected), norm(terms));
  return distance(actual, expected) / (scale === 0 ? 1 : scale);
}
