// The transformer layer, once for every way of splitting it over ranks.
import { checkpointed, type KeepForAgain } from "../checkpoint.ts";
import { checkOptions, failure, wrongKind } from "../errors.ts";
import { checkSameShape } from "../layout.ts";
import { activated } from "../ops/activation.ts";
import { type KeepAttention, keptOptions } from "../ops/attention-options.ts";
import { add } from "../ops/elementwise.ts";
import { rotaryEmbeddingInPlace } from "../ops/position.ts";
import { split } from "../ops/split.ts";
import type { ShardedAttentionOptions, Strategy } from "../parallel/strategy.ts";
import { savedAs } from "../recipe.ts";
import { Scope } from "../scope.ts";
import { handleOf, type Tensor } from "../tensor.ts";
import type { Tensors } from "../tensor-group.ts";
import { tiled } from "../tiled.ts";
import { asContiguous } from "../view.ts";
import { BoundParameters, checkGradients } from "./bound.ts";
import {
  checkHeads,
  type LayerConfiguration,
  type LayerOptions,
  layerConfiguration,
  oneOf,
} from "./configuration.ts";
import {
  type LayerForwardOptions,
  layerForwardOptionNames,
  type ModuleOptions,
  moduleOptionNames,
} from "./layer-options.ts";
import { checkPlacement, layerParameters } from "./parameters.ts";
import { checkReset, rowPositions } from "./position.ts";
import { checkpointAroundAttention, type Recompute, recomputes } from "./recompute.ts";
import { givenOrInitial } from "./shares.ts";

/**
 * A layer of a transformer, of GPT's kind or Llama's, with the norms before the branches:
 *
 *     a = x + attention(rotary(q), rotary(k), v) proj^T      [q, k, v] = norm(x) qkv^T
 *     y = a + act(norm(a) up^T) down^T                       act: gelu, or silu(norm(a) gate^T) times its argument
 *
 * It is written once, for the strategy's rows, and what it gives are rows of what `serial` gives. Differentiable on a
 * `Tape`, in x and in the parameters that the tape watches.
 *
 * @example
 * const layer = new TransformerLayer({ kind: "llama", hidden: 64, heads: 4, keyValueHeads: 2 }, serial(128));
 * const x = Tensor.normal([1, 128, 64]);
 * using tape = new Tape();
 * const weight = layer.parameters["qkv.weight"] as Tensor;
 * tape.watch(x, weight);
 * const y = layer.forward(x);
 * const [dx, dweight] = tape.backward(y, Tensor.normal(y.shape, { seed: 1 }), [x, weight]);
 * dweight?.shape; // [128, 64]
 */
export class TransformerLayer implements Disposable {
  readonly configuration: Readonly<LayerConfiguration>;
  readonly strategy: Strategy;
  /** This rank's share of each, by the names of `layerParameters`. */
  readonly parameters: Tensors;
  readonly #owned: readonly Tensor[];
  readonly #recompute: Recompute;
  readonly #mlpTiles: number;

