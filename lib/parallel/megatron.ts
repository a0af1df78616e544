// Tensor and sequence parallelism (Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models",
// 2022): a rank has some heads and feed-forward columns of all rows within attention and the MLP, and all columns of its
// own rows between them.
import { checkOptions, failure } from "../errors.ts";
import {
  activateInto,
  checkActivated,
  differentiateInPlace,
  type Part,
  partsOf,
  roomFor,
  widest,
} from "../ops/activated.ts";
import { type ActivatedLinearOptions, activatedLinearOptionNames } from "../ops/activated-linear.ts";
import type { Activation } from "../ops/activation.ts";
import { biasGradient, checkLinear, heldSums, type LinearOptions, linearOptionNames } from "../ops/linear.ts";
import { asMatrix, inDtype, matmul } from "../ops/matmul.ts";
import { Scope } from "../scope.ts";
import { record } from "../tape.ts";
import { handleOf, Tensor } from "../tensor.ts";
import { asContiguous, referenceTo } from "../view.ts";
import type { Communicator } from "./communicator.ts";
import { checkWhole } from "./core.ts";
import { divideHeads, portionOf } from "./heads.ts";
import type { Pending } from "./pending.ts";
import { splitRows, sum } from "./portions.ts";
import { emptyProduct, linearInto, productInto, weightGradient, weightGradientInto } from "./products.ts";
import { checkRows } from "./rows.ts";
import { SequenceShard } from "./shard.ts";
import { gathering, scattering } from "./steps.ts";
import { attendHere, checkAttend, checkCommunicator, type Strategy } from "./strategy.ts";

/**
 * Column-parallel products behind a gather of the sequence, row-parallel ones before its reduce-scatter. Each product
 * is cut by the ranks whose rows it has, so that the rows of one travel while those of another are multiplied; on the
 * backward pass the gather of x runs beside the data gradient, and the scatter of that beside the weight gradient.
 *
 * @param length tokens of the whole sequence; any number, also one that does not divide.
 * @example
 * const layers = Communicator.local([new Device("cpu"), new Device("cpu")]).map((ranks) => megatron(ranks, 5));
 * layers.map(({ shard }) => shard.size); // [2, 3]
 */
export function megatron(communicator: Communicator, length: number): Strategy {
  checkCommunicator("megatron", communicator);
  const { rank, size } = communicator;
  const shard = SequenceShard.contiguous(length, size, rank);
  const counts = Array.from({ length: size }, (_, peer) => shard.of(peer).size);
  return {
    name: "megatron",
    shard,
    inner: SequenceShard.whole(length),
    heads: (queryHeads, keyValueHeads) => divideHeads(queryHeads, keyValueHeads, size)[rank] as never,
    columns: (count) => portionOf(count, size, rank),
    enter: (x, weight, bias, options) => enter(communicator, counts, x, weight, bias, options),
    leave: (x, weight, bias, options) => leave(communicator, counts, x, weight, bias, options),
    attend: (q, k, v, options = {}, keep = (forward) => forward()) => {
      handleOf(q, "attend: q");
      if (q.shape.at(-2) !== 0) return attendHere(q, k, v, options, keep);
      checkAttend(options, keep);
      checkWhole(q, options, length); // as on the ranks that have heads
      return q;
    },
    sum: (x) => communicator.allReduce(x).wait(),
  };
}

/** y = (all ranks' x) weight^T + bias: [B, n, I] to [B, S, share of O]. */
function enter(
  communicator: Communicator,
  counts: readonly number[],
  x: Tensor,
  weight: Tensor,
  bias: Tensor | undefined,
  options: LinearOptions = {},
): Tensor {
  checkOptions("megatron.enter", options, linearOptionNames);
  checkProduct("enter", x, weight, counts[communicator.rank] ?? 0);
  checkLinear("megatron.enter", weight, bias, options);
  const y = Scope.run(() => {
    const out = emptyProduct(x, sum(counts), weight, options);
    const places = splitRows(out, counts, 1);
    gathering(communicator, x, counts, ({ peer, rows }) => {
      linearInto(rows, weight, bias, places[peer] as Tensor);
    });
    return out;
  });
  return record("enter", [y], bias === undefined ? [x, weight] : [x, weight, bias], (save, hold) => {
    const saved = { x: save(x), weight: save(weight) };
    const sums = heldSums(options, hold);
    return ([dy]) =>
      Scope.run(() => {
        const given = inDtype(dy, saved.x.dtype);
        const all = startGathering(communicator, saved.x, counts);
        saved.x.dispose(); // its rows are among all
        const parts = splitRows(given, counts, 1);
        const dx = scattering(communicator, counts, (peer) => matmul(parts[peer] as Tensor, saved.weight));
        const dweight = weightGradient(given, all.wait(), saved.weight, sums.dweight);
        const dbias = bias === undefined ? [] : [biasGradient(asMatrix(given), saved.weight, sums.dbias)];
        return [dx.wait(), dweight, ...dbias];
      });
  });
}

