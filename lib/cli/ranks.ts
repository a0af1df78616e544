// Ranks of this process that share a sequence, as the command line names them.
import {
  Communicator,
  Device,
  hybrid,
  info,
  megatron,
  rankFromEnvironment,
  ring,
  type Strategy,
  serial,
  ulysses,
  zigzag,
} from "../index.ts";
import { type Arguments, type OptionTable, UsageError } from "./arguments.ts";
import type { Rank } from "./verify/ranks.ts";

export const parallelTypes = ["megatron", "ulysses", "ring", "zigzag", "hybrid"] as const;
export type ParallelType = (typeof parallelTypes)[number];

export const parallelOptions: OptionTable = {
  ranks: { value: "N", help: "ranks that share the sequence, in this process (default: 1)" },
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

export function parallelOf(given: Arguments): Parallel {
  const size = given.integer("ranks", 1) ?? 1;
  if (size > 1024) throw new UsageError(`--ranks is ${size}, expected 1 to 1024`);
  const type = given.choice("sequence-parallel", parallelTypes);
  return { size, type: type ?? (size > 1 ? "zigzag" : "serial") };
}

/** Where ranks run, whether or not the command line says: "cuda" stands for as many GPUs as there are ranks. */
export function rankDevice(named: string | undefined): string {
  // LONGSEQ_DEVICE names one, if it is set.
  return named ?? (process.env.LONGSEQ_DEVICE ? Device.default.name : Device.default.kind);
}

/** How many processors ranks are on: several queues may be one's. */
export function deviceCount(devices: readonly Device[]): number {
  return new Set(devices.map(({ name }) => name)).size;
}

/** The ranks that the command line asks for: here those of several processes will meet. */
export function openRanks(parallel: Parallel, deviceName: string): RankGroup {
  const { size, source } = rankFromEnvironment();
  if (size > 1) {
    throw new UsageError(
      `${source} started ${size} processes: ranks that are processes come in a later version; --ranks ${size} runs as many in one`,
    );
  }
  return new RankGroup(parallel, deviceName);
}

/** The ranks, on queues of their own of one device, or for "cuda" on a GPU each where there are as many. */
export class RankGroup implements Disposable {
  readonly devices: readonly Device[];
  readonly #communicators: readonly Communicator[];
  readonly #type: Parallel["type"];

  constructor({ size, type }: Parallel, deviceName: string) {
    this.#type = type;
    const isSpread = deviceName === "cuda" && info().cuda.gpus.length >= size;
    this.devices = Array.from(
      { length: size },
      (_, rank) => new Device(isSpread ? `cuda:${rank}` : deviceName),
    );
    this.#communicators = type === "serial" ? [] : Communicator.local(this.devices);
  }

  /** Of a sequence of so many tokens. */
  ranks(length: number): Rank[] {
    return this.devices.map((device, rank) => {
      const communicator = this.#communicators[rank];
      return { strategy: communicator ? this.#strategy(communicator, length) : serial(length), device };
    });
  }

  #strategy(communicator: Communicator, length: number): Strategy {
    switch (this.#type) {
      case "serial":
        return serial(length);
      case "megatron":
        return megatron(communicator, length);
      case "ulysses":
        return ulysses(communicator, length);
      case "ring":
        return ring(communicator, length);
      case "zigzag":
        return zigzag(communicator, length);
      case "hybrid":
        return hybrid(communicator, length, { ulysses: middleDivisor(communicator.size) });
    }
  }

  [Symbol.dispose](): void {
    for (const communicator of this.#communicators) communicator.dispose();
    for (const device of this.devices) device.dispose();
  }
}

/** The largest divisor whose square is not above the number. */
function middleDivisor(count: number): number {
  let divisor = Math.floor(Math.sqrt(count));
  while (count % divisor !== 0) divisor--;
  return divisor;
}
