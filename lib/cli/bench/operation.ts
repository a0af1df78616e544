// What a row of operations.ts is made of: the shape it runs on, the work that bounds it, its inputs.
import { type Device, type DType, Tensor } from "../../index.ts";
import { itemBytes } from "../../values.ts";
import type { ModelPass } from "./flops.ts";
import type { Pass } from "./problem.ts";

export interface Rows {
  readonly rows: number;
  readonly width: number;
  /** Of those that see a row as heads. */
  readonly headDim: number;
  /** Of those that make logits of a row. */
  readonly vocabulary?: number | undefined;
  readonly dtype: DType;
  readonly device: Device;
}

/** Bytes that must be read and written, or floating-point operations: what bounds it. */
export type Work = { readonly bytes: number } | { readonly operations: number };

/** With its inputs made, which are disposed at the end. Each call returns its results, which the caller disposes. */
export interface Prepared {
  readonly inputs: readonly Disposable[];
  readonly forward: () => readonly Tensor[];
  readonly backward?: () => readonly Tensor[];
  readonly both?: () => readonly Tensor[];
}

export interface Operation {
  readonly passes: readonly ModelPass[];
  work(shape: Rows, pass: ModelPass): Work;
  prepare(shape: Rows): Prepared;
}

/** Of `tensors` tensors [rows, width]. */
export const bytesOf = ({ rows, width, dtype }: Rows, tensors: number) =>
  tensors * rows * width * itemBytes[dtype];
export const normal = ({ rows, width, dtype, device }: Rows, seed: number) =>
  Tensor.normal([rows, width], { dtype, device, seed });
export const ofRow = ({ width, dtype, device }: Rows, seed: number) =>
  Tensor.normal([width], { dtype, device, seed });
/** The number of a column for each row, spread over all of them. */
export const ofColumns = ({ rows, width, device }: Rows) =>
  Tensor.from(
    Int32Array.from({ length: rows }, (_, row) => (7919 * row) % width),
    [rows],
    { device },
  );
/** The gradient of a mean of the rows' losses. */
export const ofLoss = ({ device }: Rows) => Tensor.from([1], [], { device });
export const square = ({ width, dtype, device }: Rows) =>
  Tensor.normal([width, width], { dtype, device, seed: 2 });
/** What a cast goes to: the other width. */
export const castTo = (dtype: DType): DType => (dtype === "float32" ? "bfloat16" : "float32");
export const both: readonly Pass[] = ["forward", "backward"];

/** Bound by memory: so many tensors [rows, width] are read and written forward, and backward. */
export const moves =
  (forward: number, backward = 0) =>
  (shape: Rows, pass: ModelPass): Work => ({
    bytes: bytesOf(shape, pass === "forward" ? forward : backward),
  });
/** Bound by arithmetic: so many products of [rows, width] by [width, width]. */
export const multiplies =
  (forward: number, backward = 0) =>
  ({ rows, width }: Rows, pass: ModelPass): Work => ({
    operations: 2 * rows * width * width * (pass === "forward" ? forward : backward),
  });
