// What vectors of layers and models need of the ranks that share the sequence. Wholes are sums over the ranks, each of which
// has zeros in place of what it does not hold: that is exact, and works where the other ranks are other processes.
import {
  type ParameterSpecification,
  SequenceShard,
  serial,
  shareParameters,
  Tensor,
  wholeGradients,
} from "../../index.ts";
import type { Rank } from "../rank-group.ts";
import type { FloatType, Result } from "./operation.ts";
import type { VectorFile } from "./vector-file.ts";

/** Rows of the whole sequence, where the rank is. */
export function rowsOf({ strategy, device }: Rank, x: Tensor): Tensor {
  const rows = strategy.shard.take(x);
  return device === x.device ? rows : rows.toDevice(device);
}

/** The rows of the whole sequence, of which each rank has made its part. */
export function joined(ranks: readonly Rank[], parts: readonly Tensor[]): Tensor {
  return wholeOf(ranks, ({ strategy, device }, at) => {
    const { shard, sum } = strategy;
    const own = parts[at] as Tensor;
    const shards = Array.from({ length: shard.ranks }, (_, rank) => shard.of(rank));
    const rows = shards.map(({ rank, size }) =>
      rank === shard.rank ? own : Tensor.zeros(own.shape.with(1, size), { dtype: own.dtype, device }),
    );
    return sum(SequenceShard.join(rows, shards));
  });
}

/** The file's weights that a rank holds. */
export function weightsOf(
  file: VectorFile,
  table: readonly ParameterSpecification[],
  { strategy, device }: Rank,
  dtype: FloatType,
): Record<string, Tensor> {
  for (const { stored, shape } of table) {
    for (const { name, rows } of stored) file.tensor(name, shape.with(0, rows));
  }
  return shareParameters(table, file.tensors, strategy, { dtype, device });
}

/** The whole gradients of all ranks' weights, under the names of the file: d.<weight>. */
export function gradientsOf(
  table: readonly ParameterSpecification[],
  ranks: readonly Rank[],
  gradients: readonly Record<string, Tensor>[],
): Record<string, Tensor> {
  return wholeOf(ranks, ({ strategy, device }, at) => {
    const zeros = table.map(({ name, shape }) => [name, Tensor.zeros(shape, { device })] as const);
    const own = wholeGradients(table, [
      { placement: strategy, tensors: gradients[at] ?? {} },
      { placement: serial(0), tensors: Object.fromEntries(zeros) },
    ]);
    return Object.fromEntries(
      Object.entries(own).map(([name, tensor]) => [`d.${name}`, strategy.sum(tensor)]),
    );
  });
}

/** All ranks have the same then: the first one's here. */
function wholeOf<T>(ranks: readonly Rank[], sum: (rank: Rank, at: number) => T): T {
  const [first] = ranks.map(sum);
  return first as T;
}

/** Of what was computed, that for which the file holds a result. */
export function resultsOf(
  file: VectorFile,
  computed: Readonly<Record<string, Tensor>>,
  kindOf: (name: string) => Result["kind"],
): Result[] {
  return Object.entries(computed).flatMap(([name, value]): Result[] => {
    const expected = file.optionalTensor(name, value.shape);
    return expected ? [{ name, value, expected, kind: kindOf(name) }] : [];
  });
}
