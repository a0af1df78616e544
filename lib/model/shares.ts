// Parameters on their ranks: the share of each, and the whole of all shares.
import { failure, shown, wrongKind } from "../errors.ts";
import { concatenate } from "../ops/concatenate.ts";
import { add } from "../ops/elementwise.ts";
import type { Range } from "../parallel/strategy.ts";
import { Scope } from "../scope.ts";
import { handleOf, Tensor, type TensorOptions } from "../tensor.ts";
import type { ParameterSpecification, Placement } from "./parameters.ts";

/** Tensors by name. */
export type Tensors = Readonly<Record<string, Tensor>>;

/** What a rank holds of each parameter, by the names of the table. */
export interface RankTensors {
  placement: Placement;
  tensors: Tensors;
}

/** A parameter has a seed of its own: those of two parameters never meet, whatever the seed of the model. */
const mostParameters = 2 ** 20;

/**
 * What a rank holds of new parameters. They do not depend on the number of ranks: each rank makes the whole of one
 * parameter after the other, and keeps its share.
 *
 * @param table of `layerParameters` or `gptParameters`.
 * @param placement of the rank: its `Strategy`.
 * @param options seed: an integer from 0 to 2^32 - 1, default 0.
 * @returns by the names of the table; they belong to the caller.
 * @throws `ERR_OPTION` for another seed; `ERR_DTYPE`, `ERR_DEVICE`, `ERR_OUT_OF_MEMORY`.
 * @example
 * const table = layerParameters({ hidden: 64, heads: 4 });
 * const parameters = initialParameters(table, serial(128), { seed: 1, dtype: "bfloat16" });
 * parameters["mlp_up.weight"]?.shape; // [256, 64]
 */
export function initialParameters(
  table: readonly ParameterSpecification[],
  placement: Placement,
  options: TensorOptions & { seed?: number } = {},
): Record<string, Tensor> {
  const { seed = 0, ...place } = options;
  if (!Number.isInteger(seed) || seed < 0 || seed >= 2 ** 32) {
    throw failure("ERR_OPTION", `initialParameters: seed is ${shown(seed)}, expected 0 to 2^32 - 1`);
  }
  return eachParameter(table, (parameter, at) => {
    const { shape, initial } = parameter;
    const ownSeed = seed * mostParameters + at;
    if ("deviation" in initial) {
      return share(
        parameter,
        Tensor.normal(shape, { ...place, seed: ownSeed, std: initial.deviation }),
        placement,
      );
    }
    return share(parameter, filled(shape, initial.value, place), placement);
  });
}

/**
 * What a rank holds of parameters that are given whole, under the names that they have in files.
 *
 * @param table of `layerParameters` or `gptParameters`.
 * @param tensors those of `loadSafetensors`, for one; others beside them do not matter.
 * @param placement of the rank: its `Strategy`.
 * @param options dtype and device; default: each tensor's own.
 * @returns new tensors, by the names of the table; they belong to the caller.
 * @throws `ERR_OPTION` where a tensor is missing; `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`.
 * @example
 * const table = layerParameters({ hidden: 64, heads: 4, bias: false });
 * const strategy = serial(128);
 * const whole = wholeParameters(table, [{ placement: strategy, tensors: initialParameters(table, strategy) }]);
 * const parameters = shareParameters(table, whole, strategy, { dtype: "bfloat16" });
 */
export function shareParameters(
  table: readonly ParameterSpecification[],
  tensors: Tensors,
  placement: Placement,
  options: TensorOptions = {},
): Record<string, Tensor> {
  if (typeof tensors !== "object" || tensors === null)
    throw wrongKind("shareParameters: tensors", "an object of Tensors", tensors);
  return eachParameter(table, (parameter) => {
    const parts = parameter.stored.map(({ name, rows }) => {
      const shape = parameter.shape.with(0, rows);
      return checked("shareParameters", name, tensors, shape);
    });
    const whole = parts.length === 1 ? (parts[0] as Tensor) : concatenate(parts, 0);
    const held = share(parameter, whole, placement);
    const there = options.device && options.device !== held.device ? held.toDevice(options.device) : held;
    return there.to(options.dtype ?? there.dtype);
  });
}

/**
 * The whole parameters, under the names that they have in files, of what all ranks hold: for `saveSafetensors`, or for
 * another number of ranks. Where several ranks hold the same, it is taken from the first.
 *
 * @param ranks all of them, in any number; their tensors may be on several devices of this process.
 * @returns new tensors, on the first rank's device.
 * @throws `ERR_OPTION` where a tensor is missing, or none of the ranks holds a part; `ERR_SHAPE`, `ERR_DTYPE`,
 * `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`.
 * @example
 * const [table, strategy] = [layerParameters({ kind: "llama", hidden: 64, heads: 4 }), serial(128)];
 * const parameters = initialParameters(table, strategy);
 * const whole = wholeParameters(table, [{ placement: strategy, tensors: parameters }]);
 * whole["mlp_gate.weight"]?.shape; // [256, 64]
 */
export function wholeParameters(
  table: readonly ParameterSpecification[],
  ranks: readonly RankTensors[],
): Record<string, Tensor> {
  return assembled("wholeParameters", table, ranks, ([first]) => first);
}

/**
 * The whole gradients, in float32 and under the names that parameters have in files, of what all ranks have of their
 * shares: each rank's gradient is that of its own rows or columns, so what several ranks hold is summed, in their order.
 *
 * @param ranks all of them; their tensors may be on several devices of this process.
 * @returns new tensors, on the first rank's device.
 * @throws the errors of `wholeParameters`.
 * @example
 * const [table, strategy] = [layerParameters({ hidden: 64, heads: 4 }), serial(128)];
 * const tensors = initialParameters(table, strategy);
 * const ranks = [1, 2].map(() => ({ placement: strategy, tensors }));
 * const sums = wholeGradients(table, ranks);
 * (await sums["mlp_norm.weight"]?.data())?.[0]; // 2
 */
