// What the ranks of a communicator hold of one model's parameters, where they are not all of one thread.
import { concatenate } from "../ops/concatenate.ts";
import { checkMaxNorm, globalNorm } from "../ops/gradient-norm.ts";
import type { Communicator } from "../parallel/communicator.ts";
import { checkCommunicator } from "../parallel/strategy.ts";
import { Scope } from "../scope.ts";
import { Tensor } from "../tensor.ts";
import type { Tensors } from "../tensor-group.ts";
import type { TensorOptions } from "../tensor-options.ts";
import { asContiguous, referenceTo } from "../view.ts";
import { checkPlacement, checkTable, type ParameterSpecification, type Placement } from "./parameters.ts";
import { saveShared } from "./save-parameters.ts";
import { checkedTensors } from "./shares.ts";
import { type Stretch, stretchesOf } from "./stretches.ts";
import { asStored, partOf } from "./wholes.ts";

/**
 * The parameters that ranks share, each rank holding some or all of each: what data of all of them is made of. On every
 * rank the same calls are made in the same order. `wholeGradients` and `wholeParameters` are the same for ranks whose
 * tensors are all at hand.
 *
 * @example
 * const communicator = Communicator.join({ name: "sgd", rank: 0, size: 1, device: Device.default });
 * const [table, strategy] = [layerParameters({ hidden: 64, heads: 4 }), megatron(communicator, 128)];
 * const shared = await SharedParameters.of(table, strategy, communicator);
 * const gradients = shared.completeGradients(initialParameters(table, strategy)); // those of a loss
 * const { factor } = await shared.clipByGlobalNorm(gradients, 1); // AdamW.step takes it as gradientScale
 * await factor.item();
 */
export class SharedParameters {
  readonly #table: readonly ParameterSpecification[];
  readonly #placement: Placement;
  readonly #communicator: Communicator;
  /** Of each parameter. */
  readonly #stretches: readonly (readonly Stretch[])[];

  private constructor(
    table: readonly ParameterSpecification[],
    placement: Placement,
    communicator: Communicator,
    stretches: readonly (readonly Stretch[])[],
  ) {
    this.#table = table;
    this.#placement = placement;
    this.#communicator = communicator;
    this.#stretches = stretches;
  }

  /**
   * Tells all ranks what each of them holds.
   *
   * @param table of `layerParameters` or `gptParameters`, the same on all ranks.
   * @param placement of this rank: its `Strategy`.
   * @param communicator of the ranks that the strategy splits the sequence over; or of several such groups that train on
   * other sequences each (data parallelism), where gradients are to be summed over all of them.
   * @throws `ERR_OPTION` for another table, placement or communicator; `ERR_COMM` where ranks have other tables, or fail.
   * @example
   * const [alone] = Communicator.local([new Device("cpu")]) as [Communicator];
   * const [table, strategy] = [layerParameters({ hidden: 8, heads: 2 }), zigzag(alone, 16)];
   * await SharedParameters.of(table, strategy, alone);
   */
  static async of(
    table: readonly ParameterSpecification[],
    placement: Placement,
    communicator: Communicator,
  ): Promise<SharedParameters> {
    checkTable("SharedParameters", table);
    checkPlacement("SharedParameters: placement", placement);
    checkCommunicator("SharedParameters", communicator);
    const stretches = await stretchesOf(table, placement, communicator);
    return new SharedParameters(table, placement, communicator, stretches);
  }

