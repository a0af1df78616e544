// Reference vectors of a transformer layer, and the options that layers and models share.
import {
  type LayerOptions,
  layerParameters,
  Scope,
  Tape,
  type Tensor,
  TransformerLayer,
} from "../../index.ts";
import type { Operation, Run } from "./operation.ts";
import { gradientsOf, joined, resultsOf, rowsOf, weightsOf } from "./ranks.ts";
import { isBoolean, isNumber, type VectorFile, VectorFileError } from "./vector-file.ts";

export const layerOptionNames = ["heads", "kv_heads", "ffn", "norm", "activation", "rope", "bias", "eps"];

const suffixes = ["weight", "bias"];
const parts = ["input_norm", "qkv", "proj", "mlp_norm", "mlp_gate", "mlp_up", "mlp_down"];
export const layerTensorNames = parts.flatMap((part) => suffixes.map((suffix) => `${part}.${suffix}`));

export const transformerLayerOperation: Operation = {
  options: layerOptionNames,
  tensors: ["x", "dy", "y", "dx", ...layerTensorNames, ...layerTensorNames.map((name) => `d.${name}`)],
  run: async (file, run) => Scope.run(() => results(file, run)),
};

function results(file: VectorFile, run: Run) {
  const x = file.tensor("x", [undefined, undefined, undefined]).to(run.dtype);
  const [, length = 0, hidden = 0] = x.shape;
  const options = layerOptions(file, hidden);
  const table = layerParameters(options);
  const ranks = run.ranks(length);
  const wantsGradients = Object.keys(file.tensors).some((name) => /^d(x$|\.)/.test(name));
  const dy = wantsGradients ? file.tensor("dy", x.shape).to(run.dtype) : undefined;
  const attention = run.implementation ? { implementation: run.implementation } : {};
  const made = ranks.map((rank) => {
    const parameters = weightsOf(file, table, rank, run.dtype);
    const layer = new TransformerLayer(options, rank.strategy, { parameters });
    const rows = rowsOf(rank, x);
    using tape = new Tape();
    tape.watch(rows, parameters);
    const y = layer.forward(rows, attention);
    if (!dy) return { y };
    const { dx, ...gradients } = tape.backward(y, rowsOf(rank, dy), { ...parameters, dx: rows });
    return { y, dx, gradients };
  });
  const whole = (all: readonly Tensor[]) => joined(ranks, all);
  const computed = {
    y: whole(made.map(({ y }) => y)),
    ...(dy && {
      dx: whole(made.map(({ dx }) => dx as Tensor)),
      ...gradientsOf(
        table,
        ranks,
        made.map(({ gradients }) => gradients ?? {}),
      ),
    }),
  };
  return resultsOf(file, computed, (name) => (name === "y" ? "result" : "gradient"));
}

export function layerOptions(file: VectorFile, hidden: number): LayerOptions {
  const norm = required(file, "norm", '"layernorm" or "rmsnorm"', isNorm);
  const activation = required(file, "activation", '"gelu" or "swiglu"', isActivation);
  return {
    hidden,
    heads: required(file, "heads", "a number", isNumber),
    keyValueHeads: required(file, "kv_heads", "a number", isNumber),
    feedForward: required(file, "ffn", "a number", isNumber),
    norm,
    activation,
    rotary: file.option("rope", "true or false", isBoolean) ?? false,
    bias: file.option("bias", "true or false", isBoolean) ?? false,
    eps: required(file, "eps", "a number", isNumber),
  };
}

export function required<T>(
  file: VectorFile,
  name: string,
  kind: string,
  isKind: (value: unknown) => value is T,
): T {
  const value = file.option(name, kind, isKind);
  if (value === undefined) throw new VectorFileError(`${file.path}: there is no option ${name}`);
  return value;
}

const isNorm = (value: unknown): value is NonNullable<LayerOptions["norm"]> =>
  value === "layernorm" || value === "rmsnorm";
const isActivation = (value: unknown): value is NonNullable<LayerOptions["activation"]> =>
  value === "gelu" || value === "swiglu";
