// The matrix product's definition, in float64, on matrices as they are given.
import type { Tensor } from "longseq";
import { at } from "./compare.ts";

export interface Matrix {
  rows: number;
  columns: number;
  values: ArrayLike<number>;
}

export function transposed({ rows, columns, values }: Matrix): Matrix {
  const turned = Float64Array.from({ length: rows * columns }, (_, i) =>
    at(values, (i % rows) * columns + Math.floor(i / rows)),
  );
  return { rows: columns, columns: rows, values: turned };
}

/** a b + bias + before. */
export function product(a: Matrix, b: Matrix, bias?: ArrayLike<number>, before?: ArrayLike<number>): Matrix {
  const [rows, columns] = [a.rows, b.columns];
  const values = new Float64Array(rows * columns);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      let sum = (bias ? at(bias, j) : 0) + (before ? at(before, i * columns + j) : 0);
      for (let k = 0; k < a.columns; k++)
        sum += at(a.values, i * a.columns + k) * at(b.values, k * columns + j);
      values[i * columns + j] = sum;
    }
  }
  return { rows, columns, values };
}

/** What a tensor of two axes stands for in a product; of more, all rows of the last one. */
export async function matrixOf(tensor: Tensor, isTransposed = false): Promise<Matrix> {
  const columns = tensor.shape.at(-1) ?? 0;
  const rows = tensor.shape.slice(0, -1).reduce((a, b) => a * b, 1);
  const matrix = { rows, columns, values: await tensor.data() };
  return isTransposed ? transposed(matrix) : matrix;
}