  /**
   * @param options its shape; each rank gives the same.
   * @param strategy how the sequence, heads and columns are split over ranks.
   * @throws `ERR_OPTION` for options that cannot be, heads of a size that attention refuses, or a parameter that is
   * missing; `ERR_SHAPE` for one of another shape; `ERR_DTYPE`, `ERR_DEVICE`, `ERR_OUT_OF_MEMORY`.
   */
  constructor(options: LayerOptions, strategy: Strategy, module: ModuleOptions = {}) {
    this.configuration = layerConfiguration("transformerLayer", options);
    checkHeads("transformerLayer", this.configuration);
    checkOptions("transformerLayer: module", module, moduleOptionNames);
    const { recompute = "pointwise", mlpTiles = 1, ...given } = module;
    this.#recompute = oneOf("transformerLayer", "recompute", recompute, recomputes);
    checkPlacement("transformerLayer: strategy", strategy);
    this.strategy = strategy;
    this.#mlpTiles = checkedTiles(mlpTiles, strategy);
    const table = layerParameters(options);
    this.parameters = givenOrInitial("transformerLayer", table, strategy, given);
    this.#owned = given.parameters ? [] : Object.values(this.parameters);
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
   * @param x [B, S of the strategy's shard, h], of the parameters' dtype.
   * @returns of x's shape and dtype.
   * @throws `ERR_SHAPE`, `ERR_DTYPE` for another x; the errors of `attention` for its options; `ERR_DEVICE`,
   * `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`, `ERR_COMM`.
   * @example
   * const layer = new TransformerLayer({ hidden: 64, heads: 4 }, serial(128), { dtype: "bfloat16" });
   * const y = layer.forward(Tensor.normal([2, 128, 64], { dtype: "bfloat16" }), { window: [32, 0] });
   */
  forward(x: Tensor, options: LayerForwardOptions = {}): Tensor {
    checkOptions("transformerLayer", options, layerForwardOptionNames);
    this.#check(x, options);
    const names = Object.keys(this.parameters);
    const { alibiSlopes, ...others } = options;
    let rule: LayerForwardOptions = others;
    const keep: KeepForAgain = (save, hold) => {
      const sums = Object.entries(others.gradients ?? {}).map(([name, sum]) => [name, hold(sum)] as const);
      rule = { ...keptOptions(others, save, hold), gradients: Object.fromEntries(sums) };
    };
    /** Of tensors alone, and the rule, so that it can be made again. */
    const work = (kept: KeepAttention | undefined, [x, ...given]: readonly Tensor[]) => {
      const parameters = Object.fromEntries(names.map((name, at) => [name, given[at] as Tensor]));
      const slopes = given[names.length];
      return this.#layer(x as Tensor, parameters, { ...rule, ...(slopes && { alibiSlopes: slopes }) }, kept);
    };
    const inputs = [x, ...Object.values(this.parameters), ...(alibiSlopes ? [alibiSlopes] : [])];
    switch (this.#recompute) {
      case "full":
        return checkpointed((...given) => work(undefined, given), inputs, keep);
      case "attention":
        return checkpointAroundAttention((kept, ...given) => work(kept, given), inputs, keep);
      case "none":
      case "pointwise":
        return Scope.run(() => work(undefined, inputs));
    }
  }

  /** As the paper has it. */
  #layer(x: Tensor, parameters: Tensors, options: LayerForwardOptions, keep?: KeepAttention): Tensor {
    const { strategy } = this;
    const bound = new BoundParameters(this.configuration, parameters, options.gradients);

    // Scopes of their own: what one branch leaves to nobody makes room for the other.
    const { out: normed, sum } = Scope.run(() => {
      const entering = this.#light(bound.norm("input_norm", x), ...bound.normOf("input_norm", x));
      const packed = strategy.enter(entering, ...bound.product("qkv"));
      const [q, k, v] = this.#heads(packed, options);
      const attended = strategy.attend(q, k, v, this.#attentionOptions(options), keep);
      const projected = strategy.leave(columnsOf(attended), ...bound.product("proj"));
      return bound.addNorm("mlp_norm", projected, x);
    });
    const made = Scope.run(() => this.#mlp(this.#light(normed, ...bound.normOf("mlp_norm", sum)), bound));
    return add(sum, made);
  }

  /** Has the tape keep what y is made of in one pass, and not y. */
  #light<Sources extends Tensor[]>(
    y: Tensor,
    make: (...sources: Sources) => Tensor,
    ...sources: Sources
  ): Tensor {
    return this.#recompute === "none" ? y : savedAs(y, sources, make);
  }

  #mlp(x: Tensor, bound: BoundParameters): Tensor {
    const { strategy } = this;
    const { activation } = this.configuration;
    const work = (rows: Tensor, weights: BoundParameters) => {
      // One product for gate and up, for which the rows are gathered once.
      const entered = strategy.enter(
        rows,
        ...weights.product(activation === "gelu" ? "mlp_up" : "mlp_gate_up"),
      );
      // The tape has its own of them.
      rows.dispose();
      const [weight, bias, options] = weights.product("mlp_down");
      return this.#recompute === "none"
        ? strategy.leave(activated(activation, entered), weight, bias, options)
        : strategy.leave(entered, weight, bias, { ...options, activation });
    };
    if (this.#mlpTiles === 1) return work(x, bound);
    const [names, tensors] = bound.ofMlp();
    return tiled((rows, ...given) => work(rows, bound.with(names, given)), x, this.#mlpTiles, ...tensors);
  }

  /** [B, S, (Hq + 2 Hkv) D] of this rank's heads as q, k and v, views of it: what is turned is turned in place. */
  #heads(packed: Tensor, options: LayerForwardOptions): [q: Tensor, k: Tensor, v: Tensor] {
    const { headDim, rotary } = this.configuration;
    const { query, keyValue } = this.#held();
    const sizes = [query, keyValue, keyValue].map(({ begin, end }) => end - begin);
    const [batch = 0, rows = 0, columns = 0] = packed.shape;
    const heads = packed.reshape([batch, rows, columns / headDim, headDim]);
    const [q, k, v] = split(heads, 2, sizes) as [Tensor, Tensor, Tensor];
    if (rotary === null) return [q, k, v];
    const turned = { ...rotary, positions: rowPositions(this.strategy.inner, options, packed.device) };
    return [rotaryEmbeddingInPlace(q, turned), rotaryEmbeddingInPlace(k, turned), v];
  }

  #held() {
    return this.strategy.heads(this.configuration.heads, this.configuration.keyValueHeads);
  }

  /** Those of attention among a layer's. */
  #attentionOptions(options: LayerForwardOptions): ShardedAttentionOptions {
    const { resetPositions, gradients, alibiSlopes, causal = true, ...others } = options;
    const { query } = this.#held();
    return {
      ...others,
      causal,
      ...(alibiSlopes && { alibiSlopes: alibiSlopes.slice(0, query.begin, query.end) }),
    };
  }

