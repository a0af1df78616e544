// What several ranks do together, as a contender: timed by marks on each rank's queue.
import { type Device, type Mark, Scope } from "../../index.ts";
import { watchWaits } from "../../parallel/pending.ts";
import { median } from "../quantity.ts";
import { openRanks, type Parallel, type RankGroup } from "../ranks.ts";
import type { Rank } from "../verify/ranks.ts";
import { type Contender, emptyCache } from "./contender.ts";

/** One rank's part, with everything made beforehand that does not belong to it. */
export interface RankProgram extends Disposable {
  /** Queues what is not timed, and gives what is. */
  begin(): () => void;
}

export interface RankedProblem {
  readonly implementation: string | undefined;
  readonly parallel: Parallel;
  readonly device: string;
  readonly seqLen: number;
  readonly prepare: (rank: Rank) => RankProgram;
}

/** From one mark to another on a rank's queue. */
type Interval = readonly [begin: Mark, end: Mark];

interface Timed {
  readonly whole: Interval;
  readonly waits: readonly Interval[];
}

export class RankedContender implements Contender {
  readonly implementation: string;
  /** On a GPU runs that are short are queued one behind the other, so that no run waits for JavaScript. */
  readonly runMany: Contender["runMany"];
  readonly #problem: RankedProblem;
  #group: RankGroup | undefined;
  #programs: readonly RankProgram[] = [];
  readonly #shares: number[] = [];

  constructor(problem: RankedProblem) {
    const isGpu = problem.device !== "cpu";
    this.#problem = problem;
    this.implementation = problem.implementation ?? (isGpu ? "sm80" : "cpu");
    if (isGpu) this.runMany = (count) => this.#run(count, true);
  }

  async prepare(): Promise<void> {
    const { parallel, device, seqLen, prepare } = this.#problem;
    const group = openRanks(parallel, device);
    this.#group = group;
    const programs: RankProgram[] = [];
    this.#programs = programs;
    for (const rank of group.ranks(seqLen)) programs.push(prepare(rank));
    for (const device of group.devices) await device.synchronize();
  }

  async run(): Promise<number> {
    const [ms = Number.NaN] = await this.#run(1, false);
    return ms;
  }

  /** Of a rank's time, what its queue waited for the link, on the mean of the ranks; undefined before the second run. */
  get communicationShare(): number | undefined {
    // The first run also makes what later ones find.
    const [, ...shares] = this.#shares;
    return shares.length > 0 ? median(shares) : undefined;
  }

  async resetPeak(): Promise<void> {
    for (const device of this.#devices) device.resetPeak();
  }

  /** Of the rank that held most. */
  async peakBytes(): Promise<number> {
    return Math.max(...this.#devices.map((device) => device.memory().peakBytes));
  }

  async dispose(): Promise<void> {
    for (const program of this.#programs) program[Symbol.dispose]();
    this.#group?.[Symbol.dispose]();
    this.#programs = [];
    this.#group = undefined;
  }

  get #devices(): readonly Device[] {
    return this.#group?.devices ?? [];
  }

  async #run(count: number, isCold: boolean): Promise<number[]> {
    const devices = this.#devices;
    try {
      const runs = Array.from({ length: count }, () => this.#queue(isCold));
      const times: number[] = [];
      for (const ranks of runs) {
        const waited = await settled(
          ranks.map(async ({ whole, waits }) => {
            const ms = await lengthOf(whole);
            let waiting = 0;
            for (const wait of waits) waiting += await lengthOf(wait);
            return { ms, share: ms > 0 ? waiting / ms : 0 };
          }),
        );
        times.push(Math.max(...waited.map(({ ms }) => ms)));
        this.#shares.push(waited.reduce((sum, { share }) => sum + share, 0) / waited.length);
      }
      return times;
    } catch (error) {
      // Ranks that wait for one that has failed do so until it leaves; what they hold is free once they are through.
      const through = Promise.allSettled(devices.map((device) => device.synchronize()));
      await this.dispose();
      await through;
      throw error;
    }
  }

  /** One run of all ranks, one rank's program after the other. */
  #queue(isCold: boolean): Timed[] {
    const devices = this.#devices;
    const timed = this.#programs.map((program) => program.begin());
    const isFirst = (device: Device, rank: number) =>
      devices.findIndex(({ name }) => name === device.name) === rank;
    if (isCold) for (const device of devices.filter(isFirst)) emptyCache(device);
    const begins = devices.map((device) => device.mark());
    return devices.map((device, rank) => {
      const waits = marked(device, () => Scope.run(() => timed[rank]?.()));
      return { whole: [begins[rank] as Mark, device.mark()], waits };
    });
  }
}

/** Queues the work, with a mark before and after each wait for the link. */
function marked(device: Device, work: () => void): Interval[] {
  const waits: Interval[] = [];
  let begin: Mark | undefined;
  const watcher = {
    before: () => {
      begin = device.mark();
    },
    // A wait that is made of others has none of its own.
    after: () => {
      if (begin) waits.push([begin, device.mark()]);
      begin = undefined;
    },
  };
  watchWaits(watcher, work);
  return waits;
}

function lengthOf([begin, end]: Interval): Promise<number> {
  return end.since(begin);
}

/** All of them, or once all are done the error that says most: the ranks of one that has no memory hear that it left. */
async function settled<T>(work: readonly Promise<T>[]): Promise<T[]> {
  const results = await Promise.allSettled(work);
  const errors = results.flatMap((result) =>
    result.status === "rejected" ? [result.reason as unknown] : [],
  );
  if (errors.length > 0) {
    throw errors.find((error) => (error as { code?: unknown }).code === "ERR_OUT_OF_MEMORY") ?? errors[0];
  }
  return results.flatMap((result) => (result.status === "fulfilled" ? [result.value] : []));
}
