// A GPT: the token embedding, layers, and the loss, for the rows of the sequence that a rank holds.
import { checkOptions, failure, type OptionNames } from "../errors.ts";
import { add } from "../ops/elementwise.ts";
import { embedding } from "../ops/embedding.ts";
import { linear } from "../ops/linear.ts";
import { linearCrossEntropy } from "../ops/linear-cross-entropy.ts";
import { crossEntropyForward } from "../ops/loss.ts";
import type { Strategy } from "../parallel/strategy.ts";
import { Scope } from "../scope.ts";
import { record } from "../tape.ts";
import { handleOf, Tensor } from "../tensor.ts";
import type { Tensors } from "../tensor-group.ts";
import { referenceTo } from "../view.ts";
import { BoundParameters, checkGradients } from "./bound.ts";
import { type GptConfiguration, type GptOptions, gptConfiguration } from "./configuration.ts";
import { TransformerLayer } from "./layer.ts";
import {
  type LayerForwardOptions,
  layerForwardOptionNames,
  type ModuleOptions,
  moduleOptionNames,
} from "./layer-options.ts";
import { checkPlacement, gptParameters } from "./parameters.ts";
import { positionsOf, positionTable } from "./position.ts";
import { givenOrInitial } from "./shares.ts";

/** How a model's layers look at the sequence, and which targets count. */
export interface GptLossOptions extends LayerForwardOptions {
  /** Targets that count for nothing. Default: -100. */
  ignoreIndex?: number;
}

const lossOptionNames: OptionNames<GptLossOptions> = { ...layerForwardOptionNames, ignoreIndex: true };

/**
 * A language model of GPT's kind (Radford et al., 2019) or Llama's (Touvron et al., 2023):
 *
 *     x = embedding(tokens) + positions      x = layer(x), L times      logits = norm(x) head^T
 *
 * The head is the embedding where those are tied, and positions are added where the layers are not rotary. Each rank
 * gives the tokens of its rows and gets what it gives of them; `serial` is one rank that has all. Differentiable on a
 * `Tape`, in the parameters that the tape watches.
 *
 * @example
 * const options = { hidden: 64, heads: 4, layers: 2, vocabulary: 100, maxPositions: 128 };
 * const model = new GPT(options, serial(128), { seed: 1 });
 * const tokens = Int32Array.from({ length: 129 }, (_, i) => (i * i) % 100);
 * const { shard } = model.strategy;
 * using tape = new Tape();
 * tape.watch(model.parameters);
 * const loss = model.loss(
 *   Tensor.from(shard.takeValues(tokens.subarray(0, 128)), [1, shard.size]),
 *   Tensor.from(shard.labels(tokens), [1, shard.size]),
 * );
 * const gradients = tape.backward(loss, Tensor.from([1], []), model.parameters);
 * new AdamW(model.parameters, { learningRate: 1e-3 }).step(gradients);
 */
export class GPT implements Disposable {
  readonly configuration: Readonly<GptConfiguration>;
  readonly strategy: Strategy;
  /** This rank's share of each, by the names of `gptParameters`. */
  readonly parameters: Tensors;
  readonly #owned: readonly Tensor[];
  readonly #layers: readonly TransformerLayer[];

