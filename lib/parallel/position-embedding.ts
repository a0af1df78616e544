// Learned positions whose rows are divided over the ranks that share a sequence.
import { checkOptions, failure, shown, wrongKind } from "../errors.ts";
import { checkSameShape } from "../layout.ts";
import { Scope } from "../scope.ts";
import { handleOf, Tensor } from "../tensor.ts";
import type { TensorOptions } from "../tensor-options.ts";
import { referenceTo } from "../view.ts";
import type { Communicator } from "./communicator.ts";
import { portionOf } from "./heads.ts";
import { type PositionRowsOptions, partitionedRows } from "./position-rows.ts";
import { SequenceShard } from "./shard.ts";
import { checkCommunicator, type Range, type Strategy } from "./strategy.ts";

/**
 * A table of learned positions [S, h] of which each rank holds S / ranks rows, with their gradients and what an optimizer
 * keeps for them: rank r those from r S / ranks on, rounded down, for any S. Rows are asked for and given where a
 * sequence's rows stand, in any layout, also where documents begin at position 0 again. On every rank the same calls are
 * made in the same order. The values do not depend on the number of ranks.
 *
 *     y_i = table_p      p = positionsOf(rank)_i
 *
 * It owns `parameter`, whatever `Scope` it is made in: dispose of it.
 *
 * @example
 * const ranks = Communicator.local([new Device("cpu"), new Device("cpu")]);
 * const tables = ranks.map((communicator) => new PartitionedPositionEmbedding(communicator, [1000, 64], { seed: 1 }));
 * const shard = SequenceShard.zigzag(900, 2, 0);
 * const rows = tables.map((table, rank) => table.forward((peer) => shard.of(peer).positions()));
 * rows.map(({ shape }) => shape); // [[450, 64], [450, 64]]
 */
export class PartitionedPositionEmbedding implements Disposable {
  readonly communicator: Communicator;
  /** S, h. */
  readonly shape: readonly [positions: number, hidden: number];
  /** The positions whose rows this rank holds; none where there are fewer than ranks. */
  readonly held: Range;
  /** Their rows: what a tape watches and an optimizer updates. */
  readonly parameter: Tensor;

  /**
   * Normal numbers: those of `Tensor.normal(shape, options)`, of which each rank makes its own only.
   *
   * @param shape [S, h]: the same on every rank, as are the options.
   * @param options dtype float32, bfloat16 or float16; seed (0) and std, the standard deviation (0.02).
   * @throws `ERR_OPTION`, `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`.
   */
  constructor(
    communicator: Communicator,
    shape: readonly [positions: number, hidden: number],
    options: Omit<TensorOptions, "device"> & { seed?: number; std?: number } = {},
  ) {
    checkOptions(name, options, { dtype: true, seed: true, std: true });
    checkCommunicator(name, communicator);
    this.communicator = communicator;
    this.shape = checkedShape(shape);
    const [positions, hidden] = this.shape;
    const { rank, size, device } = communicator;
    this.held = portionOf(positions, size, rank);
    const { begin, end } = this.held;
    const { dtype = "float32", seed = 0, std = 0.02 } = options;
    if (!["float32", "bfloat16", "float16"].includes(dtype))
      throw failure("ERR_DTYPE", `${name}: dtype is ${shown(dtype)}, expected float32, bfloat16 or float16`);
    this.parameter = Tensor.normal([end - begin, hidden], {
      dtype,
      device,
      seed,
      std,
      first: begin * hidden,
    });
    Scope.current?.disown(this.parameter);
  }

  /**
   * Of a whole table: this rank's rows of it.
   *
   * @param whole [S, h], on any device; that of a file, or of `gather` at another number of ranks.
   * @param options dtype: default that of the table.
   * @throws the errors of the constructor.
   * @example
   * const [communicator] = Communicator.local([new Device("cpu")]) as [Communicator];
   * using table = PartitionedPositionEmbedding.from(communicator, Tensor.from([1, 2, 3, 4], [2, 2]));
   * await table.parameter.data(); // [1, 2, 3, 4]
   */
  static from(
    communicator: Communicator,
    whole: Tensor,
    options: Pick<TensorOptions, "dtype"> = {},
  ): PartitionedPositionEmbedding {
    checkOptions(`${name}.from`, options, { dtype: true });
    handleOf(whole, `${name}.from: whole`);
    const { shape, dtype } = whole;
    const made = new PartitionedPositionEmbedding(communicator, shape as readonly [number, number], {
      dtype: options.dtype ?? dtype,
    });
    try {
      made.load(whole);
    } catch (error) {
      made.dispose();
      throw error;
    }
    return made;
  }

