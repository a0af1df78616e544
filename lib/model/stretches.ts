// Which ranks hold which part of each parameter, as the ranks tell each other.
import { createHash } from "node:crypto";
import { failure } from "../errors.ts";
import type { Communicator } from "../parallel/communicator.ts";
import type { Range } from "../parallel/strategy.ts";
import { Scope } from "../scope.ts";
import { Tensor } from "../tensor.ts";
import type { ParameterSpecification, Placement } from "./parameters.ts";
import { cuts } from "./wholes.ts";

/** Of a parameter's axis: each rank holds all of it or nothing. */
export interface Stretch extends Range {
  /** Ascending. */
  readonly holders: readonly number[];
}

/** Of each parameter. Every rank calls it. */
export async function stretchesOf(
  table: readonly ParameterSpecification[],
  placement: Placement,
  communicator: Communicator,
): Promise<Stretch[][]> {
  await checkSameTable(table, communicator);
  const own = table.map((parameter) => parameter.held(placement));
  const ends = own.flat().flatMap(({ begin, end }) => [begin, end]);
  const values = await fromAll(communicator, ends);
  let at = 0;
  return table.map(({ name, shape, axis }, i) => {
    const count = own[i]?.length ?? 0;
    const ofRanks = Array.from({ length: communicator.size }, (_, rank) =>
      Array.from({ length: count }, (_, range): Range => {
        const [begin = 0, end = 0] = values.subarray(rank * ends.length + at + 2 * range);
        return { begin, end };
      }),
    );
    at += 2 * count;
    return cuts(ofRanks.flat(), shape[axis] ?? 0).map((part): Stretch => {
      const isHeld = (ranges: readonly Range[]) =>
        ranges.some(({ begin, end }) => begin <= part.begin && part.end <= end);
      const holders = ofRanks.flatMap((ranges, rank) => (isHeld(ranges) ? [rank] : []));
      if (holders.length > 0) return { ...part, holders };
      const where = `[${part.begin}, ${part.end}) of axis ${axis} of ${name}`;
      throw failure("ERR_OPTION", `SharedParameters: no rank of the communicator holds ${where}`);
    });
  });
}

/** One behind the other, those of all ranks, each of which has as many. */
async function fromAll(communicator: Communicator, values: readonly number[]): Promise<Int32Array> {
  const { device } = communicator;
  using all = Scope.run(() =>
    communicator.allGather(Tensor.from(values, [1, values.length], { dtype: "int32", device })).wait(),
  );
  return (await all.data()) as Int32Array;
}

/** Else ranks would go on with each other's parts of something else. Told by a hash, whose size is the same on all. */
async function checkSameTable(
  table: readonly ParameterSpecification[],
  communicator: Communicator,
): Promise<void> {
  const text = JSON.stringify(table.map(({ name, shape, axis }) => [name, shape, axis]));
  const digest = createHash("sha256").update(text).digest();
  const words = Array.from({ length: digest.length / 4 }, (_, i) => digest.readInt32LE(4 * i));
  const all = await fromAll(communicator, words);
  const other = communicator.rank === 0 ? 1 : 0;
  for (let rank = other; rank < communicator.size; rank++) {
    const its = all.subarray(rank * words.length, (rank + 1) * words.length);
    if (its.join() === words.join()) continue;
    throw failure(
      "ERR_COMM",
      `SharedParameters: rank ${rank} has another table than rank ${communicator.rank}`,
    );
  }
}
