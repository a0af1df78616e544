// What one rank does of a layer's or a model's pass, with everything made beforehand that does not belong to it.
import {
  GPT,
  gptParameters,
  initialParameters,
  type LayerForwardOptions,
  layerParameters,
  Scope,
  Tape,
  Tensor,
  type Tensors,
  TransformerLayer,
  visiblePairs,
} from "../../index.ts";
import type { Rank } from "../rank-group.ts";
import type { ModelPass } from "./flops.ts";
import type { ModelSettings } from "./model-settings.ts";
import { documentBoundaries } from "./problem.ts";
import type { RankProgram } from "./ranked-contender.ts";
import type { floatTypes } from "./settings.ts";

export interface ModelProblem {
  readonly settings: ModelSettings;
  readonly dtype: (typeof floatTypes)[number];
  readonly seqLen: number;
}

/** Its tensors in a plain object: a scope around its making knows them. */
interface Prepared {
  readonly parameters: Tensors;
  /** Where the gradients are added; none where only the forward pass is run. */
  readonly gradients: Tensors;
  /** What else is made beforehand, that gradients are wanted of. */
  readonly inputs: readonly Tensor[];
  readonly others: readonly Tensor[];
  /** The gradient of what `forward` gives. */
  readonly gradient: Tensor;
  readonly forward: () => Tensor;
}

export class ModelProgram implements RankProgram {
  readonly #prepared: Prepared;
  readonly #pass: ModelPass;
  #tape: Tape | undefined;
  #output: Tensor | undefined;

  constructor(problem: ModelProblem, rank: Rank) {
    this.#pass = problem.settings.pass;
    const prepare = problem.settings.what === "layer" ? prepareLayer : prepareModel;
    this.#prepared = Scope.run(() => prepare(problem, rank));
  }

  begin(): () => void {
    if (this.#pass === "forward") return () => this.#prepared.forward().dispose();
    if (this.#pass === "backward") this.#record();
    return () => {
      if (this.#pass === "both") this.#record();
      this.#differentiate();
    };
  }

  #record(): void {
    const { parameters, inputs, forward } = this.#prepared;
    this.#tape = new Tape();
    this.#tape.watch(inputs, parameters);
    this.#output = forward();
  }

  #differentiate(): void {
    if (!this.#tape || !this.#output) throw new Error("backward without a forward pass");
    const { gradient, inputs } = this.#prepared;
    for (const tensor of this.#tape.backward(this.#output, gradient, inputs)) tensor.dispose();
    this.#forget();
  }

  #forget(): void {
    this.#tape?.dispose();
    this.#output?.dispose();
    this.#tape = undefined;
    this.#output = undefined;
  }

  [Symbol.dispose](): void {
    this.#forget();
    const { parameters, gradients, inputs, others, gradient } = this.#prepared;
    const held = [...Object.values(parameters), ...Object.values(gradients), ...inputs, ...others, gradient];
    for (const tensor of held) tensor.dispose();
  }
}

function prepareLayer(problem: ModelProblem, { strategy, device }: Rank): Prepared {
  const { settings, dtype } = problem;
  const { options, shape, batch, recompute, mlpTiles } = settings;
  const parameters = initialParameters(layerParameters(options), strategy, { dtype, device });
  const gradients = gradientsOf(settings, parameters);
  const layer = new TransformerLayer(options, strategy, { parameters, recompute, mlpTiles });
  const { rank, size } = strategy.shard;
  const rows = (seed: number) =>
    Tensor.normal([batch, size, shape.hidden], { dtype, device, seed: 2 * rank + seed });
  const [x, gradient] = [rows(1), rows(2)];
  const forward = { ...forwardOptions(problem), gradients };
  return {
    parameters,
    gradients,
    inputs: [x],
    others: [],
    gradient,
    forward: () => layer.forward(x, forward),
  };
}

function prepareModel(problem: ModelProblem, { strategy, device }: Rank): Prepared {
  const { settings, dtype, seqLen } = problem;
  const { shape, batch, recompute, mlpTiles } = settings;
  const options = { ...settings.options, maxPositions: seqLen };
  const parameters = initialParameters(gptParameters(options), strategy, { dtype, device });
  const gradients = gradientsOf(settings, parameters);
  const model = new GPT(options, strategy, { parameters, recompute, mlpTiles });
  const text = (length: number) =>
    Int32Array.from({ length: batch * length }, (_, at) => (7919 * at) % shape.vocabulary);
  const rows = (values: Int32Array) => Tensor.from(values, [batch, strategy.shard.size], { device });
  const tokens = rows(strategy.shard.takeValues(text(seqLen)));
  const targets = rows(strategy.shard.labels(text(seqLen + 1)));
  const forward = { ...forwardOptions(problem), gradients };
  return {
    parameters,
    gradients,
    inputs: [],
    others: [tokens, targets],
    gradient: Tensor.from([1], [], { device }),
    forward: () => model.loss(tokens, targets, forward),
  };
}

function gradientsOf({ pass, float32Gradients }: ModelSettings, parameters: Tensors): Tensors {
  if (pass === "forward") return {};
  const zeros = ({ shape, dtype, device }: Tensor) =>
    Tensor.zeros(shape, { dtype: float32Gradients ? "float32" : dtype, device });
  return Object.fromEntries(Object.entries(parameters).map(([name, tensor]) => [name, zeros(tensor)]));
}

function forwardOptions({ settings, seqLen }: ModelProblem): LayerForwardOptions {
  const { implementation, deterministic } = settings;
  return {
    ...visibility(settings, seqLen),
    ...(implementation ? { implementation } : {}),
    ...(deterministic ? { deterministic } : {}),
  };
}

function visibility({ causal, window, mask }: ModelSettings, seqLen: number) {
  return {
    causal,
    ...(window === undefined ? {} : { window: [window, causal ? 0 : window] as [number, number] }),
    ...(mask === "documents" ? { cuSeqlens: documentBoundaries(seqLen) } : {}),
  };
}

/** Which share of all pairs of a query and a key is visible: by convention exactly half for causal alone. */
export function visibleShareOf(settings: ModelSettings, seqLen: number): number {
  const { causal, window, mask } = settings;
  if (mask === "none" && window === undefined) return causal ? 0.5 : 1;
  const whole = [{ start: 0, length: seqLen }];
  return visiblePairs(whole, whole, visibility(settings, seqLen)) / seqLen ** 2;
}
