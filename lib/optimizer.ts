import { checkOptions, failure, type OptionNames, shown, wrongKind } from "./errors.ts";
import { native } from "./native.ts";
import { Scope } from "./scope.ts";
import { handleOf, noteWrite, Tensor, writesOf } from "./tensor.ts";
import { type Alike, alike, matching, nameIn, type TensorGroup, tensorsOf } from "./tensor-group.ts";

/** The numbers of AdamW, the same for all of its parameters. */
export interface AdamWOptions {
  /** Default: 0.001. */
  learningRate?: number;
  /** What is kept of the moments a step, 0 or more and less than 1. Default: [0.9, 0.999]. */
  betas?: readonly [first: number, second: number];
  /** Default: 1e-8. */
  epsilon?: number;
  /** Default: 0.01. */
  weightDecay?: number;
  /** Steps that were taken before, where training goes on. Default: 0. */
  steps?: number;
}

const adamWOptionNames: OptionNames<AdamWOptions> = {
  learningRate: true,
  betas: true,
  epsilon: true,
  weightDecay: true,
  steps: true,
};

/**
 * AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019) over many tensors, updated in place by
 * one call. Moments are float32; so are the master weights of a parameter in bfloat16 or float16, which is written from
 * them in the same pass.
 *
 *     g = gradientScale gradient      m = beta1 m + (1 - beta1) g      v = beta2 v + (1 - beta2) g^2
 *     parameter -= learningRate (weightDecay parameter + m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon))
 *
 * Parameters that do not decay have an AdamW of their own. It owns its tensors, whatever `Scope` it is made in: dispose
 * of it. Step behind the `Tape.backward` of what was made of the parameters, which is refused after it.
 *
 * What it is made of is `firstMoments`, `secondMoments` and, for parameters in 16 bits, `masters`, with `steps`. To go on,
 * write the parameters, make an AdamW of them with `steps`, and write the rest into the tensors of the same names: the
 * steps that follow have the bits they would have had. A parameter that is written at any time is what training goes on
 * from: in 16 bits its master becomes a copy of it again, unless that was written as well.
 *
 * @example
 * const weight = Tensor.normal([512, 64], { dtype: "bfloat16" });
 * using optimizer = new AdamW([weight], { learningRate: 3e-4, betas: [0.9, 0.95], weightDecay: 0.1 });
 * const gradients = [Tensor.normal([512, 64], { seed: 1, dtype: "bfloat16" })];
 * const { norm, factor } = clipByGlobalNorm(gradients, 1);
 * optimizer.step(gradients, { gradientScale: factor });
 * console.log(await norm.item());
 */
export class AdamW<const Group extends TensorGroup = readonly Tensor[]> implements Disposable {
  /** Those that are updated, in an array or by name, as they were given; so are the others. */
  readonly parameters: Readonly<Alike<Group>>;
  /** float32: a parameter that is that itself, else a copy of it at the time this was made. */
  readonly masters: Readonly<Alike<Group>>;
  /** m of each parameter. */
  readonly firstMoments: Readonly<Alike<Group>>;
  /** v of each parameter. */
  readonly secondMoments: Readonly<Alike<Group>>;
  readonly #options: Required<Omit<AdamWOptions, "steps">>;
  #steps: number;
  #owned: Tensor[] = [];
  /** How often each parameter, and its master, had been written when they were last made the same. */
  #writes: { parameter: number; master: number }[] = [];

