// What else than attention is measured: a row an operation. `longseq bench --what NAME` and the peer's table of the same
// names (bench/peer_torch.py) are all that a new one needs.
import { type Device, type DType, Tensor } from "../../index.ts";
import type { Pass } from "./problem.ts";

export interface Rows {
  readonly rows: number;
  readonly width: number;
  readonly dtype: DType;
  readonly device: Device;
}

/** Bytes that must be read and written, or floating-point operations: what bounds it. */
export type Work = { readonly bytes: number } | { readonly operations: number };

/** With its inputs made. Each call returns its results, which the caller disposes. */
export interface Prepared {
  readonly inputs: readonly Tensor[];
  readonly forward: () => readonly Tensor[];
  readonly backward?: () => readonly Tensor[];
}

export interface Operation {
  readonly passes: readonly Pass[];
  work(shape: Rows, pass: Pass): Work;
  prepare(shape: Rows): Prepared;
}

const itemBytes: Readonly<Record<DType, number>> = {
  float32: 4,
  bfloat16: 2,
  float16: 2,
  int32: 4,
  uint8: 1,
};
/** Of `tensors` tensors [rows, width]. */
const bytesOf = ({ rows, width, dtype }: Rows, tensors: number) => tensors * rows * width * itemBytes[dtype];
const normal = ({ rows, width, dtype, device }: Rows, seed: number) =>
  Tensor.normal([rows, width], { dtype, device, seed });
/** What a cast goes to: the other width. */
const castTo = (dtype: DType): DType => (dtype === "float32" ? "bfloat16" : "float32");

export const operations = {
  copy: {
    passes: ["forward"],
    work: (shape) => ({ bytes: bytesOf(shape, 2) }),
    prepare(shape) {
      const x = normal(shape, 1);
      return { inputs: [x], forward: () => [x.contiguous()] };
    },
  },
  cast: {
    passes: ["forward"],
    work: (shape) => ({ bytes: bytesOf(shape, 1) + bytesOf({ ...shape, dtype: castTo(shape.dtype) }, 1) }),
    prepare(shape) {
      const x = normal(shape, 1);
      return { inputs: [x], forward: () => [x.to(castTo(shape.dtype))] };
    },
  },
} as const satisfies Record<string, Operation>;

export type OperationName = keyof typeof operations;
export const operationNames = Object.keys(operations) as OperationName[];
