// The whole of what ranks hold: parameters, and their gradients.
import { failure, wrongKind } from "../errors.ts";
import { concatenate } from "../ops/concatenate.ts";
import { add } from "../ops/elementwise.ts";
import type { Range } from "../parallel/strategy.ts";
import { Scope } from "../scope.ts";
import type { Tensor } from "../tensor.ts";
import type { Tensors } from "../tensor-group.ts";
import { referenceTo } from "../view.ts";
import { checkPlacement, checkTable, type ParameterSpecification, type Placement } from "./parameters.ts";
import { checked, lengthOf } from "./shares.ts";

/** What a rank holds of each parameter, by the names of the table. */
export interface RankTensors {
  placement: Placement;
  tensors: Tensors;
}

/**
 * The whole parameters, under the names that they have in files, of what all ranks hold: for `saveSafetensors`, or for
 * another number of ranks. Where several ranks hold the same, it is taken from the first.
 *
 * @param ranks all of them, in any number; their tensors may be on several devices of this process.
 * @returns new tensors, on the first rank's device and on no tape.
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
 * @returns new tensors, on the first rank's device and on no tape.
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
  checkTable(what, table);
  if (!Array.isArray(ranks)) throw wrongKind(`${what}: ranks`, "an array of { placement, tensors }", ranks);
  for (const [at, rank] of (ranks as readonly RankTensors[]).entries()) {
    checkPlacement(`${what}: the placement of rank ${at}`, rank?.placement);
    if (typeof rank.tensors !== "object" || rank.tensors === null) {
      throw wrongKind(`${what}: the tensors of rank ${at}`, "an object of Tensors", rank.tensors);
    }
  }
  const wholes = table.map((parameter) =>
    Scope.run(() => {
      const { name, axis, shape } = parameter;
      const shares = (ranks as readonly RankTensors[]).map(({ placement, tensors }) => {
        const ranges = parameter.held(placement);
        const share = checked(what, name, tensors, shape.with(axis, lengthOf(ranges)));
        // Ranks of one thread may have a tape each.
        return { ranges, share: referenceTo(share) };
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
      return asStored(parameter, concatenate(parts, axis));
    }),
  );
  return Object.fromEntries(wholes.flat());
}

/** A whole parameter under the names that files have. */
export function asStored({ stored }: ParameterSpecification, whole: Tensor): (readonly [string, Tensor])[] {
  let row = 0;
  return stored.map(({ name, rows }) => {
    row += rows;
    return [name, stored.length === 1 ? whole : whole.slice(0, row - rows, row).contiguous()] as const;
  });
}

/** The axis in the stretches that each rank holds whole or not at all. */
export function cuts(ranges: readonly Range[], size: number): Range[] {
  const at = new Set([0, size, ...ranges.flatMap(({ begin, end }) => [begin, end])]);
  const sorted = [...at].sort((a, b) => a - b);
  return sorted.slice(1).map((end, i) => ({ begin: sorted[i] ?? 0, end }));
}

/** The stretch, in a share of these ranges: none, or one. */
export function partOf(
  share: Tensor,
  axis: number,
  ranges: readonly Range[],
  { begin, end }: Range,
): Tensor[] {
  let offset = 0;
  for (const range of ranges) {
    if (range.begin <= begin && end <= range.end) {
      return [share.slice(axis, offset + begin - range.begin, offset + end - range.begin)];
    }
    offset += range.end - range.begin;
  }
  return [];
}
