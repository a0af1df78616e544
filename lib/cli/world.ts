// The processes that run a command together: one, or as many as a launcher has started, each of which is a rank.
import {
  Communicator,
  type Device,
  type ExchangeOptions,
  exchange,
  info,
  rankFromEnvironment,
} from "../index.ts";
import { addressOf } from "../launch/rendezvous.ts";
import { UsageError } from "./arguments.ts";

/** On every process the same calls are made in the same order. */
export interface World {
  readonly rank: number;
  readonly size: number;
  /** Where rank 0's machine is reached. */
  readonly host: string;
  /** Every process's value, as JSON has it, in the order of their ranks. */
  gather<T>(value: T): Promise<T[]>;
  /** Milliseconds by rank 0's clock, so that what is decided by time is decided alike everywhere. */
  now(): Promise<number>;
  /** The devices of this process's ranks, of so many in all; "cuda" stands for a GPU each, where there are as many. */
  deviceNames(named: string, ranks: number): readonly string[];
  /** The communicators of its ranks, once all have met. */
  connect(devices: readonly Device[]): Promise<readonly Communicator[]>;
}

/** What a launcher has started. */
export interface Launched {
  readonly size: number;
  /** "longseq launch", "Slurm" */
  readonly launcher: string;
}

export function launchedProcesses(): Launched {
  const { size, source } = rankFromEnvironment();
  return { size, launcher: source === "longseq" ? "longseq launch" : source };
}

/** Of this process: alone, or what its launcher says. An abort ends all waiting for other processes. */
export function openWorld(signal?: AbortSignal): World {
  const place = rankFromEnvironment();
  return place.size === 1 ? alone : new LaunchedWorld(place, signal ? { signal } : {});
}

export const alone: World = {
  rank: 0,
  size: 1,
  host: "127.0.0.1",
  gather: async (value) => [value],
  now: async () => performance.now(),
  deviceNames: (named, ranks) => {
    const isSpread = named === "cuda" && info().cuda.gpus.length >= ranks;
    return Array.from({ length: ranks }, (_, rank) => (isSpread ? `cuda:${rank}` : named));
  },
  connect: async (devices) => Communicator.local(devices),
};

/** The slowest run of the others, for which a process waits. */
const patienceMs = 600_000;

type Place = Pick<ReturnType<typeof rankFromEnvironment>, "rank" | "size" | "localRank" | "localSize">;

/**
 * They tell each other values over TCP, and not through the communicator: that one ends where a rank has no memory
 * left, and just this is what the others then have to hear.
 */
export class LaunchedWorld implements World {
  readonly rank: number;
  readonly size: number;
  readonly #place: Place;
  readonly #options: ExchangeOptions;

  /** `options`: where they meet, by default as the launcher says. */
  constructor(place: Place, options: ExchangeOptions = {}) {
    const { rank, size } = place;
    this.rank = rank;
    this.size = size;
    this.#place = place;
    this.#options = { timeoutMs: patienceMs, ...options, rank, size };
  }

  get host(): string {
    return addressOf("bench", this.#options, this.rank).host;
  }

  async gather<T>(value: T): Promise<T[]> {
    const texts = await exchange(JSON.stringify(value ?? null), this.#options);
    return texts.map((text) => JSON.parse(text) as T);
  }

  async now(): Promise<number> {
    const [first = 0] = await this.gather(performance.now());
    return first;
  }

  deviceNames(named: string): readonly string[] {
    const { size, localRank, localSize } = this.#place;
    if (named === "cpu") {
      throw new UsageError(
        `the device is cpu, expected cuda: NCCL joins the GPUs of ${size} processes; on the CPU --ranks ${size} runs as many ranks in one`,
      );
    }
    // A launcher may also show each process its own GPU alone.
    if (info().cuda.gpus.length <= 1) return [named];
    if (named !== "cuda" && localSize > 1) {
      throw new UsageError(
        `the device is ${named}, expected cuda: each of the ${localSize} processes of this host has a GPU of its own`,
      );
    }
    return [named === "cuda" ? `cuda:${localRank}` : named];
  }

  async connect([device]: readonly Device[]): Promise<readonly Communicator[]> {
    return [await Communicator.nccl({ ...this.#options, ...(device && { device }) })];
  }
}
