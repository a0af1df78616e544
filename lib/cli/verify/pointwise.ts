// Reference vectors of the pointwise operations and the optimiser.
import {
  AdamW,
  type GeluOptions,
  gelu,
  geluBackward,
  type RotaryOptions,
  rotaryEmbedding,
  rotaryEmbeddingBackward,
  Scope,
  swiglu,
  swigluBackward,
  type Tensor,
} from "../../index.ts";
import type { Operation, Result, Run } from "./operation.ts";
import { isBoolean, isNumber, type VectorFile, VectorFileError } from "./vector-file.ts";

/** An operation that is a function of tensors; gradients are computed where the file holds one. */
function operation(
  options: readonly string[],
  inputs: readonly string[],
  gradients: readonly string[],
  compute: (file: VectorFile, input: (name: string) => Tensor, wantsGradients: boolean) => Computed,
): Operation {
  return {
    options,
    tensors: [...inputs, "dy", "y", ...gradients],
    run: async (file, { dtype }) =>
      Scope.run(() => {
        const wantsGradients = gradients.some((name) => Object.hasOwn(file.tensors, name));
        const input = (name: string) => file.tensor(name, shapeIn(file, name)).to(dtype);
        return resultsOf(file, compute(file, input, wantsGradients));
      }),
  };
}

type Computed = Readonly<Record<string, Tensor | undefined>>;

function resultsOf(file: VectorFile, computed: Computed): Result[] {
  return Object.entries(computed).flatMap(([name, value]): Result[] => {
    const expected = file.tensors[name];
    if (value === undefined || expected === undefined) return [];
    file.tensor(name, value.shape);
    return [{ name, value, expected, kind: name.startsWith("d") ? "gradient" : "result" }];
  });
}

/** Whatever it has: the operations check their tensors themselves, but not that they are there. */
function shapeIn(file: VectorFile, name: string): readonly undefined[] {
  return (file.tensors[name]?.shape ?? []).map(() => undefined);
}

export const ropeOperation = operation(
  ["interleaved", "base", "offset"],
  ["x"],
  ["dx"],
  (file, input, wantsGradients) => {
    const options: RotaryOptions = {
      interleaved: file.option("interleaved", "true or false", isBoolean) ?? false,
      base: file.option("base", "a number", isNumber) ?? 10_000,
      offset: file.option("offset", "a number", isNumber) ?? 0,
    };
    return {
      y: rotaryEmbedding(input("x"), options),
      dx: wantsGradients ? rotaryEmbeddingBackward(input("dy"), options) : undefined,
    };
  },
);

const biasGelu = (approximate: "none" | "tanh") =>
  operation([], ["x0", "x1"], ["dx0", "dx1"], (_file, input, wantsGradients) => {
    const [x, bias] = [input("x0"), input("x1")];
    const options: GeluOptions = { bias, approximate };
    const gradients = wantsGradients ? geluBackward({ x, dy: input("dy") }, options) : undefined;
    return { y: gelu(x, options), dx0: gradients?.dx, dx1: gradients?.dbias };
  });
export const biasGeluTanhOperation = biasGelu("tanh");
export const biasGeluErfOperation = biasGelu("none");

export const swigluOperation = operation([], ["x0", "x1"], ["dx0", "dx1"], (_file, input, wantsGradients) => {
  const [gate, up] = [input("x0"), input("x1")];
  const gradients = wantsGradients ? swigluBackward({ gate, up, dy: input("dy") }) : undefined;
  return { y: swiglu(gate, up), dx0: gradients?.dgate, dx1: gradients?.dup };
});

const mostSteps = 100;
const numbered = (name: string) => Array.from({ length: mostSteps }, (_, i) => `${name}${i + 1}`);

export const adamWOperation: Operation = {
  options: ["lr", "beta1", "beta2", "eps", "weight_decay", "steps"],
  tensors: ["param0", ...numbered("grad"), ...numbered("param")],
  run: async (file: VectorFile, { dtype }: Run) =>
    Scope.run(() => {
      const number = (name: string) => {
        const value = file.option(name, "a number", isNumber);
        if (value === undefined) throw new VectorFileError(`${file.path}: there is no option ${name}`);
        return value;
      };
      const shape = shapeIn(file, "param0");
      const parameter = file.tensor("param0", shape).to(dtype);
      using optimizer = new AdamW([parameter], {
        learningRate: number("lr"),
        betas: [number("beta1"), number("beta2")],
        epsilon: number("eps"),
        weightDecay: number("weight_decay"),
      });
      const computed: Record<string, Tensor> = {};
      for (let step = 1; step <= number("steps"); step++) {
        optimizer.step([file.tensor(`grad${step}`, shape).to(dtype)]);
        computed[`param${step}`] = parameter.contiguous();
      }
      return resultsOf(file, computed);
    }),
};
