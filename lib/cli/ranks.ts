// How ranks that share a sequence are named on the command line.
import { info } from "../index.ts";
import { type Arguments, type OptionTable, UsageError } from "./arguments.ts";
import { RankGroup } from "./rank-group.ts";
import { launchedProcesses, type World } from "./world.ts";

export const parallelTypes = ["megatron", "ulysses", "ring", "zigzag", "hybrid"] as const;
export type ParallelType = (typeof parallelTypes)[number];

export const parallelOptions: OptionTable = {
  ranks: {
    value: "N",
    help: "ranks that share the sequence, in this process (default: 1; under longseq launch its processes)",
  },
  "sequence-parallel": {
    value: "TYPE",
    help: `how they share it: ${parallelTypes.join(", ")} (default: zigzag where there are several ranks)`,
  },
};

/** How many ranks there are, and what they do. */
export interface Parallel {
  readonly size: number;
  /** "serial" where none is named and there is one rank. */
  readonly type: ParallelType | "serial";
}

/** `launched`: of several processes each is a rank. */
export function parallelOf(given: Arguments, launched = launchedProcesses()): Parallel {
  const { size: processes, launcher } = launched;
  const size = given.integer("ranks", 1) ?? processes;
  if (size > 1024) throw new UsageError(`--ranks is ${size}, expected 1 to 1024`);
  if (processes > 1 && size !== processes) {
    throw new UsageError(
      `--ranks is ${size}, expected ${processes}: ${launcher} started ${processes} processes, each of them a rank`,
    );
  }
  const type = given.choice("sequence-parallel", parallelTypes);
  return { size, type: type ?? (size > 1 ? "zigzag" : "serial") };
}

/** Where ranks run, whether or not the command line says: "cuda" stands for as many GPUs as there are ranks. */
export function rankDevice(named: string | undefined): string {
  // By its name alone: the default device would be one more on the first GPU, in every process.
  return named ?? (process.env.LONGSEQ_DEVICE || (info().cuda.gpus.length > 0 ? "cuda" : "cpu"));
}

/** The ranks that the command line asks for, once all of them have met. */
export async function openRanks(parallel: Parallel, deviceName: string, world: World): Promise<RankGroup> {
  const group = new RankGroup(parallel, deviceName, world);
  await group.join();
  return group;
}