  /**
   * The rows at this rank's positions. Differentiable on a `Tape`, in `parameter`: the backward pass sends the rows'
   * gradients to the ranks that hold them, on every rank, and sums them in float32 in one order, that of the ranks. A
   * position that several rows of a rank stand at is asked for once, and its gradients travel as their sum.
   *
   * @param positionsOf every rank's positions, each in [0, S), in any order and as often as it likes: the same on all
   * ranks, which need to know what they will be asked for. For shards, `(rank) => shard.of(rank).positions(cuSeqlens)`.
   * @param options dtable: of parameter's shape, float32 or parameter's dtype: the backward pass adds the gradient to this,
   * and what it returns for parameter is zeros.
   * @returns [rows, h], or [batch, rows, h], of parameter's dtype.
   * @throws `ERR_OPTION` for a position that is none, on every rank; `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DEVICE`, `ERR_DISPOSED`,
   * `ERR_OUT_OF_MEMORY`. From the next await: `ERR_COMM`, also where ranks were told different numbers of positions.
   * @example
   * const [communicator] = Communicator.local([new Device("cpu")]) as [Communicator];
   * using positions = PartitionedPositionEmbedding.from(communicator, Tensor.from([1, 2, 3, 4, 5, 6], [3, 2]));
   * const { parameter } = positions;
   * const { device } = communicator;
   * using tape = new Tape();
   * tape.watch(parameter);
   * const shard = SequenceShard.whole(3);
   * const y = positions.forward((rank) => shard.of(rank).positions([0, 2, 3]));
   * await y.data(); // [1, 2, 3, 4, 1, 2]
   * const [gradient] = tape.backward(y, Tensor.from([1, 2, 3, 4, 5, 6], [3, 2], { device }), [parameter]);
   * await gradient?.data(); // [6, 8, 3, 4, 0, 0]
   */
  forward(positionsOf: (rank: number) => Int32Array, options: PositionRowsOptions = {}): Tensor {
    const [positions] = this.shape;
    return partitionedRows(name, this.communicator, positions, this.parameter, positionsOf, options);
  }

  /**
   * Replaces the rows by those of a whole table.
   *
   * @param whole [S, h] of any dtype, on any device.
   * @throws `ERR_SHAPE`, `ERR_OPTION`, `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`.
   * @example
   * const [communicator] = Communicator.local([new Device("cpu")]) as [Communicator];
   * using table = new PartitionedPositionEmbedding(communicator, [2, 2], { dtype: "bfloat16" });
   * table.load(Tensor.from([1, 2, 3, 4], [2, 2]));
   * await table.parameter.data(); // [1, 2, 3, 4]
   */
  load(whole: Tensor): void {
    handleOf(whole, `${name}.load: whole`);
    checkSameShape(`${name}.load: whole`, whole.shape, this.shape);
    Scope.run(() => this.parameter.write(referenceTo(whole).slice(0, this.held.begin, this.held.end)));
  }

  /**
   * The whole table, on every rank: to be written to a file, or loaded at another number of ranks. On no tape.
   *
   * @returns [S, h], new.
   * @example
   * const two = Communicator.local([new Device("cpu"), new Device("cpu")]);
   * const tables = two.map((communicator) => new PartitionedPositionEmbedding(communicator, [5, 8]));
   * const [whole] = tables.map((table) => table.gather()) as [Tensor, Tensor];
   * const three = Communicator.local([1, 2, 3].map(() => new Device("cpu")));
   * const again = three.map((communicator) => PartitionedPositionEmbedding.from(communicator, whole));
   * again.map(({ parameter }) => parameter.shape[0]); // [1, 2, 2]
   */
  gather(): Tensor {
    const { size } = this.communicator;
    const counts = Array.from({ length: size }, (_, rank) => {
      const { begin, end } = portionOf(this.shape[0], size, rank);
      return end - begin;
    });
    return this.communicator.allGather(this.parameter, counts).wait();
  }

  /** Frees the rows. Twice is harmless. */
  dispose(): void {
    this.parameter.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * The strategy, but that each rank holds its portion of a model's learned positions, as `PartitionedPositionEmbedding`
 * does: the parameter `position.weight` is these rows then, in new parameters, shares, wholes and gradients too.
 *
 * @param communicator of the ranks that the strategy divides the sequence over, in their order.
 * @throws `ERR_OPTION` where it is of other ranks.
 * @example
 * const options = { hidden: 64, heads: 4, layers: 1, vocabulary: 100, maxPositions: 128 };
 * const models = Communicator.local([new Device("cpu"), new Device("cpu")]).map((communicator) => {
 *   const strategy = partitionPositions(zigzag(communicator, 100), communicator);
 *   return new GPT(options, strategy, { device: communicator.device });
 * });
 * models.map(({ parameters }) => parameters["position.weight"]?.shape); // [[64, 64], [64, 64]]
 */
export function partitionPositions(strategy: Strategy, communicator: Communicator): Strategy {
  const what = "partitionPositions";
  checkCommunicator(what, communicator);
  checkOptions(`${what}: strategy`, strategy);
  const { rank, size } = communicator;
  if (!(strategy.shard instanceof SequenceShard))
    throw failure("ERR_OPTION", `${what}: strategy has no shard, expected a Strategy`);
  if (strategy.shard.ranks !== size || strategy.shard.rank !== rank)
    throw failure(
      "ERR_OPTION",
      `${what}: communicator has rank ${rank} of ${size}, expected ${strategy.shard.rank} of ${strategy.shard.ranks} (the strategy's)`,
    );
  return {
    ...strategy,
    positions: {
      held: (count) => portionOf(count, size, rank),
      rows: (table, count, positionsOf, batch, options) =>
        partitionedRows("gpt: position.weight", communicator, count, table, positionsOf, {
          ...options,
          batch,
        }),
    },
  };
}

const name = "PartitionedPositionEmbedding";

function checkedShape(shape: readonly [number, number]): readonly [number, number] {
  if (!Array.isArray(shape)) throw wrongKind(`${name}: shape`, "[positions, hidden]", shape);
  const [positions, hidden] = shape as readonly number[];
  const isSize = (size: unknown) => Number.isInteger(size) && Number(size) >= 1 && Number(size) < 2 ** 31;
  if (shape.length !== 2 || !isSize(positions) || !isSize(hidden))
    throw failure(
      "ERR_SHAPE",
      `${name}: shape is ${shown(shape)}, expected [positions, hidden], each 1 or more`,
    );
  return [Number(positions), Number(hidden)];
}