  /**
   * @param options its shape, such as one of `presets`; each rank gives the same.
   * @param strategy how the sequence, heads and columns are split over ranks.
   * @throws the errors of `TransformerLayer`.
   * @example
   * const options = { hidden: 64, heads: 4, layers: 1, vocabulary: 100 };
   * const model = new GPT(options, serial(128));
   * // The same model for another length: it shares the parameters, and takes no memory of its own.
   * const { parameters } = model;
   * new GPT(options, serial(3), { parameters }).logits(Tensor.from(Int32Array.of(5, 6, 7), [1, 3])).shape; // [1, 3, 100]
   */
  constructor(options: GptOptions, strategy: Strategy, module: ModuleOptions = {}) {
    this.configuration = gptConfiguration("gpt", options);
    checkOptions("gpt: module", module, moduleOptionNames);
    const { recompute = "pointwise", mlpTiles = 1, ...given } = module;
    checkPlacement("gpt: strategy", strategy);
    this.strategy = strategy;
    const table = gptParameters(options);
    this.parameters = givenOrInitial("gpt", table, strategy, given);
    this.#owned = given.parameters ? [] : Object.values(this.parameters);
    try {
      this.#layers = Array.from({ length: this.configuration.layers }, (_, at) => {
        const own = within(`layers.${at}.`, this.parameters);
        return new TransformerLayer(options, strategy, { parameters: own, recompute, mlpTiles });
      });
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** Frees the parameters, if they are of its making; those that it was given are the caller's. Twice is harmless. */
  dispose(): void {
    for (const tensor of this.#owned) tensor.dispose();
  }

  /** As `dispose`. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  /**
   * The scores of each next token.
   *
   * @param tokens [B, S of the strategy's shard] int32; one outside [0, V) makes its sequence's results NaN.
   * @returns [B, S of the shard, V], of the parameters' dtype.
   * @throws `ERR_SHAPE`, `ERR_DTYPE` for other tokens; `ERR_OPTION` for a row beyond the learned positions; the errors of
   * `TransformerLayer.forward`.
   * @example
   * const model = new GPT({ hidden: 64, heads: 4, layers: 1, vocabulary: 100 }, serial(3));
   * model.logits(Tensor.from(Int32Array.of(5, 6, 7), [1, 3])).shape; // [1, 3, 100]
   */
  logits(tokens: Tensor, options: LayerForwardOptions = {}): Tensor {
    return Scope.run(() => {
      checkOptions("gpt", options, layerForwardOptionNames);
      this.#check("tokens", tokens);
      const x = this.#hidden(tokens, options);
      const { weight, sum } = this.#head(options);
      return linear(x, weight, undefined, sum && { dweight: sum });
    });
  }

  /**
   * The mean over all ranks' targets of the cross entropy, without the logits of all rows in memory. All ranks get the
   * same number, and what each rank's tape gives for it are its shares of the gradients (see `SharedParameters`).
   *
   * @param tokens as of `logits`.
   * @param targets [B, S of the shard] int32, as `SequenceShard.labels` gives them: shifted before the split.
   * @returns [] float32.
   * @throws the errors of `logits` and `linearCrossEntropy`.
   * @example
   * const model = new GPT({ hidden: 64, heads: 4, layers: 1, vocabulary: 100 }, serial(3));
   * const [tokens, targets] = [Int32Array.of(5, 6, 7), Int32Array.of(6, 7, -100)];
   * const loss = model.loss(Tensor.from(tokens, [1, 3]), Tensor.from(targets, [1, 3]));
   * loss.shape; // []
   */
  loss(tokens: Tensor, targets: Tensor, options: GptLossOptions = {}): Tensor {
    const { strategy } = this;
    return Scope.run(() => {
      checkOptions("gpt", options, lossOptionNames);
      const { ignoreIndex = -100, ...forward } = options;
      this.#check("tokens", tokens);
      this.#check("targets", targets, tokens.shape[0]);
      const count = strategy.sum(counted(targets, ignoreIndex));
      const x = this.#hidden(tokens, forward);
      const { weight, sum } = this.#head(forward);
      const given = { ignoreIndex, count, ...(sum && { dweight: sum }) };
      const own = linearCrossEntropy(x, weight, targets, given);
      const total = referenceTo(strategy.sum(own));
      // The other ranks' terms have their gradients on their tapes.
      return record("loss", [total], [own], () => ([dloss]) => [dloss]);
    });
  }

  #hidden(tokens: Tensor, options: LayerForwardOptions): Tensor {
    const { parameters } = this;
    const { gradients = {}, ...forward } = options;
    checkGradients("gpt", parameters, gradients);
    const rows = (name: string) => {
      const dtable = gradients[name];
      return [parameters[name] as Tensor, dtable ? { dtable } : {}] as const;
    };
    const [table, summed] = rows("embedding.weight");
    let x = embedding(table, tokens, summed);
    const { maxPositions } = this.configuration;
    if (maxPositions > 0) {
      const [learned, options] = rows("position.weight");
      const { shard, positions = positionTable } = this.strategy;
      const stand = (rank = shard.rank) => positionsOf(shard.of(rank), forward);
      x = add(x, positions.rows(learned, maxPositions, stand, tokens.shape[0] ?? 0, options));
    }
    for (const [at, layer] of this.#layers.entries()) {
      x = layer.forward(x, { ...forward, gradients: within(`layers.${at}.`, gradients) });
    }
    return new BoundParameters(this.configuration, parameters, gradients).norm("final_norm", x);
  }

  #head({ gradients = {} }: LayerForwardOptions): { weight: Tensor; sum: Tensor | undefined } {
    const name = this.configuration.tiedEmbeddings ? "embedding.weight" : "head.weight";
    return { weight: this.parameters[name] as Tensor, sum: gradients[name] };
  }

  #check(name: string, x: Tensor, batch?: number): void {
    handleOf(x, `gpt: ${name}`);
    const { size } = this.strategy.shard;
    const { shape, dtype, device } = x;
    if (shape.length !== 2 || shape[0] !== (batch ?? shape[0]) || shape[1] !== size) {
      const expected = `[${batch ?? "B"}, ${size}]`;
      throw failure("ERR_SHAPE", `gpt: ${name} has the shape [${shape.join(", ")}], expected ${expected}`);
    }
    if (dtype !== "int32") throw failure("ERR_DTYPE", `gpt: ${name} is ${dtype}, expected int32`);
    const table = this.parameters["embedding.weight"] as Tensor;
    handleOf(table, "gpt: a parameter");
    if (device !== table.device)
      throw failure("ERR_DEVICE", `gpt: ${name} is on another device than the parameters`);
  }
}

/** Those whose names begin so, by the rest of these. */
function within(prefix: string, tensors: Tensors): Tensors {
  const entries = Object.entries(tensors).filter(([name]) => name.startsWith(prefix));
  return Object.fromEntries(entries.map(([name, tensor]) => [name.slice(prefix.length), tensor]));
}

/** The targets that are not ignored, [] float32: cross entropy counts them, whatever the logits are. */
function counted(targets: Tensor, ignoreIndex: number): Tensor {
  const logits = Tensor.zeros([...targets.shape, 1], { device: targets.device });
  return crossEntropyForward(logits, targets, { ignoreIndex, reduction: "sum" }).count;
}
