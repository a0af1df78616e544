// Which positions of a sequence a rank holds.
import { failure, wrongKind } from "../errors.ts";
import type { Piece } from "../ops/attention-options.ts";
import { rowsIn } from "../pieces.ts";
import { record } from "../tape.ts";
import { Tensor } from "../tensor.ts";
import { checkParts, checkRows, copyRows } from "./rows.ts";
import { checkedSplit, piecesOf, type Split } from "./split.ts";
import { type LabelOptions, labelsOf, positionsOf, tokensOf } from "./tokens.ts";

/**
 * The rows of a sequence that one of several ranks holds, for any length and any number of ranks: rows are never padded,
 * so sizes differ by a row or two, and a rank may hold none. Where each row stands, which token it is to foretell and
 * what it may see are those of the whole sequence: `pieces` are what attention and rotary embeddings take as positions,
 * and document boundaries (`cuSeqlens`) are always those of the whole. Immutable; holds no memory.
 *
 * @example
 * const shard = SequenceShard.zigzag(16, 4, 0);
 * shard.pieces; // [{"start":0,"length":2},{"start":14,"length":2}]
 *
 * @example
 * const [q, k] = [Tensor.normal([1, 1000, 4, 64], { seed: 1 }), Tensor.normal([1, 1000, 4, 64], { seed: 2 })];
 * const shard = SequenceShard.zigzag(1000, 3, 1);
 * const out = attention(shard.take(q), k, k, { causal: true, queryPositions: shard.pieces });
 * out.shape; // [1, 334, 4, 64]
 */
export class SequenceShard {
  /** "contiguous": a stretch each. "zigzag": of twice as many stretches, one from the front and one from the back. */
  readonly layout: "contiguous" | "zigzag";
  /** Of the whole sequence. */
  readonly length: number;
  readonly ranks: number;
  readonly rank: number;
  /** How many neighbouring ranks share a place of the layout, and cut its rows among them. */
  readonly portions: number;
  /** Ascending, none empty, no two touching: one for a stretch, or for two that neighbour each other. */
  readonly pieces: readonly Piece[];
  /** Rows held. */
  readonly size: number;

  private constructor(split: Split, rank: number) {
    this.layout = split.layout;
    this.length = split.length;
    this.ranks = split.ranks;
    this.portions = split.portions;
    this.rank = rank;
    this.pieces = piecesOf(split, rank);
    this.size = rowsIn(this.pieces);
  }

  /**
   * Of one rank that holds everything.
   *
   * @throws `ERR_SHAPE` where the length is not 0 to 2,147,483,647.
   * @example
   * SequenceShard.whole(8).pieces; // [{"start":0,"length":8}]
   */
  static whole(length: number): SequenceShard {
    return new SequenceShard(checkedSplit("SequenceShard.whole", "contiguous", length, 1, 0), 0);
  }

  /**
   * A stretch for each rank, in order, from rank length / ranks on, rounded down: sizes differ by 1 at most.
   *
   * @throws `ERR_SHAPE` where the length is not 0 to 2,147,483,647; `ERR_OPTION` where ranks is not 1 to 1,048,576, or rank
   * is none of these.
   * @example
   * SequenceShard.contiguous(10, 4, 1).pieces; // [{"start":2,"length":3}]
   */
  static contiguous(length: number, ranks: number, rank: number): SequenceShard {
    return new SequenceShard(
      checkedSplit("SequenceShard.contiguous", "contiguous", length, ranks, rank),
      rank,
    );
  }

  /**
   * Of 2 ranks stretches, rank r has number r and number 2 ranks - 1 - r, so that all have about the same work in causal
   * order (as in Llama 3; Grattafiori et al., 2024, section 3.3.2). Sizes differ by 2 at most. The last rank's stretches
   * touch, and are one piece.
   *
   * @param portions where neighbouring ranks share such a place, as in hybrid parallelism, how many: a divisor of ranks.
   * They cut its rows among them.
   * @throws the errors of `contiguous`.
   * @example
   * [0, 1].map((rank) => SequenceShard.zigzag(8, 2, rank).positions().join()); // ["0,1,6,7", "2,3,4,5"]
   * SequenceShard.zigzag(8, 4, 1, 2).positions(); // [6, 7]
   */
  static zigzag(length: number, ranks: number, rank: number, portions = 1): SequenceShard {
    return new SequenceShard(
      checkedSplit("SequenceShard.zigzag", "zigzag", length, ranks, rank, portions),
      rank,
    );
  }

  /**
   * Another rank's.
   *
   * @throws `ERR_OPTION` where there is no such rank.
   * @example
   * SequenceShard.contiguous(10, 4, 1).of(3).pieces; // [{"start":7,"length":3}]
   */
  of(rank: number): SequenceShard {
    return new SequenceShard(
      checkedSplit("SequenceShard.of", this.layout, this.length, this.ranks, rank, this.portions),
      rank,
    );
  }

  /**
   * This shard's rows of a tensor that has the whole sequence's: a view where they are one piece, else a new tensor in
   * row-major order. Differentiable on a `Tape`.
   *
   * @param x of any dtype.
   * @param axis the sequence's; default 1, as in [B, S, h].
   * @throws `ERR_SHAPE` where the axis has not the length of the sequence.
   * @example
   * const x = Tensor.from([0, 1, 2, 3, 4, 5, 6, 7], [1, 8]);
   * await SequenceShard.zigzag(8, 2, 0).take(x).data(); // [0, 1, 6, 7]
   */
  take(x: Tensor, axis = 1): Tensor {
    checkRows("SequenceShard.take: x", x, axis, this.length, "the length of the sequence");
    const [first = { start: 0, length: 0 }, ...more] = this.pieces;
    if (more.length === 0) return x.slice(axis, first.start, first.start + first.length);
    const { shape, dtype, device } = x;
    const taken = Tensor.empty(shape.with(axis, this.size), { dtype, device });
    copyRows("fromWhole", x, taken, this.pieces, axis);
    return record("take", [taken], [x], () => ([gradient]) => {
      const dx = Tensor.zeros(shape, { dtype, device });
      copyRows("toWhole", dx, gradient, this.pieces, axis);
      return [dx];
    });
  }

