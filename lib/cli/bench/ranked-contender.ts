// What several ranks do together, as a contender: timed by marks on each rank's queue.
import { type Device, type Mark, Scope } from "../../index.ts";
import { watchWaits } from "../../parallel/pending.ts";
import { median } from "../quantity.ts";
import type { Rank, RankGroup } from "../rank-group.ts";
import { type Contender, emptyCache } from "./contender.ts";

/** One rank's part, with everything made beforehand that does not belong to it. */
export interface RankProgram extends Disposable {
  /** Queues what is not timed, and gives what is. */
  begin(): () => void;
}

export interface RankedProblem {
  readonly implementation: string;
  readonly group: RankGroup;
  readonly seqLen: number;
  readonly prepare: (rank: Rank) => RankProgram;
}

/** From one mark to another on a rank's queue. */
type Interval = readonly [begin: Mark, end: Mark];

interface Timed {
  readonly whole: Interval;
  /** Where they were looked at. */
  readonly waits?: readonly Interval[];
}

/** A rank's run: how long it took, and the share of that in which its queue waited for the link. */
interface RankTime {
  readonly ms: number;
  readonly share: number | undefined;
}

export class RankedContender implements Contender {
  readonly implementation: string;
  /** On a GPU runs that are short are queued one behind the other, so that no run waits for JavaScript. */
  readonly runMany: Contender["runMany"];
  readonly #problem: RankedProblem;
  #programs: readonly RankProgram[] = [];
  readonly #shares: number[] = [];

  constructor(problem: RankedProblem) {
    const isGpu = problem.group.kind === "cuda";
    this.#problem = problem;
    this.implementation = problem.implementation;
    if (isGpu) this.runMany = (count) => this.#run(count, true);
  }

  async prepare(): Promise<void> {
    const { group, seqLen, prepare } = this.#problem;
    await group.join();
    await group.attempt(async () => {
      const programs: RankProgram[] = [];
      this.#programs = programs;
      for (const rank of group.ranks(seqLen)) programs.push(prepare(rank));
      for (const device of group.devices) await device.synchronize();
    });
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
    const own = Math.max(...this.#devices.map((device) => device.memory().peakBytes));
    return Math.max(...(await this.#problem.group.attempt(async () => own)));
  }

  async dispose(): Promise<void> {
    for (const program of this.#programs) program[Symbol.dispose]();
    this.#programs = [];
  }

  get #devices(): readonly Device[] {
    return this.#problem.group.devices;
  }

  async #run(count: number, isCold: boolean): Promise<number[]> {
    const processes = await this.#problem.group.attempt(async () => {
      // A short run's marks are a part of its time: one run's waits say enough.
      const runs = Array.from({ length: count }, (_, run) => this.#queue(isCold, run === count - 1));
      const times: RankTime[][] = [];
      for (const ranks of runs) times.push(await settled(ranks.map(timeOf)));
      return times;
    });
    return Array.from({ length: count }, (_, run) => {
      const ranks = processes.flatMap((times) => times[run] ?? []);
      const shares = ranks.flatMap(({ share }) => share ?? []);
      if (shares.length > 0) this.#shares.push(shares.reduce((sum, share) => sum + share) / shares.length);
      // The slowest rank's: the others would only wait for it.
      return Math.max(...ranks.map(({ ms }) => ms));
    });
  }

  /** One run of this process's ranks, one rank's program after the other. */
  #queue(isCold: boolean, watchesWaits: boolean): Timed[] {
    const devices = this.#devices;
    const timed = this.#programs.map((program) => program.begin());
    const isFirst = (device: Device, rank: number) =>
      devices.findIndex(({ name }) => name === device.name) === rank;
    if (isCold) for (const device of devices.filter(isFirst)) emptyCache(device);
    // A rank that is ahead of the others would count its waiting for them as its own time.
    this.#problem.group.align();
    const begins = devices.map((device) => device.mark());
    return devices.map((device, rank) => {
      const work = () => Scope.run(() => timed[rank]?.());
      const waits = watchesWaits ? marked(device, work) : work();
      return { whole: [begins[rank] as Mark, device.mark()], ...(waits && { waits }) };
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

async function timeOf({ whole, waits }: Timed): Promise<RankTime> {
  const ms = await lengthOf(whole);
  if (waits === undefined) return { ms, share: undefined };
  let waiting = 0;
  for (const wait of waits) waiting += await lengthOf(wait);
  return { ms, share: ms > 0 ? waiting / ms : 0 };
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
