// A layer's parameters as its steps take them, each with where its gradient is summed.
import { failure, wrongKind } from "../errors.ts";
import { checkGradientSum, summedInto } from "../ops/gradient-sum.ts";
import type { LinearOptions } from "../ops/linear.ts";
import { type AddNormResult, addLayerNorm, addRmsNorm, layerNorm, rmsNorm } from "../ops/norm.ts";
import type { Tensor } from "../tensor.ts";
import type { Tensors } from "../tensor-group.ts";
import type { LayerConfiguration } from "./configuration.ts";

type NormParameters = [weight: Tensor, ...bias: Tensor[]];
type Norm = (x: Tensor, ...parameters: NormParameters) => Tensor;

export class BoundParameters {
  readonly #configuration: Pick<LayerConfiguration, "norm" | "eps">;
  readonly #parameters: Tensors;
  readonly #gradients: Tensors;

  constructor(
    configuration: Pick<LayerConfiguration, "norm" | "eps">,
    parameters: Tensors,
    gradients: Tensors = {},
  ) {
    this.#configuration = configuration;
    this.#parameters = parameters;
    this.#gradients = gradients;
  }

  /** Those of the MLP's products, for a work that is to be given them. */
  ofMlp(): [names: string[], tensors: Tensor[]] {
    const entries = Object.entries(this.#parameters).filter(([name]) => /^mlp_(?!norm)/.test(name));
    return [entries.map(([name]) => name), entries.map(([, tensor]) => tensor)];
  }

  /** The same, with these in their places. */
  with(names: readonly string[], tensors: readonly Tensor[]): BoundParameters {
    const replaced = Object.fromEntries(names.map((name, at) => [name, tensors[at] as Tensor]));
    return new BoundParameters(this.#configuration, { ...this.#parameters, ...replaced }, this.#gradients);
  }

  /** A product's weight and bias, and the options of `linear`. */
  product(name: string): [weight: Tensor, bias: Tensor | undefined, options: LinearOptions] {
    const [dweight, dbias] = [this.#gradients[`${name}.weight`], this.#gradients[`${name}.bias`]];
    return [
      this.#parameters[`${name}.weight`] as Tensor,
      this.#parameters[`${name}.bias`],
      { ...(dweight && { dweight }), ...(dbias && { dbias }) },
    ];
  }

  norm(name: string, x: Tensor): Tensor {
    return this.#norm(x, ...this.#summed(name, x));
  }

  /** The norm of x + residual, and that sum. */
  addNorm(name: string, x: Tensor, residual: Tensor): AddNormResult {
    const { norm, eps } = this.#configuration;
    const [weight, bias = null] = this.#summed(name, x);
    return norm === "layernorm"
      ? addLayerNorm(x, residual, weight, bias, { eps })
      : addRmsNorm(x, residual, weight, { eps });
  }

  /** `norm` as a function of x and its parameters, and these. */
  normOf(name: string, x: Tensor): [norm: Norm, ...Parameters<Norm>] {
    return [this.#norm, x, ...this.#ofNorm(name, (key) => this.#parameters[key])];
  }

  readonly #norm: Norm = (x, weight, bias: Tensor | null = null) => {
    const { norm, eps } = this.#configuration;
    return norm === "layernorm" ? layerNorm(x, weight, bias, { eps }) : rmsNorm(x, weight, { eps });
  };

  #summed(name: string, x: Tensor): NormParameters {
    return this.#ofNorm(name, (key) => {
      const [tensor, sum] = [this.#parameters[key], this.#gradients[key]];
      return tensor && sum ? summedInto("norm", key, sum, tensor, x) : tensor;
    });
  }

  #ofNorm(name: string, parameter: (key: string) => Tensor | undefined): NormParameters {
    const bias = parameter(`${name}.bias`);
    return [parameter(`${name}.weight`) as Tensor, ...(bias ? [bias] : [])];
  }
}

/** Of a layer or model: each sum belongs to a parameter. */
export function checkGradients(what: string, parameters: Tensors, gradients: Tensors): void {
  if (typeof gradients !== "object" || gradients === null || Array.isArray(gradients))
    throw wrongKind(`${what}: gradients`, "an object of Tensors", gradients);
  for (const [name, sum] of Object.entries(gradients)) {
    const parameter = Object.hasOwn(parameters, name) ? parameters[name] : undefined;
    if (parameter === undefined) {
      throw failure("ERR_OPTION", `${what}: gradients has ${name}, which is no parameter`);
    }
    checkGradientSum(what, `the sum of ${name}`, sum, parameter);
  }
}
