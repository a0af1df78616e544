// Where a rank's rows stand, for rotary embeddings and for learned ones.
import type { Device } from "../device.ts";
import { failure, wrongKind } from "../errors.ts";
import type { Piece } from "../ops/attention-options.ts";
import { embedding } from "../ops/embedding.ts";
import type { SequenceShard } from "../parallel/shard.ts";
import type { PositionEmbedding } from "../parallel/strategy.ts";
import { Tensor } from "../tensor.ts";

/** What of a layer's options says where rows stand. */
interface PositionOptions {
  cuSeqlens?: Int32Array | readonly number[];
  resetPositions?: boolean;
}

/** Each rank holds all positions. */
export const positionTable: PositionEmbedding = {
  held: (count) => ({ begin: 0, end: count }),
  rows: (table, count, positionsOf, batch, options) => {
    const positions = positionsOf();
    const most = positions.reduce((a, b) => Math.max(a, b), -1);
    if (most >= count) {
      throw failure("ERR_OPTION", `gpt: a row is at position ${most}, expected 0 to ${count - 1}`);
    }
    const indices = new Int32Array(batch * positions.length);
    for (let row = 0; row < batch; row++) indices.set(positions, row * positions.length);
    const { device } = table;
    return embedding(table, Tensor.from(indices, [batch, positions.length], { device }), options);
  },
};

/** For `rotaryEmbedding`: pieces, or with documents of their own positions a tensor [rows]. */
export function rowPositions(
  shard: SequenceShard,
  options: PositionOptions,
  device: Device,
): readonly Piece[] | Tensor {
  if (!isReset(options)) return shard.pieces;
  return Tensor.from(positionsOf(shard, options), [shard.size], { device });
}

export function positionsOf(shard: SequenceShard, options: PositionOptions): Int32Array {
  return isReset(options) ? shard.positions(options.cuSeqlens) : shard.positions();
}

/** Positions that begin anew need documents to begin with. */
export function checkReset(what: string, { cuSeqlens, resetPositions = false }: PositionOptions): void {
  if (typeof resetPositions !== "boolean")
    throw wrongKind(`${what}: resetPositions`, "a boolean", resetPositions);
  if (resetPositions && cuSeqlens === undefined)
    throw failure("ERR_OPTION", `${what}: resetPositions is given without cuSeqlens, whose documents count`);
}

function isReset({ cuSeqlens, resetPositions = false }: PositionOptions): boolean {
  return resetPositions && cuSeqlens !== undefined;
}
