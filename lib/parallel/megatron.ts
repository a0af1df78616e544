// Tensor and sequence parallelism (Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models",
// 2022): a rank has some heads and feed-forward columns of all rows within attention and the MLP, and all columns of its
// own rows between them.
import { failure } from "../errors.ts";
import { native } from "../native.ts";
import { keptAttention } from "../ops/attention.ts";
import type { LinearOptions } from "../ops/linear.ts";
import { asMatrix, inDtype, matmul } from "../ops/matmul.ts";
import { Scope } from "../scope.ts";
import { record } from "../tape.ts";
import { handleOf, Tensor } from "../tensor.ts";
import type { Communicator } from "./communicator.ts";
import { divideHeads, portionOf } from "./heads.ts";
import type { Pending } from "./pending.ts";
import { splitRows, sum, untracked } from "./portions.ts";
import { checkRows } from "./rows.ts";
import { SequenceShard } from "./shard.ts";
import { gathering, scattering } from "./steps.ts";
import type { Strategy } from "./strategy.ts";

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
    attend: (q, k, v, options, keep) => (q.shape.at(-2) === 0 ? q : keptAttention(q, k, v, options, keep)),
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
  checkProduct("enter", x, weight, counts[communicator.rank] ?? 0);
  const y = Scope.run(() => {
    const out = emptyProduct(x, sum(counts), weight, options);
    const places = splitRows(out, counts, 1);
    gathering(communicator, x, counts, ({ peer, rows }) => {
      linearInto(rows, weight, bias, places[peer] as Tensor);
    });
    return out;
  });
  return record("enter", [y], bias === undefined ? [x, weight] : [x, weight, bias], (save) => {
    const saved = { x: save(x), weight: save(weight) };
    const sums = savedSums(options, save);
    return ([dy]) =>
      Scope.run(() => {
        const given = inDtype(dy, saved.x.dtype);
        const all = startGathering(communicator, saved.x, counts);
        const parts = splitRows(given, counts, 1);
        const dx = scattering(communicator, counts, (peer) => matmul(parts[peer] as Tensor, saved.weight));
        const dweight = weightGradient(given, all.wait(), saved.weight, sums.dweight);
        const dbias = bias === undefined ? [] : [biasGradient(given, bias.shape, sums.dbias)];
        return [dx.wait(), dweight, ...dbias];
      });
  });
}

/** y = the sum over ranks of x weight^T, + bias: [B, S, share of I] to [B, n, O]. */
function leave(
  communicator: Communicator,
  counts: readonly number[],
  x: Tensor,
  weight: Tensor,
  bias: Tensor | undefined,
  options: LinearOptions = {},
): Tensor {
  const { rank } = communicator;
  checkProduct("leave", x, weight, sum(counts));
  const y = Scope.run(() => {
    const places = splitRows(untracked(x), counts, 1);
    return scattering(communicator, counts, (peer) => {
      const rows = places[peer] as Tensor;
      const part = emptyProduct(x, counts[peer] ?? 0, weight, options);
      // Each row's bias is added once: by the rank that has the row.
      linearInto(rows, weight, peer === rank ? bias : undefined, part);
      return part;
    }).wait();
  });
  return record("leave", [y], bias === undefined ? [x, weight] : [x, weight, bias], (save) => {
    const saved = { x: save(x), weight: save(weight) };
    const sums = savedSums(options, save);
    return ([dy]) =>
      Scope.run(() => {
        const given = inDtype(dy, saved.x.dtype);
        const dx = Tensor.empty(saved.x.shape, { dtype: saved.x.dtype, device: saved.x.device });
        const places = splitRows(dx, counts, 1);
        const all = gathering(communicator, given, counts, ({ peer, rows }) => {
          productInto(rows, saved.weight, places[peer] as Tensor);
        });
        const dweight = weightGradient(all, saved.x, saved.weight, sums.dweight);
        const dbias = bias === undefined ? [] : [biasGradient(given, bias.shape, sums.dbias)];
        return [dx, dweight, ...dbias];
      });
  });
}

