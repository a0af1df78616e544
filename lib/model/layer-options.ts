// What a layer or model is made with beside its shape, and how it is called.
import type { OptionNames } from "../errors.ts";
import { type ShardedAttentionOptions, shardedAttentionOptionNames } from "../parallel/strategy.ts";
import type { Tensors } from "../tensor-group.ts";
import { type TensorOptions, tensorOptionNames } from "../tensor-options.ts";
import type { RecomputeOptions } from "./recompute.ts";

/** Where a layer's or model's parameters come from. */
export interface ModuleOptions extends RecomputeOptions, TensorOptions {
  /** This rank's shares, as `initialParameters` or `shareParameters` give them; they stay the caller's. */
  parameters?: Tensors;
  /** Of the parameters, where none are given. Default: 0. */
  seed?: number;
}

export const moduleOptionNames: OptionNames<ModuleOptions> = {
  ...tensorOptionNames,
  recompute: true,
  mlpTiles: true,
  parameters: true,
  seed: true,
};

/** How a layer's attention looks at the sequence. Boundaries, masks and slopes are those of the whole of it. */
export interface LayerForwardOptions extends ShardedAttentionOptions {
  /** Default, other than attention's: true. */
  causal?: boolean;
  /** Rotary and learned positions begin anew with each document of cuSeqlens. Default: false. */
  resetPositions?: boolean;
  /**
   * Tensors of the parameters' names and shapes, float32 or their dtype: the backward pass adds the gradients to these, and
   * those on the tape are zeros. They are needed until the backward pass has been called.
   */
  gradients?: Tensors;
}

export const layerForwardOptionNames: OptionNames<LayerForwardOptions> = {
  ...shardedAttentionOptionNames,
  resetPositions: true,
  gradients: true,
};