  /**
   * The whole sequence of all ranks' rows, what `take` took apart: a new tensor in row-major order. Differentiable on a
   * `Tape`.
   *
   * @param parts the rows of each shard, of one dtype and on one device.
   * @param shards of the same split, each rank's once, in the order of the parts.
   * @param axis the sequence's.
   * @throws `ERR_OPTION` where the shards are not those of one split; `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DEVICE` for parts that
   * do not fit them, or each other.
   * @example
   * const [a, b] = [SequenceShard.zigzag(8, 2, 0), SequenceShard.zigzag(8, 2, 1)];
   * const x = Tensor.from([0, 1, 2, 3, 4, 5, 6, 7], [1, 8]);
   * await SequenceShard.join([a.take(x), b.take(x)], [a, b]).data(); // [0, 1, 2, 3, 4, 5, 6, 7]
   */
  static join(parts: readonly Tensor[], shards: readonly SequenceShard[], axis = 1): Tensor {
    const held = allRanks("SequenceShard.join: shards", shards);
    checkParts(
      "SequenceShard.join: parts",
      parts,
      held.map(({ size }) => size),
      axis,
    );
    const [{ shape, dtype, device }] = parts as [Tensor];
    const whole = Tensor.empty(shape.with(axis, held[0].length), { dtype, device });
    for (const [at, shard] of held.entries()) {
      copyRows("toWhole", whole, parts[at] as Tensor, shard.pieces, axis);
    }
    return record("join", [whole], [...parts], () => ([gradient]) => {
      return held.map((shard) => shard.take(gradient, axis));
    });
  }

  /**
   * `take` for values on the host, such as tokens: also bytes, as `readFasta` gives them.
   *
   * @param values [S] or [B, S], row by row.
   * @throws `ERR_SHAPE` where they are not whole sequences.
   * @example
   * SequenceShard.zigzag(8, 2, 0).takeValues(Int32Array.of(9, 8, 7, 6, 5, 4, 3, 2)); // [9, 8, 3, 2]
   */
  takeValues(values: Int32Array | Uint8Array): Int32Array<ArrayBuffer> {
    return tokensOf(this, values);
  }

  /**
   * The position of each row: in the whole sequence or, where boundaries are given, in its document.
   *
   * @param cuSeqlens 0, then the end of each document of the whole sequence.
   * @throws `ERR_OPTION` where these do not begin with 0, decrease, or end before the sequence does.
   * @example
   * SequenceShard.contiguous(8, 2, 1).positions(); // [4, 5, 6, 7]
   *
   * @example
   * SequenceShard.contiguous(8, 2, 1).positions([0, 3, 6, 8]); // [1, 2, 0, 1]
   */
  positions(cuSeqlens?: Int32Array | readonly number[]): Int32Array<ArrayBuffer> {
    return positionsOf(this, cuSeqlens);
  }

  /**
   * The next token of each row: shifted before the split, so that a shard's last row has the first token of the next
   * shard as its target. `ignoreIndex` where there is none, or it is another document's.
   *
   * @param tokens (bytes too) [S] or, with `batch`, [B, S], row by row; or [S + 1] or [B, S + 1], of which the last is a
   * target only.
   * With boundaries that one is another document's, unless they reach beyond it.
   * @returns [size] or [B, size], int32, the targets of `crossEntropy`.
   * @throws `ERR_SHAPE` for another number of tokens; `ERR_OPTION` for options that cannot be, the boundaries as of
   * `positions`.
   * @example
   * const shard = SequenceShard.contiguous(4, 2, 0);
   * shard.labels(Int32Array.of(5, 6, 7, 8)); // [6, 7]
   * shard.of(1).labels(Int32Array.of(5, 6, 7, 8)); // [8, -100]
   * shard.of(1).labels(Int32Array.of(5, 6, 7, 8, 9)); // [8, 9]
   * shard.labels(Int32Array.of(5, 6, 7, 8), { cuSeqlens: [0, 2, 4] }); // [6, -100]
   */
  labels(tokens: Int32Array | Uint8Array, options: LabelOptions = {}): Int32Array<ArrayBuffer> {
    return labelsOf(this, tokens, options);
  }
}

/** The shards, which must be those of one split, each rank's once. */
function allRanks(what: string, shards: readonly SequenceShard[]): [SequenceShard, ...SequenceShard[]] {
  if (!Array.isArray(shards)) throw wrongKind(what, "an array of SequenceShards", shards);
  const [first, ...others] = shards as readonly SequenceShard[];
  if (first === undefined) throw failure("ERR_OPTION", `${what} is empty, expected one a rank`);
  const ranks = new Set<number>();
  for (const [at, shard] of [first, ...others].entries()) {
    if (!(shard instanceof SequenceShard)) throw wrongKind(`${what}[${at}]`, "a SequenceShard", shard);
    if ((["layout", "length", "ranks", "portions"] as const).some((name) => shard[name] !== first[name])) {
      throw failure("ERR_OPTION", `${what}[${at}] is of another split than the first`);
    }
    ranks.add(shard.rank);
  }
  if (ranks.size !== shards.length || ranks.size !== first.ranks) {
    throw failure(
      "ERR_OPTION",
      `${what} has ${ranks.size} ranks in ${shards.length} shards, expected each of ${first.ranks} once`,
    );
  }
  return [first, ...others];
}