export function wholeGradients(
  table: readonly ParameterSpecification[],
  ranks: readonly RankTensors[],
): Record<string, Tensor> {
  return assembled("wholeGradients", table, ranks, (parts) => {
    const [first, ...others] = parts.map((part) => part.to("float32")) as [Tensor, ...Tensor[]];
    return others.reduce(add, first);
  });
}

function assembled(
  what: string,
  table: readonly ParameterSpecification[],
  ranks: readonly RankTensors[],
  combine: (parts: [Tensor, ...Tensor[]]) => Tensor,
): Record<string, Tensor> {
  if (!Array.isArray(ranks)) throw wrongKind(`${what}: ranks`, "an array of { placement, tensors }", ranks);
  const wholes = table.map((parameter) =>
    Scope.run(() => {
      const { name, axis, shape, stored } = parameter;
      const shares = (ranks as readonly RankTensors[]).map(({ placement, tensors }) => {
        const ranges = parameter.held(placement);
        return { ranges, share: checked(what, name, tensors, shape.with(axis, lengthOf(ranges))) };
      });
      const parts = cuts(
        shares.flatMap(({ ranges }) => ranges),
        shape[axis] ?? 0,
      ).map((part) => {
        const found = shares.flatMap(({ ranges, share }) => partOf(share, axis, ranges, part));
        const [first] = found;
        if (first === undefined) {
          const where = `[${part.begin}, ${part.end}) of axis ${axis}`;
          throw failure("ERR_OPTION", `${what}: no rank holds ${where} of ${name}`);
        }
        const { device } = shares[0]?.share ?? first;
        return combine(
          found.map((tensor) => (tensor.device === device ? tensor : tensor.toDevice(device))) as [Tensor],
        );
      });
      const whole = concatenate(parts, axis);
      let row = 0;
      return stored.map(({ name, rows }) => {
        row += rows;
        return [name, stored.length === 1 ? whole : whole.slice(0, row - rows, row).contiguous()] as const;
      });
    }),
  );
  return Object.fromEntries(wholes.flat());
}

/** The axis in the stretches that each rank holds whole or not at all. */
function cuts(ranges: readonly Range[], size: number): Range[] {
  const at = new Set([0, size, ...ranges.flatMap(({ begin, end }) => [begin, end])]);
  const sorted = [...at].sort((a, b) => a - b);
  return sorted.slice(1).map((end, i) => ({ begin: sorted[i] ?? 0, end }));
}

/** The stretch, in a share of these ranges: none, or one. */
function partOf(share: Tensor, axis: number, ranges: readonly Range[], { begin, end }: Range): Tensor[] {
  let offset = 0;
  for (const range of ranges) {
    if (range.begin <= begin && end <= range.end) {
      return [share.slice(axis, offset + begin - range.begin, offset + end - range.begin)];
    }
    offset += range.end - range.begin;
  }
  return [];
}

function lengthOf(ranges: readonly Range[]): number {
  return ranges.reduce((sum, { begin, end }) => sum + end - begin, 0);
}

/** The whole itself, where that is what the rank holds. */
function share(parameter: ParameterSpecification, whole: Tensor, placement: Placement): Tensor {
  const { axis, shape } = parameter;
  const ranges = parameter.held(placement);
  if (lengthOf(ranges) === shape[axis]) return whole;
  return concatenate(
    ranges.map(({ begin, end }) => whole.slice(axis, begin, end)),
    axis,
  );
}

/** One parameter after the other, so that no more than one is in memory whole; all are let go where one fails. */
function eachParameter(
  table: readonly ParameterSpecification[],
  make: (parameter: ParameterSpecification, at: number) => Tensor,
): Record<string, Tensor> {
  const made: Record<string, Tensor> = {};
  try {
    for (const [at, parameter] of table.entries()) {
      made[parameter.name] = Scope.run(() => make(parameter, at));
    }
  } catch (error) {
    for (const tensor of Object.values(made)) tensor.dispose();
    throw error;
  }
  return made;
}

function filled(shape: readonly number[], value: number, place: TensorOptions): Tensor {
  if (value === 0) return Tensor.zeros(shape, place);
  const values = new Float32Array(shape.reduce((product, size) => product * size, 1)).fill(value);
  return Tensor.from(values, shape, { dtype: "float32", ...place });
}

/** What a rank holds, as it is given: the tensors of the table, and no others. */
export function checkedTensors(
  what: string,
  table: readonly ParameterSpecification[],
  placement: Placement,
  tensors: Tensors,
): Tensors {
  if (typeof tensors !== "object" || tensors === null)
    throw wrongKind(`${what}: parameters`, "an object of Tensors", tensors);
  return Object.fromEntries(
    table.map((parameter) => {
      const { name, shape, axis } = parameter;
      const held = lengthOf(parameter.held(placement));
      return [name, checked(what, name, tensors, shape.with(axis, held))];
    }),
  );
}

/** A tensor that must be there, of this shape. */
function checked(what: string, name: string, tensors: Tensors, shape: readonly number[]): Tensor {
  const tensor = Object.hasOwn(tensors, name) ? tensors[name] : undefined;
  if (tensor === undefined) throw failure("ERR_OPTION", `${what}: there is no tensor ${name}`);
  handleOf(tensor, `${what}: ${name}`);
  if (tensor.shape.join() !== shape.join()) {
    throw failure(
      "ERR_SHAPE",
      `${what}: ${name} has the shape [${tensor.shape.join(", ")}], expected [${shape.join(", ")}]`,
    );
  }
  return tensor;
}
