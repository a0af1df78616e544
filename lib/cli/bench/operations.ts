// What else than attention is measured: a row an operation. `longseq bench --what NAME` and the peer's table of the same
// names (bench/peer_torch.py) are all that a new one needs.
import {
  AdamW,
  add,
  crossEntropyBackward,
  crossEntropyForward,
  type Device,
  type DType,
  gelu,
  geluBackward,
  layerNormBackward,
  layerNormForward,
  linear,
  linearBackward,
  matmul,
  rmsNormBackward,
  rmsNormForward,
  rotaryEmbedding,
  rotaryEmbeddingBackward,
  softmax,
  softmaxBackward,
  swiglu,
  swigluBackward,
  Tensor,
} from "../../index.ts";
import type { Pass } from "./problem.ts";

export interface Rows {
  readonly rows: number;
  readonly width: number;
  /** Of those that see a row as heads. */
  readonly headDim: number;
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
const ofRow = ({ width, dtype, device }: Rows, seed: number) =>
  Tensor.normal([width], { dtype, device, seed });
const square = ({ width, dtype, device }: Rows) => Tensor.normal([width, width], { dtype, device, seed: 2 });
/** What a cast goes to: the other width. */
const castTo = (dtype: DType): DType => (dtype === "float32" ? "bfloat16" : "float32");
const both: readonly Pass[] = ["forward", "backward"];

/** Bound by memory: so many tensors [rows, width] are read and written forward, and backward. */
const moves =
  (forward: number, backward = 0) =>
  (shape: Rows, pass: Pass): Work => ({ bytes: bytesOf(shape, pass === "forward" ? forward : backward) });
/** Bound by arithmetic: so many products of [rows, width] by [width, width]. */
const multiplies =
  (forward: number, backward = 0) =>
  ({ rows, width }: Rows, pass: Pass): Work => ({
    operations: 2 * rows * width * width * (pass === "forward" ? forward : backward),
  });

export const operations = {
  copy: {
    passes: ["forward"],
    work: moves(2),
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
  add: {
    passes: ["forward"],
    work: moves(3),
    prepare(shape) {
      const [x, y] = [normal(shape, 1), normal(shape, 2)];
      return { inputs: [x, y], forward: () => [add(x, y)] };
    },
  },
  layerNorm: {
    passes: both,
    work: moves(2, 3),
    prepare(shape) {
      const [x, dout, weight, bias] = [normal(shape, 1), normal(shape, 2), ofRow(shape, 3), ofRow(shape, 4)];
      const { out, ...statistics } = layerNormForward(x, weight, bias);
      return {
        inputs: [x, dout, weight, bias, out, ...Object.values(statistics)],
        forward: () => Object.values(layerNormForward(x, weight, bias)),
        backward: () => Object.values(layerNormBackward({ x, weight, ...statistics, dout })),
      };
    },
  },
  rmsNorm: {
    passes: both,
    work: moves(2, 3),
    prepare(shape) {
      const [x, dout, weight] = [normal(shape, 1), normal(shape, 2), ofRow(shape, 3)];
      const { out, ...statistics } = rmsNormForward(x, weight);
      return {
        inputs: [x, dout, weight, out, ...Object.values(statistics)],
        forward: () => Object.values(rmsNormForward(x, weight)),
        backward: () => Object.values(rmsNormBackward({ x, weight, ...statistics, dout })),
      };
    },
  },
  gelu: {
    passes: both,
    work: moves(2, 3),
    prepare(shape) {
      const [x, dy, bias] = [normal(shape, 1), normal(shape, 2), ofRow(shape, 3)];
      const options = { bias, approximate: "tanh" } as const;
      return {
        inputs: [x, dy, bias],
        forward: () => [gelu(x, options)],
        backward: () => Object.values(geluBackward({ x, dy }, options)),
      };
    },
  },
  swiglu: {
    passes: both,
    work: moves(3, 5),
    prepare(shape) {
      const [gate, up, dy] = [normal(shape, 1), normal(shape, 2), normal(shape, 3)];
      return {
        inputs: [gate, up, dy],
        forward: () => [swiglu(gate, up)],
        backward: () => Object.values(swigluBackward({ gate, up, dy })),
      };
    },
  },
  softmax: {
    passes: both,
    work: moves(2, 3),
    prepare(shape) {
      const [x, dout] = [normal(shape, 1), normal(shape, 2)];
      const out = softmax(x);
      return {
        inputs: [x, dout, out],
        forward: () => [softmax(x)],
        backward: () => [softmaxBackward({ out, dout })],
      };
    },
  },
  crossEntropy: {
    passes: both,
    work: moves(1, 2),
    prepare(shape) {
      const { rows, width, device } = shape;
      const logits = normal(shape, 1);
      const targets = Tensor.from(
        Int32Array.from({ length: rows }, (_, row) => (7919 * row) % width),
        [rows],
        {
          device,
        },
      );
      const { loss, ...saved } = crossEntropyForward(logits, targets);
      const dloss = Tensor.from([1], [], { device });
      return {
        inputs: [logits, targets, loss, dloss, ...Object.values(saved)],
        forward: () => Object.values(crossEntropyForward(logits, targets)),
        backward: () => [crossEntropyBackward({ logits, targets, ...saved, dloss })],
      };
    },
  },
  rotaryEmbedding: {
    passes: both,
    work: moves(2, 2),
    prepare({ rows, width, headDim, dtype, device }) {
      const x = Tensor.normal([1, rows, width / headDim, headDim], { dtype, device });
      return {
        inputs: [x],
        forward: () => [rotaryEmbedding(x)],
        backward: () => [rotaryEmbeddingBackward(x)],
      };
    },
  },
  // In float32: parameter and both moments, read and written; the gradient, and where narrower the parameter's copy.
  adamW: {
    passes: ["forward"],
    work: (shape) => ({
      bytes: bytesOf({ ...shape, dtype: "float32" }, 6) + bytesOf(shape, shape.dtype === "float32" ? 1 : 2),
    }),
    prepare(shape) {
      const [parameter, gradient] = [normal(shape, 1), normal(shape, 2)];
      const optimizer = new AdamW([parameter]);
      const step = () => {
        optimizer.step([gradient]);
        return [];
      };
      return { inputs: [optimizer, parameter, gradient], forward: step };
    },
  },
  matmul: {
    passes: ["forward"],
    work: multiplies(1),
    prepare(shape) {
      const [x, matrix] = [normal(shape, 1), square(shape)];
      return { inputs: [x, matrix], forward: () => [matmul(x, matrix)] };
    },
  },
  linear: {
    passes: both,
    work: multiplies(1, 2),
    prepare(shape) {
      const [x, weight, dy] = [normal(shape, 1), square(shape), normal(shape, 3)];
      return {
        inputs: [x, weight, dy],
        forward: () => [linear(x, weight)],
        backward: () => {
          const { dx, dweight } = linearBackward({ x, weight, dy });
          return [dx, dweight];
        },
      };
    },
  },
} as const satisfies Record<string, Operation>;

export type OperationName = keyof typeof operations;
export const operationNames = Object.keys(operations) as OperationName[];