  /**
   * The gradients of what this rank holds, of all ranks' rows: what several ranks hold is summed over them, in float32.
   *
   * @param gradients of this rank's shares, by the names of the table: float32, bfloat16 or float16.
   * @returns the caller's, of their shapes and dtypes; of what no other rank holds, of the same memory.
   * @throws `ERR_OPTION` where a tensor is missing; `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`; from
   * the next await `ERR_COMM`.
   * @example
   * const [alone] = Communicator.local([new Device("cpu")]) as [Communicator];
   * const [table, strategy] = [layerParameters({ hidden: 8, heads: 2 }), zigzag(alone, 16)];
   * const shared = await SharedParameters.of(table, strategy, alone);
   * const own = initialParameters(table, strategy, { device: alone.device }); // as of Tape.backward
   * shared.completeGradients(own)["qkv.weight"]?.shape; // [24, 8]
   */
  completeGradients(gradients: Tensors): Record<string, Tensor> {
    return this.#each("completeGradients", gradients, (parameter, share, stretches) => {
      if (stretches.every(({ holders }) => holders.length === 1)) return [[parameter.name, share]];
      const { rank, size } = this.#communicator;
      const sum = (part: Tensor) => this.#communicator.allReduce(part).wait();
      if (stretches.every(({ holders }) => holders.length === size)) return [[parameter.name, sum(share)]];
      const parts = stretches.flatMap((stretch) => {
        const own = this.#partOf(parameter, share, stretch);
        if (stretch.holders.length === 1) return own;
        const part = own[0] ? asContiguous(own[0]) : Tensor.zeros(...this.#like(parameter, stretch, share));
        const total = sum(part);
        return stretch.holders.includes(rank) ? [total] : [];
      });
      return [[parameter.name, parts.length === 0 ? share : concatenate(parts, parameter.axis)]];
    });
  }

  /**
   * As the function `clipByGlobalNorm`, of the whole model: each element counts once, however many ranks hold it, and
   * all ranks get the same factor.
   *
   * @param gradients of `completeGradients`.
   * @param maxNorm above 0.
   * @returns norm and factor: [] float32 on the communicator's device.
   * @throws the errors of `completeGradients`.
   * @example
   * const [alone] = Communicator.local([new Device("cpu")]) as [Communicator];
   * const [table, strategy] = [layerParameters({ hidden: 8, heads: 2 }), zigzag(alone, 16)];
   * const shared = await SharedParameters.of(table, strategy, alone);
   * const gradients = shared.completeGradients(initialParameters(table, strategy, { device: alone.device }));
   * const { factor } = await shared.clipByGlobalNorm(gradients, 1e6);
   * await factor.item(); // 1
   */
  async clipByGlobalNorm(gradients: Tensors, maxNorm: number): Promise<{ norm: Tensor; factor: Tensor }> {
    checkMaxNorm(maxNorm);
    const { device } = this.#communicator;
    const norms = Scope.run(() => {
      const shares = this.#sharesOf("clipByGlobalNorm", gradients);
      const parts = this.#table.flatMap((parameter, i) =>
        (this.#stretches[i] ?? []).flatMap((stretch) =>
          this.#partOf(parameter, shares[i] as Tensor, stretch).map((part) => ({
            holders: stretch.holders.length,
            part: asContiguous(part),
          })),
        ),
      );
      return [...new Set(parts.map(({ holders }) => holders))].map((count) => {
        const held = parts.filter(({ holders }) => holders === count);
        return { holders: count, norm: globalNorm(held.map(({ part }) => part)) };
      });
    });
    let squares = 0;
    try {
      for (const { holders, norm } of norms) squares += (await norm.item()) ** 2 / holders;
    } finally {
      for (const { norm } of norms) norm.dispose();
    }
    using total = Scope.run(() =>
      this.#communicator.allReduce(Tensor.from([squares], [1], { device })).wait(),
    );
    const norm = Math.sqrt(await total.item());
    const factor = Number.isFinite(norm) ? Math.min(1, maxNorm / norm) : Number.NaN;
    return { norm: Tensor.from([norm], [], { device }), factor: Tensor.from([factor], [], { device }) };
  }

  /**
   * The whole parameters on every rank, under the names that they have in files, the same bits as where they are held.
   *
   * @param tensors what this rank holds, by the names of the table; parameters, or an optimizer's moments.
   * @returns new tensors on no tape; they belong to the caller.
   * @throws the errors of `completeGradients`.
   * @example
   * const [alone] = Communicator.local([new Device("cpu")]) as [Communicator];
   * const [table, strategy] = [layerParameters({ hidden: 8, heads: 2 }), zigzag(alone, 16)];
   * const shared = await SharedParameters.of(table, strategy, alone);
   * const whole = shared.whole(initialParameters(table, strategy, { device: alone.device }));
   * whole["mlp_up.weight"]?.shape; // [32, 8]
   */
  whole(tensors: Tensors): Record<string, Tensor> {
    return this.#each("whole", tensors, (parameter, share, stretches) => {
      const parts = stretches.map((stretch) => {
        const [root = 0] = stretch.holders;
        const own = root === this.#communicator.rank ? this.#partOf(parameter, share, stretch)[0] : undefined;
        const part = own ? asContiguous(own) : Tensor.empty(...this.#like(parameter, stretch, share));
        this.#communicator.broadcast(part, root).wait();
        return part;
      });
      return asStored(parameter, concatenate(parts, parameter.axis));
    });
  }

  /**
   * Writes the whole parameters to one safetensors file, under the names that they have in files: rank 0 does, with one
   * parameter after the other in memory. `loadParameters` reads it, at any number of ranks. The file appears whole or not
   * at all; the promise settles on all ranks when it is there. Until then the tensors must stay as they are.
   *
   * @param tensors as of `whole`. Of path and metadata (strings for the file's header) rank 0's count.
   * @throws (as a rejection) `ERR_FILE` where rank 0 cannot write, on all ranks, or `ERR_OPTION` there for a path or
   * metadata that are none; the errors of `completeGradients`.
   * @example
   * const [alone] = Communicator.local([new Device("cpu")]) as [Communicator];
   * const [table, strategy] = [layerParameters({ hidden: 8, heads: 2 }), zigzag(alone, 16)];
   * const shared = await SharedParameters.of(table, strategy, alone);
   * const tensors = initialParameters(table, strategy, { device: alone.device });
   * await shared.save("step-7.safetensors", tensors, { step: "7" });
   * const { metadata } = await loadParameters("step-7.safetensors", table, serial(16));
   * metadata; // {"step":"7"}
   */
  async save(path: string, tensors: Tensors, metadata: Readonly<Record<string, string>> = {}): Promise<void> {
    const shares = this.#sharesOf("save", tensors);
    const shared = this.#table.map((parameter, i) => ({
      parameter,
      ranges: parameter.held(this.#placement),
      share: shares[i] as Tensor,
      stretches: this.#stretches[i] ?? [],
    }));
    try {
      await saveShared(path, metadata, this.#communicator, shared);
    } finally {
      for (const share of shares) share.dispose();
    }
  }

  /** One parameter after the other; what is made in between is let go. */
  #each(
    what: string,
    tensors: Tensors,
    make: (
      parameter: ParameterSpecification,
      share: Tensor,
      stretches: readonly Stretch[],
    ) => readonly (readonly [string, Tensor])[],
  ): Record<string, Tensor> {
    return Scope.run(() => {
      const shares = this.#sharesOf(what, tensors);
      return Object.fromEntries(
        this.#table.flatMap((parameter, i) =>
          Scope.run(() => make(parameter, shares[i] as Tensor, this.#stretches[i] ?? [])),
        ),
      );
    });
  }

  /** All of them before any is sent: what is wrong on one rank only would leave the others waiting. */
  #sharesOf(what: string, tensors: Tensors): Tensor[] {
    const shares = checkedTensors(what, this.#table, this.#placement, tensors, "tensors");
    return this.#table.map(({ name }) => referenceTo(shares[name] as Tensor));
  }

  /** Of what this rank holds: none, or one. */
  #partOf(parameter: ParameterSpecification, share: Tensor, stretch: Stretch): Tensor[] {
    return partOf(share, parameter.axis, parameter.held(this.#placement), stretch);
  }

  #like(
    { shape, axis }: ParameterSpecification,
    { begin, end }: Stretch,
    { dtype, device }: Tensor,
  ): [shape: readonly number[], options: TensorOptions] {
    return [shape.with(axis, end - begin), { dtype, device }];
  }
}