  #check(x: Tensor, options: LayerForwardOptions): void {
    const { alibiSlopes, gradients = {} } = options;
    handleOf(x, "transformerLayer: x");
    const { hidden, heads } = this.configuration;
    const { size } = this.strategy.shard;
    const { shape, dtype } = x;
    if (shape.length !== 3 || shape[1] !== size || shape[2] !== hidden) {
      throw failure(
        "ERR_SHAPE",
        `transformerLayer: x has the shape [${shape.join(", ")}], expected [B, ${size}, ${hidden}]`,
      );
    }
    const expected = this.parameters["qkv.weight"]?.dtype;
    if (dtype !== expected) {
      throw failure("ERR_DTYPE", `transformerLayer: x is ${dtype}, expected ${expected} (the parameters')`);
    }
    checkReset("transformerLayer", options);
    checkGradients("transformerLayer", this.parameters, gradients);
    if (alibiSlopes === undefined) return;
    handleOf(alibiSlopes, "transformerLayer: alibiSlopes");
    checkSameShape("transformerLayer: alibiSlopes", alibiSlopes.shape, [heads]);
  }
}

function checkedTiles(tiles: number, { name, shard, inner }: Strategy): number {
  if (typeof tiles !== "number") throw wrongKind("transformerLayer: mlpTiles", "a number", tiles);
  if (!Number.isSafeInteger(tiles) || tiles < 1) {
    throw failure("ERR_OPTION", `transformerLayer: mlpTiles is ${tiles}, expected an integer of 1 or more`);
  }
  if (tiles > 1 && (name === "megatron" || inner.size !== shard.size)) {
    throw failure(
      "ERR_OPTION",
      `transformerLayer: mlpTiles is ${tiles}, expected 1 (the strategy is ${name})`,
    );
  }
  return tiles;
}

/** [B, S, H, D] as [B, S, H D]. */
function columnsOf(heads: Tensor): Tensor {
  const [batch = 0, rows = 0, count = 0, size = 0] = heads.shape;
  return asContiguous(heads).reshape([batch, rows, count * size]);
}
