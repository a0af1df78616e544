// What vectors of layers and models need of the ranks that share the sequence.
import {
  type Device,
  type ParameterSpecification,
  SequenceShard,
  type Strategy,
  shareParameters,
  type Tensor,
  wholeGradients,
} from "../../index.ts";
import type { FloatType, Result } from "./operation.ts";
import type { VectorFile } from "./vector-file.ts";

export interface Rank {
  readonly strategy: Strategy;
  readonly device: Device;
}

/** Rows of the whole sequence, where the rank is. */
export function rowsOf({ strategy, device }: Rank, x: Tensor): Tensor {
  const rows = strategy.shard.take(x);
  return device === x.device ? rows : rows.toDevice(device);
}

export function joined(ranks: readonly Rank[], parts: readonly Tensor[], device: Device): Tensor {
  return SequenceShard.join(
    parts.map((part) => (part.device === device ? part : part.toDevice(device))),
    ranks.map(({ strategy }) => strategy.shard),
  );
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
  const held = ranks.map(({ strategy }, at) => ({ placement: strategy, tensors: gradients[at] ?? {} }));
  const whole = Object.entries(wholeGradients(table, held));
  return Object.fromEntries(whole.map(([name, tensor]) => [`d.${name}`, tensor]));
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
