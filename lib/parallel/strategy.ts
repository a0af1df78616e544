// How a layer is split over ranks: a few moves around a layer that is written once.
import { checkOptions, type OptionNames, wrongKind } from "../errors.ts";
import { type ActivatedLinearOptions, activatedLinear } from "../ops/activated-linear.ts";
import { keptAttention } from "../ops/attention.ts";
import { type AttentionOptions, attentionOptionNames, type KeepAttention } from "../ops/attention-options.ts";
import type { EmbeddingOptions } from "../ops/embedding.ts";
import { type LinearOptions, linear } from "../ops/linear.ts";
import type { Tensor } from "../tensor.ts";
import { Communicator } from "./communicator.ts";
import { SequenceShard } from "./shard.ts";

/** From `begin` to before `end`. */
export interface Range {
  begin: number;
  end: number;
}

/** Attention's options but for what a strategy gives itself: where its rows stand. */
export type ShardedAttentionOptions = Omit<
  AttentionOptions,
  "queryPositions" | "keyPositions" | "outDtype" | "cuSeqlensKeys"
>;

const { queryPositions, keyPositions, outDtype, cuSeqlensKeys, ...names } = attentionOptionNames;
export const shardedAttentionOptionNames: OptionNames<ShardedAttentionOptions> = names;

/**
 * What a layer asks of the ranks that share its sequence. On every rank the same calls are made in the same order.
 * `serial` is the definition that all others must equal.
 */
export interface Strategy {
  readonly name: "serial" | "megatron" | "ulysses" | "ring" | "zigzag" | "hybrid";
  /** The rows of the hidden state [B, S, h] that this rank holds. */
  readonly shard: SequenceShard;
  /** The rows that `enter` gives and `leave` takes, of which `attend` gets q, k and v: the shard, or all of them. */
  readonly inner: SequenceShard;
  /** Of a layer's heads, those whose weights this rank holds. */
  heads(queryHeads: number, keyValueHeads: number): { query: Range; keyValue: Range };
  /** Of so many feed-forward columns, those whose weights this rank holds. */
  columns(count: number): Range;
  /** x weight^T + bias. x: [B, S of shard, h], weight: [its share of O, h]; gives [B, S of inner, share of O]. */
  enter(x: Tensor, weight: Tensor, bias?: Tensor, options?: LinearOptions): Tensor;
  /**
   * x weight^T + bias, or that of x's activation. x: [B, S of inner, share of I], weight: [h, share of I], bias: [h]; gives
   * [B, S of shard, h].
   */
  leave(x: Tensor, weight: Tensor, bias?: Tensor, options?: ActivatedLinearOptions): Tensor;
  /**
   * Over the whole sequence. q, k, v: [B, S of inner, H, D]; cuSeqlens and mask are those of the whole sequence,
   * alibiSlopes those of the heads held. What is to be kept for a recomputation goes through `keep`.
   */
  attend(q: Tensor, k: Tensor, v: Tensor, options?: ShardedAttentionOptions, keep?: KeepAttention): Tensor;
  /** The sum over all ranks of what each has, on every rank. Not noted on a tape. */
  sum(x: Tensor): Tensor;
  /** How a model's learned positions are held. Without it, each rank holds all of them. */
  readonly positions?: PositionEmbedding;
}

/** Learned positions: a vector for each, of which a rank needs those of its rows. */
export interface PositionEmbedding {
  /** Of so many positions, those whose vectors this rank holds. */
  held(count: number): Range;
  /**
   * @param table the vectors held.
   * @param count of all positions.
   * @param positionsOf those of a rank's rows, or of this rank's.
   * @returns [batch, rows, h]; differentiable in the table.
   */
  rows(
    table: Tensor,
    count: number,
    positionsOf: (rank?: number) => Int32Array,
    batch: number,
    options: EmbeddingOptions,
  ): Tensor;
}

/**
 * One rank that holds everything.
 *
 * @param length tokens of the sequence.
 * @throws `ERR_SHAPE` where the length is not 0 to 2,147,483,647.
 * @example
 * serial(128).shard.size; // 128
 */
export function serial(length: number): Strategy {
  const whole = SequenceShard.whole(length);
  return {
    name: "serial",
    ...replicated(whole, (x) => x),
    attend: attendHere,
  };
}

/** Attention of a rank that has all rows of the heads it is given. */
export const attendHere: Strategy["attend"] = (q, k, v, options = {}, keep = (forward) => forward()) => {
  checkAttend(options, keep);
  return keptAttention(q, k, v, options, keep);
};

export function checkAttend(options: ShardedAttentionOptions, keep: KeepAttention): void {
  checkOptions("attend", options, shardedAttentionOptionNames);
  if (typeof keep !== "function") throw wrongKind("attend: keep", "a function", keep);
}

export function checkCommunicator(what: string, communicator: Communicator): void {
  if (!(communicator instanceof Communicator))
    throw wrongKind(`${what}: communicator`, "a Communicator", communicator);
}

/** Of the strategies that leave the products alone: each rank holds all weights, and its rows. */
export function replicated(shard: SequenceShard, sum: Strategy["sum"]): Omit<Strategy, "name" | "attend"> {
  return {
    shard,
    inner: shard,
    heads: (queryHeads, keyValueHeads) => ({
      query: { begin: 0, end: queryHeads },
      keyValue: { begin: 0, end: keyValueHeads },
    }),
    columns: (count) => ({ begin: 0, end: count }),
    enter: linear,
    leave: activatedLinear,
    sum,
  };
}
