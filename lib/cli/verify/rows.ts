// Reference vectors of the operations on rows: norms and the loss.
import {
  type CrossEntropyOptions,
  crossEntropyBackward,
  crossEntropyForward,
  layerNormBackward,
  layerNormForward,
  rmsNormBackward,
  rmsNormForward,
  Scope,
  Tensor,
} from "../../index.ts";
import type { Operation, Result, Run } from "./operation.ts";
import { isNumber, type VectorFile, VectorFileError } from "./vector-file.ts";

export const layerNormOperation: Operation = {
  options: ["eps"],
  tensors: ["x", "weight", "bias", "dy", "y", "dx", "dweight", "dbias"],
  run: async (file, run) =>
    Scope.run(() => {
      const { x, dout, columns } = rowsOf(file, run);
      const [weight, bias] = ["weight", "bias"].map((name) => file.tensor(name, [columns]).to(run.dtype)) as [
        Tensor,
        Tensor,
      ];
      const { out, ...kept } = layerNormForward(x, weight, bias, epsOf(file));
      return results(file, { y: out, ...(dout && layerNormBackward({ x, weight, ...kept, dout })) });
    }),
};

export const rmsNormOperation: Operation = {
  options: ["eps"],
  tensors: ["x", "weight", "dy", "y", "dx", "dweight"],
  run: async (file, run) =>
    Scope.run(() => {
      const { x, dout, columns } = rowsOf(file, run);
      const weight = file.tensor("weight", [columns]).to(run.dtype);
      const { out, ...kept } = rmsNormForward(x, weight, epsOf(file));
      return results(file, { y: out, ...(dout && rmsNormBackward({ x, weight, ...kept, dout })) });
    }),
};

export const crossEntropyOperation: Operation = {
  options: ["ignore_index", "reduction"],
  tensors: ["logits", "targets", "loss", "dlogits"],
  run: async (file, { dtype }) =>
    Scope.run(() => {
      const logits = file.tensor("logits", [undefined, undefined]).to(dtype);
      const targets = file.tensor("targets", [logits.shape[0]]);
      const ignoreIndex = file.option("ignore_index", "a number", isNumber);
      const reduction = file.option("reduction", '"mean" or "sum"', isReduction);
      const options = {
        ...(ignoreIndex !== undefined && { ignoreIndex }),
        ...(reduction !== undefined && { reduction }),
      };
      const { loss, ...kept } = crossEntropyForward(logits, targets, options);
      const dloss = Tensor.from([1], [], { device: logits.device });
      const dlogits = crossEntropyBackward({ logits, targets, ...kept, dloss }, options);
      return results(file, { loss: loss.reshape([1]), dlogits });
    }),
};

const isReduction = (value: unknown): value is NonNullable<CrossEntropyOptions["reduction"]> =>
  value === "mean" || value === "sum";

/** x, and the gradient of y where the file holds one of x. */
function rowsOf(file: VectorFile, { dtype }: Run): { x: Tensor; dout: Tensor | undefined; columns: number } {
  const x = file.tensor("x", [undefined, undefined]).to(dtype);
  const wantsGradients = ["dx", "dweight", "dbias"].some((name) => Object.hasOwn(file.tensors, name));
  const dout = wantsGradients ? file.tensor("dy", x.shape).to(dtype) : undefined;
  return { x, dout, columns: x.shape[1] ?? 0 };
}

function epsOf(file: VectorFile): { eps: number } {
  const eps = file.option("eps", "a number", isNumber);
  if (eps === undefined) throw new VectorFileError(`${file.path}: there is no option eps`);
  return { eps };
}

function results(file: VectorFile, computed: Readonly<Record<string, Tensor>>): Result[] {
  return Object.entries(computed).flatMap(([name, value]): Result[] => {
    const expected = file.optionalTensor(name, value.shape);
    return expected ? [{ name, value, expected, kind: name.startsWith("d") ? "gradient" : "result" }] : [];
  });
}
