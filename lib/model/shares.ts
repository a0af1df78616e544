// Parameters on their ranks: new, or shares of what is given whole.
import { checkOptions, failure, shown, wrongKind } from "../errors.ts";
import { checkSameShape } from "../layout.ts";
import { concatenate } from "../ops/concatenate.ts";
import type { Range } from "../parallel/strategy.ts";
import { Scope } from "../scope.ts";
import { handleOf, Tensor } from "../tensor.ts";
import type { Tensors } from "../tensor-group.ts";
import { type TensorOptions, tensorOptionNames } from "../tensor-options.ts";
import type { DType } from "../values.ts";
import { checkPlacement, checkTable, type ParameterSpecification, type Placement } from "./parameters.ts";

/** A parameter has a seed of its own: those of two parameters never meet, whatever the seed of the model. */
const mostParameters = 2 ** 20;

/**
 * What a rank holds of new parameters. They do not depend on the number of ranks: each rank makes its rows of one
 * parameter after the other, or the whole of it, of which it keeps its columns.
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
  checkTable("initialParameters", table);
  checkPlacement("initialParameters: placement", placement);
  checkOptions("initialParameters", options, { ...tensorOptionNames, seed: true });
  const { seed = 0, ...place } = options;
  if (!Number.isInteger(seed) || seed < 0 || seed >= 2 ** 32) {
    throw failure("ERR_OPTION", `initialParameters: seed is ${shown(seed)}, expected 0 to 2^32 - 1`);
  }
  checkFloat("initialParameters", place.dtype);
  return eachParameter(table, (parameter, at) => {
    const { shape, initial } = parameter;
    const ownSeed = seed * mostParameters + at;
    if (!("deviation" in initial)) return share(parameter, filled(shape, initial.value, place), placement);
    const drawn = { ...place, seed: ownSeed, std: initial.deviation };
    return parameter.axis === 0
      ? drawnRows(shape, parameter.held(placement), drawn)
      : share(parameter, Tensor.normal(shape, drawn), placement);
  });
}

/** A module's parameters: those given, or of its own making. */
export function givenOrInitial(
  what: string,
  table: readonly ParameterSpecification[],
  placement: Placement,
  { parameters, ...initial }: TensorOptions & { seed?: number; parameters?: Tensors },
): Record<string, Tensor> {
  if (parameters === undefined) return initialParameters(table, placement, initial);
  const shares = checkedTensors(what, table, placement, parameters);
  const { dtype, device } = initial;
  for (const [name, share] of Object.entries(shares)) {
    if (dtype !== undefined && share.dtype !== dtype)
      throw failure("ERR_DTYPE", `${what}: ${name} is ${share.dtype}, expected ${dtype} (dtype)`);
    if (device !== undefined && share.device !== device)
      throw failure("ERR_DEVICE", `${what}: ${name} is on another device than device`);
  }
  return shares;
}

/** Those rows of `Tensor.normal(shape, drawn)`. */
function drawnRows(
  shape: readonly number[],
  ranges: readonly Range[],
  drawn: TensorOptions & { seed: number; std: number },
): Tensor {
  const rowSize = shape.slice(1).reduce((product, size) => product * size, 1);
  const parts = ranges.map(({ begin, end }) =>
    Tensor.normal(shape.with(0, end - begin), { ...drawn, first: begin * rowSize }),
  );
  return parts.length === 1 ? (parts[0] as Tensor) : concatenate(parts, 0);
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
  checkTable("shareParameters", table);
  checkPlacement("shareParameters: placement", placement);
  checkOptions("shareParameters", options, tensorOptionNames);
  if (typeof tensors !== "object" || tensors === null)
    throw wrongKind("shareParameters: tensors", "an object of Tensors", tensors);
  checkFloat("shareParameters", options.dtype);
  return eachParameter(table, (parameter) => {
    const held = shareOfStored("shareParameters", parameter, tensors, placement);
    const there = options.device && options.device !== held.device ? held.toDevice(options.device) : held;
    return there.to(options.dtype ?? there.dtype);
  });
}

/** Of one parameter, whose tensors are given under the names that they have in files: one of them itself, maybe. */
export function shareOfStored(
  what: string,
  parameter: ParameterSpecification,
  tensors: Tensors,
  placement: Placement,
): Tensor {
  const parts = parameter.stored.map(({ name, rows }) =>
    checked(what, name, tensors, parameter.shape.with(0, rows)),
  );
  const whole = parts.length === 1 ? (parts[0] as Tensor) : concatenate(parts, 0);
  return share(parameter, whole, placement);
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

export function checkFloat(what: string, dtype: DType | undefined): void {
  if (dtype !== "int32" && dtype !== "uint8") return;
  throw failure("ERR_DTYPE", `${what}: dtype is ${dtype}, expected float32, bfloat16 or float16`);
}

/** One parameter after the other, so that no more than one is in memory whole; all are let go where one fails. */
function eachParameter(
  table: readonly ParameterSpecification[],
  make: (parameter: ParameterSpecification, at: number) => Tensor,
): Record<string, Tensor> {
  return Scope.run(() =>
    Object.fromEntries(
      table.map((parameter, at) => [parameter.name, Scope.run(() => make(parameter, at))] as const),
    ),
  );
}

function filled(shape: readonly number[], value: number, place: TensorOptions): Tensor {
  if (value === 0) return Tensor.zeros(shape, place);
  const values = new Float32Array(shape.reduce((product, size) => product * size, 1)).fill(value);
  return Tensor.from(values, shape, { dtype: "float32", ...place });
}

/** What a rank holds, as it is given in an argument of that name: the tensors of the table, and no others. */
export function checkedTensors(
  what: string,
  table: readonly ParameterSpecification[],
  placement: Placement,
  tensors: Tensors,
  argument = "parameters",
): Record<string, Tensor> {
  if (typeof tensors !== "object" || tensors === null)
    throw wrongKind(`${what}: ${argument}`, "an object of Tensors", tensors);
  return Object.fromEntries(
    table.map((parameter) => {
      const { name, shape, axis } = parameter;
      const held = lengthOf(parameter.held(placement));
      return [name, checked(what, name, tensors, shape.with(axis, held))];
    }),
  );
}

/** A tensor that must be there, of this shape. */
export function checked(what: string, name: string, tensors: Tensors, shape: readonly number[]): Tensor {
  const tensor = Object.hasOwn(tensors, name) ? tensors[name] : undefined;
  if (tensor === undefined) throw failure("ERR_OPTION", `${what}: there is no tensor ${name}`);
  handleOf(tensor, `${what}: ${name}`);
  checkSameShape(`${what}: ${name}`, tensor.shape, shape);
  return tensor;
}

/** Of the stretches of an axis together. */
export function lengthOf(ranges: readonly Range[]): number {
  return ranges.reduce((sum, { begin, end }) => sum + end - begin, 0);
}
