// A file of parameters that ranks share: rank 0 writes it, while the others send what they hold.
import { checkPath } from "../data/file-errors.ts";
import { byWidth, type Metadata, writeSafetensors } from "../data/safetensors-writer.ts";
import { failure } from "../errors.ts";
import { concatenate } from "../ops/concatenate.ts";
import type { Communicator } from "../parallel/communicator.ts";
import type { Range } from "../parallel/strategy.ts";
import { Scope } from "../scope.ts";
import { Tensor } from "../tensor.ts";
import { asContiguous } from "../view.ts";
import type { ParameterSpecification } from "./parameters.ts";
import type { Stretch } from "./stretches.ts";
import { asStored, partOf } from "./wholes.ts";

/** What this rank holds of a parameter, and who holds what of it. */
export interface SharedParameter {
  readonly parameter: ParameterSpecification;
  readonly share: Tensor;
  /** Those of the parameter's axis that the share has. */
  readonly ranges: readonly Range[];
  readonly stretches: readonly Stretch[];
}

/** Every rank calls it; where rank 0 cannot write, all of them hear of it. */
export async function saveShared(
  path: string,
  metadata: Metadata,
  communicator: Communicator,
  shared: readonly SharedParameter[],
): Promise<void> {
  const { rank, device } = communicator;
  const open = [...shared].sort((a, b) => byWidth(a.share, b.share));
  const described = open.flatMap(({ parameter: { stored, shape }, share: { dtype } }) =>
    stored.map(({ name, rows }) => ({ name, dtype, shape: shape.with(0, rows) })),
  );
  async function* wholes() {
    for (let next = open.shift(); next !== undefined; next = open.shift()) {
      const stored = Scope.run(() => gathered(communicator, next as SharedParameter));
      try {
        yield* stored;
      } finally {
        for (const tensor of stored) tensor.dispose();
      }
    }
  }
  let fault: unknown;
  try {
    if (rank === 0) {
      checkPath("save", path);
      await writeSafetensors("save", path, described, metadata, wholes());
    }
  } catch (error) {
    fault = error;
  }
  // Also where rank 0 could not write: others send what they hold before they hear of it.
  for (const next of open) Scope.run(() => void gathered(communicator, next));
  using faults = Scope.run(() =>
    communicator.allReduce(Tensor.from([fault === undefined ? 0 : 1], [1], { device })).wait(),
  );
  const count = await faults.item();
  if (fault !== undefined) throw fault;
  if (count > 0) throw failure("ERR_FILE", `save: ${path}: rank 0 could not write it`);
}

/** What files have of the parameter: rank 0 gets it, each part from the first rank that holds that. */
function gathered(
  communicator: Communicator,
  { parameter, share, ranges, stretches }: SharedParameter,
): Tensor[] {
  const { rank } = communicator;
  const { axis, shape } = parameter;
  const { dtype, device } = share;
  const parts = stretches.flatMap((stretch) => {
    const [peer = 0] = stretch.holders;
    const [own] = peer === rank ? partOf(share, axis, ranges, stretch) : [];
    if (own) return { peer, tensor: asContiguous(own) };
    return rank === 0
      ? { peer, tensor: Tensor.empty(shape.with(axis, stretch.end - stretch.begin), { dtype, device }) }
      : [];
  });
  const received = parts.filter(({ peer }) => peer !== rank);
  const sent = rank === 0 ? [] : parts.map(({ tensor }) => ({ peer: 0, tensor }));
  communicator.exchange(sent, received).wait();
  if (rank !== 0) return [];
  const whole = concatenate(
    parts.map(({ tensor }) => tensor),
    axis,
  );
  return asStored(parameter, whole).map(([, tensor]) => tensor);
}