/** y = the sum over ranks of x weight^T, + bias: [B, S, share of I] to [B, n, O]; of x's activation where there is one. */
function leave(
  communicator: Communicator,
  counts: readonly number[],
  x: Tensor,
  weight: Tensor,
  bias: Tensor | undefined,
  given: ActivatedLinearOptions = {},
): Tensor {
  checkOptions("megatron.leave", given, activatedLinearOptionNames);
  const { activation, ...options } = given;
  const { rank } = communicator;
  checkProduct("leave", x, weight, sum(counts), activation);
  checkLinear("megatron.leave", weight, bias, options);
  const own = asContiguous(x);
  const y = Scope.run(() => {
    const places = splitRows(referenceTo(own), counts, 1);
    const operand = activation ? activatedRows(activation, own, weight, counts) : (rows: Tensor) => rows;
    return scattering(communicator, counts, (peer) => {
      const part = emptyProduct(x, counts[peer] ?? 0, weight, options);
      // Each row's bias is added once: by the rank that has the row.
      linearInto(operand(places[peer] as Tensor), weight, peer === rank ? bias : undefined, part);
      return part;
    }).wait();
  });
  return record("leave", [y], bias === undefined ? [own, weight] : [own, weight, bias], (save, hold) => {
    const saved = { x: save(own), weight: save(weight) };
    const sums = heldSums(options, hold);
    return ([dy]) =>
      Scope.run(() => {
        const given = inDtype(dy, saved.x.dtype);
        const products = activation
          ? activatedGradients(communicator, counts, activation, { ...saved, dy: given }, sums.dweight)
          : leaveGradients(communicator, counts, { ...saved, dy: given }, sums.dweight);
        const dbias = bias === undefined ? [] : [biasGradient(asMatrix(given), saved.weight, sums.dbias)];
        return [...products, ...dbias];
      });
  });
}

/** Of x and of the weight. */
function leaveGradients(
  communicator: Communicator,
  counts: readonly number[],
  { x, weight, dy }: { x: Tensor; weight: Tensor; dy: Tensor },
  total: Tensor | undefined,
): [dx: Tensor, dweight: Tensor | null] {
  const dx = Tensor.empty(x.shape, { dtype: x.dtype, device: x.device });
  const places = splitRows(dx, counts, 1);
  const all = gathering(communicator, dy, counts, ({ peer, rows }) => {
    productInto(rows, weight, places[peer] as Tensor);
  });
  return [dx, weightGradient(all, x, weight, total)];
}

/** The activation of a peer's rows, in the place of that of the peer before. */
function activatedRows(activation: Activation, x: Tensor, weight: Tensor, counts: readonly number[]) {
  const [batch = 1] = x.shape;
  const [, columns = 0] = weight.shape;
  const room = roomFor(batch * Math.max(...counts) * columns, x);
  return (rows: Tensor): Tensor => {
    const activated = room([batch, rows.shape[1] ?? 0, columns]);
    activateInto(activation, rows, { begin: 0, end: columns }, activated);
    return activated;
  };
}

/** The same as `leaveGradients`, some columns of the activation after the others; x's gradient takes its place. */
function activatedGradients(
  communicator: Communicator,
  counts: readonly number[],
  activation: Activation,
  { x, weight, dy }: { x: Tensor; weight: Tensor; dy: Tensor },
  total: Tensor | undefined,
): [dx: Tensor, dweight: Tensor | null] {
  const [batch = 1, length = 0] = x.shape;
  const [outputs = 0, columns = 0] = weight.shape;
  const rows = batch * length;
  const parts = partsOf(columns, Math.min(rows, outputs), x.device);
  const room = roomFor(rows * widest(parts), x);
  const shapeOf = ({ begin, end }: Part) => [batch, length, end - begin];
  const columnsOf = (tensor: Tensor, { begin, end }: Part) => tensor.slice(1, begin, end);
  // The first columns' gradient is made of rows as they come.
  const [first] = parts as [Part];
  const gradient = Tensor.empty(shapeOf(first), { dtype: x.dtype, device: x.device });
  const places = splitRows(gradient, counts, 1);
  const all = gathering(communicator, dy, counts, ({ peer, rows }) => {
    productInto(rows, columnsOf(weight, first), places[peer] as Tensor);
  });
  const dweight = total ?? Tensor.empty(weight.shape, { dtype: weight.dtype, device: weight.device });
  for (const part of parts) {
    const activated = room(shapeOf(part));
    activateInto(activation, x, part, activated);
    weightGradientInto(all, activated, columnsOf(dweight, part), total !== undefined);
    if (part !== first) productInto(all, columnsOf(weight, part), activated);
    differentiateInPlace(activation, x, part, part === first ? gradient : activated);
  }
  return [referenceTo(x), total ? null : dweight];
}

/** Here, since what does not fit would be known to the other ranks alone, and end the group. */
function checkProduct(move: string, x: Tensor, weight: Tensor, rows: number, activation?: Activation): void {
  checkRows(`megatron.${move}: x`, x, 1, rows, move === "enter" ? "those of the shard" : "all of them");
  handleOf(weight, `megatron.${move}: weight`);
  if (activation !== undefined) checkActivated(`megatron.${move}`, activation, x, weight);
  if (x.shape.length !== 3 || weight.shape.length !== 2 || (!activation && x.shape[2] !== weight.shape[1])) {
    throw failure(
      "ERR_SHAPE",
      `megatron.${move}: x is [${x.shape}] and weight [${weight.shape}], expected [B, S, I] and [O, I]`,
    );
  }
  if (x.dtype !== weight.dtype) {
    throw failure("ERR_DTYPE", `megatron.${move}: weight is ${weight.dtype}, expected ${x.dtype} (x's)`);
  }
}

/** All ranks' rows of x [B, n, h], on their way. */
function startGathering(communicator: Communicator, x: Tensor, counts: readonly number[]): Pending<Tensor> {
  const [batch = 1, rows = 0, columns = 0] = x.shape;
  const first = batch === 1 ? x.reshape([rows, 1, columns]) : x.permute(1, 0, 2);
  const moved = communicator.allGather(first, counts);
  return moved.map((all) => all.permute(1, 0, 2));
}
