// What else than attention is measured: a row an operation. `longseq bench --what NAME` and the peer's table of the same
// names (bench/peer_torch.py) are all that a new one needs.
import {
  AdamW,
  add,
  crossEntropyBackward,
  crossEntropyForward,
  embedding,
  embeddingBackward,
  gelu,
  geluBackward,
  globalNorm,
  layerNormBackward,
  layerNormForward,
  linear,
  linearBackward,
  linearCrossEntropy,
  matmul,
  rmsNormBackward,
  rmsNormForward,
  rotaryEmbedding,
  rotaryEmbeddingBackward,
  softmax,
  softmaxBackward,
  swiglu,
  swigluBackward,
  Tape,
  Tensor,
} from "../../index.ts";
import {
  both,
  bytesOf,
  castTo,
  moves,
  multiplies,
  normal,
  type Operation,
  ofColumns,
  ofLoss,
  ofRow,
  square,
} from "./operation.ts";

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
      const [logits, targets, dloss] = [normal(shape, 1), ofColumns(shape), ofLoss(shape)];
      const { loss, ...saved } = crossEntropyForward(logits, targets);
      return {
        inputs: [logits, targets, loss, dloss, ...Object.values(saved)],
        forward: () => Object.values(crossEntropyForward(logits, targets)),
        backward: () => [crossEntropyBackward({ logits, targets, ...saved, dloss })],
      };
    },
  },
  // Of as many rows as a row has elements, all of which are written backward.
  embedding: {
    passes: both,
    work: (shape, pass) => ({
      bytes:
        pass === "forward"
          ? bytesOf(shape, 2)
          : bytesOf(shape, 1) + bytesOf({ ...shape, rows: shape.width }, 1),
    }),
    prepare(shape) {
      const [table, indices, dy] = [square(shape), ofColumns(shape), normal(shape, 1)];
      return {
        inputs: [table, indices, dy],
        forward: () => [embedding(table, indices)],
        backward: () => [embeddingBackward({ table, indices, dy })],
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
  globalNorm: {
    passes: ["forward"],
    work: moves(1),
    prepare(shape) {
      const gradient = normal(shape, 1);
      return { inputs: [gradient], forward: () => [globalNorm([gradient])] };
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
  // Its gradients are made on the forward pass, so backward is timed with that.
  linearCrossEntropy: {
    passes: ["forward", "both"],
    work: ({ rows, width, vocabulary = 0 }, pass) => ({
      operations: 2 * rows * width * vocabulary * (pass === "forward" ? 1 : 3),
    }),
    prepare(shape) {
      const { vocabulary = 0 } = shape;
      const [x, weight] = [normal(shape, 1), normal({ ...shape, rows: vocabulary }, 2)];
      const [targets, dloss] = [ofColumns({ ...shape, width: vocabulary }), ofLoss(shape)];
      return {
        inputs: [x, weight, targets, dloss],
        forward: () => [linearCrossEntropy(x, weight, targets)],
        both: () => {
          using tape = new Tape();
          tape.watch(x, weight);
          const loss = linearCrossEntropy(x, weight, targets);
          return [loss, ...tape.backward(loss, dloss, [x, weight])];
        },
      };
    },
  },
} as const satisfies Record<string, Operation>;

export type OperationName = keyof typeof operations;
export const operationNames = Object.keys(operations) as OperationName[];