/** Here, since what does not fit would be known to the other ranks alone, and end the group. */
function checkProduct(move: string, x: Tensor, weight: Tensor, rows: number): void {
  checkRows(`megatron.${move}: x`, x, 1, rows, move === "enter" ? "those of the shard" : "all of them");
  handleOf(weight, `megatron.${move}: weight`);
  if (x.shape.length !== 3 || weight.shape.length !== 2 || x.shape[2] !== weight.shape[1]) {
    throw failure(
      "ERR_SHAPE",
      `megatron.${move}: x is [${x.shape}] and weight [${weight.shape}], expected [B, S, I] and [O, I]`,
    );
  }
  if (x.dtype !== weight.dtype) {
    throw failure("ERR_DTYPE", `megatron.${move}: weight is ${weight.dtype}, expected ${x.dtype} (x's)`);
  }
}

/** For x weight^T of so many rows of each sequence: [B, rows, O]. */
function emptyProduct(x: Tensor, rows: number, weight: Tensor, { outDtype }: LinearOptions): Tensor {
  const { shape, dtype, device } = x;
  return Tensor.empty([shape[0] ?? 1, rows, weight.shape[0] ?? 0], { dtype: outDtype ?? dtype, device });
}

function savedSums(options: LinearOptions, save: (tensor: Tensor) => Tensor): LinearOptions {
  return {
    ...(options.dweight && { dweight: save(options.dweight) }),
    ...(options.dbias && { dbias: save(options.dbias) }),
  };
}

/** Batch by batch, since a peer's rows of several batches do not lie in one go. */
function eachBatch(a: Tensor, b: Tensor, work: (a: Tensor, b: Tensor) => void): void {
  for (let batch = 0; batch < (a.shape[0] ?? 0); batch++) work(a.select(0, batch), b.select(0, batch));
}

function linearInto(rows: Tensor, weight: Tensor, bias: Tensor | undefined, place: Tensor): void {
  const parameters = [
    handleOf(weight, "linear: weight"),
    bias ? handleOf(bias, "linear: bias") : null,
  ] as const;
  eachBatch(rows, place, (x, y) => {
    native.linear(handleOf(x, "linear: x"), ...parameters, handleOf(y, "linear: y"));
  });
}

function productInto(rows: Tensor, weight: Tensor, place: Tensor): void {
  const right = handleOf(weight, "linear: weight");
  eachBatch(rows, place, (a, out) => {
    native.matmul(handleOf(a, "linear: dy"), right, null, handleOf(out, "linear: dx"), false, false, false);
  });
}

/** dy^T x, added to `total` where there is one; null then. */
function weightGradient(dy: Tensor, x: Tensor, weight: Tensor, total: Tensor | undefined): Tensor | null {
  const out = total ?? Tensor.empty(weight.shape, { dtype: weight.dtype, device: weight.device });
  native.matmul(
    handleOf(asMatrix(dy), "linear: dy"),
    handleOf(asMatrix(x), "linear: x"),
    null,
    handleOf(out, "linear: dweight"),
    true,
    false,
    total !== undefined,
  );
  return total ? null : out;
}

function biasGradient(dy: Tensor, shape: readonly number[], total: Tensor | undefined): Tensor | null {
  const out = Tensor.empty(shape, { dtype: total?.dtype ?? dy.dtype, device: dy.device });
  native.columnSum(handleOf(dy, "linear: dy"), handleOf(out, "linear: dbias"));
  if (total === undefined) return out;
  const into = handleOf(total, "linear: dbias");
  native.add(into, handleOf(out, "linear: dbias"), into);
  return null;
}

/** All ranks' rows of x [B, n, h], on their way. */
function startGathering(communicator: Communicator, x: Tensor, counts: readonly number[]): Pending<Tensor> {
  const [batch = 1, rows = 0, columns = 0] = x.shape;
  const first = batch === 1 ? x.reshape([rows, 1, columns]) : x.permute(1, 0, 2);
  const moved = communicator.allGather(first, counts);
  return moved.map((all) => all.permute(1, 0, 2));
}