  /**
   * Moments of zeros, and the master weights.
   *
   * @param parameters in an array or by name: contiguous, on one device, each once; float32, bfloat16 or float16.
   * @throws `ERR_OPTION`, `ERR_DTYPE`, `ERR_SHAPE` (not contiguous), `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`.
   */
  constructor(parameters: Group, options: AdamWOptions = {}) {
    const all = tensorsOf("adamW: parameters", parameters);
    checkOptions("adamW", options, adamWOptionNames);
    const { learningRate = 1e-3, betas = [0.9, 0.999], epsilon = 1e-8, weightDecay = 0.01 } = options;
    if (!Array.isArray(betas) || betas.length !== 2) {
      throw wrongKind("adamW: betas", "[first, second]", betas);
    }
    const { steps = 0 } = options;
    if (!Number.isSafeInteger(steps) || steps < 0) {
      throw failure("ERR_OPTION", `adamW: steps is ${shown(steps)}, expected an integer of 0 or more`);
    }
    this.#options = { learningRate, betas: [...betas] as [number, number], epsilon, weightDecay };
    this.#steps = steps;
    this.#update([], [], [], [], [], this.#options.learningRate, null); // refuses numbers that cannot be
    for (const [at, parameter] of all.entries()) {
      handleOf(parameter, "adamW: a parameter");
      const first = all.indexOf(parameter);
      if (first < at) {
        const [name, before] = [at, first].map((i) => `parameters${nameIn(parameters, i)}`);
        throw failure("ERR_OPTION", `adamW: ${name} is ${before} again, expected each once`);
      }
      if (!isFloat(parameter)) {
        throw failure(
          "ERR_DTYPE",
          `adamW: a parameter is ${parameter.dtype}, expected float32, bfloat16 or float16`,
        );
      }
      if (!parameter.isContiguous) throw failure("ERR_SHAPE", "adamW: a parameter is not contiguous");
    }
    try {
      const masters = all.map((parameter) =>
        parameter.dtype === "float32" ? parameter : this.#own(master(parameter)),
      );
      const zeros = () => all.map(({ shape, device }) => this.#own(Tensor.zeros(shape, { device })));
      this.parameters = alike(parameters, all);
      this.masters = alike(parameters, masters);
      this.firstMoments = alike(parameters, zeros());
      this.secondMoments = alike(parameters, zeros());
      this.#writes = this.#countWrites();
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** Taken so far, those before this was made too; also one that changed nothing. */
  get steps(): number {
    return this.#steps;
  }

  /**
   * Queues a step.
   *
   * @param gradients one a parameter, in their order or by their names, of its shape, contiguous; float32, bfloat16 or
   * float16.
   * @param options learningRate: this step's, default that of the optimiser. gradientScale: one float32 on the device,
   * that the gradients are multiplied by, as the factor of `clipByGlobalNorm`; where it is not finite, parameters and
   * moments stay as they are.
   * @throws `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DEVICE`, `ERR_OPTION`, `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`.
   * @example
   * const bias = Tensor.from([1, 1], [2]);
   * using optimizer = new AdamW([bias], { weightDecay: 0 });
   * optimizer.step([Tensor.from([0, 0], [2])], { learningRate: 1e-4 });
   * await bias.data(); // [1, 1]
   */
  step(gradients: TensorGroup, options: { learningRate?: number; gradientScale?: Tensor } = {}): void {
    const inOrder = matching("adamW: gradients", gradients, this.parameters);
    checkOptions("adamW.step", options, { learningRate: true, gradientScale: true });
    const { learningRate = this.#options.learningRate, gradientScale } = options;
    const parameters = listOf(this.parameters);
    const copies = parameters.map((parameter) => (parameter.dtype === "float32" ? null : parameter));
    this.#follow();
    this.#update(
      listOf(this.masters),
      inOrder,
      listOf(this.firstMoments),
      listOf(this.secondMoments),
      copies,
      learningRate,
      gradientScale === undefined ? null : gradientScale,
    );
    for (const parameter of parameters) noteWrite(parameter, true);
    this.#writes = this.#countWrites();
    this.#steps++;
  }

  /** Frees the moments and master weights; parameters are the caller's. Twice is harmless. */
  dispose(): void {
    for (const tensor of this.#owned) tensor.dispose();
    this.#owned = [];
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** But for steps, of this and of others: their parameters may be neighbours in memory. */
  #countWrites() {
    const writes = (tensor: Tensor) => writesOf(tensor).count - writesOf(tensor).steps;
    const masters = listOf(this.masters);
    return listOf(this.parameters).map((parameter, at) => ({
      parameter: writes(parameter),
      master: writes(masters[at] as Tensor),
    }));
  }

  /** A parameter that was written since, and its master not, is what that begins from, as at the start. */
  #follow(): void {
    const [parameters, masters] = [listOf(this.parameters), listOf(this.masters)];
    for (const [at, now] of this.#countWrites().entries()) {
      const before = this.#writes[at];
      const [parameter, master] = [parameters[at] as Tensor, masters[at] as Tensor];
      if (master === parameter || now.parameter === before?.parameter || now.master !== before?.master)
        continue;
      native.copy(handleOf(parameter, "adamW: a parameter"), handleOf(master, "adamW: a master"));
    }
  }

  #update(
    masters: readonly Tensor[],
    gradients: readonly Tensor[],
    firstMoments: readonly Tensor[],
    secondMoments: readonly Tensor[],
    copies: readonly (Tensor | null)[],
    learningRate: number,
    gradientScale: Tensor | null,
  ): void {
    const { betas, epsilon, weightDecay } = this.#options;
    const numbers = { learningRate, "betas[0]": betas[0], "betas[1]": betas[1], epsilon, weightDecay };
    for (const [name, value] of Object.entries(numbers)) {
      if (typeof value !== "number") throw wrongKind(`adamW: ${name}`, "a number", value);
    }
    const handles = (tensors: readonly Tensor[], what: string) =>
      tensors.map((tensor) => handleOf(tensor, `adamW: ${what}`));
    native.adamW(
      handles(masters, "a parameter"),
      handles(gradients, "a gradient"),
      handles(firstMoments, "a moment"),
      handles(secondMoments, "a moment"),
      copies.map((copy) => copy && handleOf(copy, "adamW: a parameter")),
      this.#steps + 1,
      learningRate,
      betas[0],
      betas[1],
      epsilon,
      weightDecay,
      gradientScale && handleOf(gradientScale, "adamW: gradientScale"),
    );
  }

  /** No scope's, from here on. */
  #own(tensor: Tensor): Tensor {
    Scope.current?.disown(tensor);
    this.#owned.push(tensor);
    return tensor;
  }
}

const listOf = (group: TensorGroup) => tensorsOf("adamW", group);

function isFloat({ dtype }: Tensor): boolean {
  return dtype === "float32" || dtype === "bfloat16" || dtype === "float16";
}

/** A copy that no tape notes. */
function master(parameter: Tensor): Tensor {
  const { shape, device } = parameter;
  const made = Tensor.empty(shape, { device });
  native.copy(handleOf(parameter, "adamW: a parameter"), handleOf(made, "master"));
  return made;
}
