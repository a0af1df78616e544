// Rows of a table that ranks share, from those that hold them to those that ask for them, and their gradients back.
import type { Device } from "../device.ts";
import { checkOptions, failure, shown, wrongKind } from "../errors.ts";
import { native } from "../native.ts";
import { type EmbeddingOptions, embedding } from "../ops/embedding.ts";
import { checkGradientSum } from "../ops/gradient-sum.ts";
import { inDtype } from "../ops/matmul.ts";
import { withDenseRows } from "../ops/rows.ts";
import { Scope } from "../scope.ts";
import { record } from "../tape.ts";
import { handleOf, Tensor } from "../tensor.ts";
import { newArray } from "../values.ts";
import { asContiguous, referenceTo } from "../view.ts";
import type { Communicator } from "./communicator.ts";
import { sum } from "./portions.ts";
import { positionPlan } from "./position-plan.ts";

/** How `PartitionedPositionEmbedding.forward` gives its rows, and where the gradient goes. */
export interface PositionRowsOptions extends EmbeddingOptions {
  /** Sequences with the same positions, on every rank as many: gives [batch, rows, h]. */
  batch?: number;
}

/** [rows, h] or [batch, rows, h]; differentiable in `table`, which is this rank's portion of so many positions. */
export function partitionedRows(
  what: string,
  communicator: Communicator,
  positions: number,
  table: Tensor,
  positionsOf: (rank: number) => Int32Array,
  options: PositionRowsOptions,
): Tensor {
  checkOptions(what, options, { dtable: true, batch: true });
  const { batch, dtable } = options;
  handleOf(table, `${what}: the table`);
  if (typeof positionsOf !== "function")
    throw wrongKind(`${what}: positionsOf`, "a function of the rank", positionsOf);
  if (!Number.isSafeInteger(positions) || positions < 0)
    throw failure("ERR_OPTION", `${what}: count is ${shown(positions)}, expected an integer of 0 or more`);
  if (batch !== undefined && (!Number.isInteger(batch) || batch < 0))
    throw failure("ERR_OPTION", `${what}: batch is ${shown(batch)}, expected an integer of 0 or more`);
  if (dtable !== undefined) checkGradientSum(what, "dtable", dtable, table);
  const plan = positionPlan(what, communicator, positions, positionsOf);
  const { dtype, device } = table;
  const [, hidden = 0] = table.shape;
  const lead = [...(batch === undefined ? [] : [batch]), plan.places.length];
  const isOne = batch === undefined || batch === 1;
  return Scope.run(() => {
    const given = Tensor.from(plan.given, [plan.given.length], { device });
    const places = isOne && plan.isInOrder ? null : repeated(plan.places, lead, device);
    const sent = embedding(referenceTo(table), given);
    const taken = communicator.allToAll(sent, plan.givenCounts, plan.takenCounts).wait();
    const y = places ? embedding(taken, places) : taken.reshape([...lead, hidden]);
    return record("positions", [y], [table], (save, hold) => {
      const kept = { given: save(given), places: places && save(places), dtable: dtable && hold(dtable) };
      return ([dy]) =>
        Scope.run(() => {
          const shape = [sum(plan.takenCounts), hidden];
          const rows = kept.places ? summed(dy, kept.places, shape) : asContiguous(dy).reshape(shape);
          // Where no sum is on its way, nothing is lost in the parameter's dtype.
          const own = inDtype(rows, isOne && plan.isInOrderEverywhere ? dtype : "float32");
          const terms = communicator.allToAll(own, plan.takenCounts, plan.givenCounts).wait();
          if (kept.dtable?.dtype === "float32") {
            addRows(terms, kept.given, kept.dtable, true);
            return [null];
          }
          const total = summed(terms, kept.given, table.shape);
          if (kept.dtable === undefined) return [inDtype(total, dtype)];
          native.scale(handleOf(total, "dtable"), null, null, handleOf(kept.dtable, "dtable"), true);
          return [null];
        });
    });
  });
}

/** [rows] or [batch, rows]: the same for each sequence. */
function repeated(places: Int32Array, shape: readonly number[], device: Device): Tensor {
  // Refuses what there is no memory for, before there is an array of that size.
  const tensor = Tensor.empty(shape, { dtype: "int32", device });
  const values = newArray(Int32Array, tensor.size);
  for (let at = 0; at < values.length; at += places.length) values.set(places, at);
  tensor.write(values);
  return tensor;
}

/** float32, of this shape: the sum of the rows that name each. */
function summed(dy: Tensor, indices: Tensor, shape: readonly number[]): Tensor {
  const sums = Tensor.empty(shape, { device: dy.device });
  addRows(dy, indices, sums, false);
  return sums;
}

function addRows(dy: Tensor, indices: Tensor, sums: Tensor, accumulate: boolean): void {
  const rows = handleOf(withDenseRows(dy), "dy");
  native.embeddingBackward(rows, handleOf(indices, "indices"), handleOf(sums, "sums"), accumulate);
}
