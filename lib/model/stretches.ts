// Which ranks hold which part of each parameter, as the ranks tell each other.
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
  const own = table.map((parameter) => parameter.held(placement));
  const ends = own.flat().flatMap(({ begin, end }) => [begin, end]);
  const all = Scope.run(() => {
    const { device } = communicator;
    return communicator.allGather(Tensor.from(ends, [1, ends.length], { dtype: "int32", device })).wait();
  });
  const values = (await all.data()) as Int32Array;
  all.dispose();
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
