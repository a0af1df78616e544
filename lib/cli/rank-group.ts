// The ranks that share a sequence, as many of them as this process runs: all, or one where each is a process.
import {
  type Communicator,
  Device,
  hybrid,
  megatron,
  partitionPositions,
  ring,
  type Strategy,
  serial,
  ulysses,
  zigzag,
} from "../index.ts";
import { failed, failureAmong, type Outcome } from "./outcome.ts";
import type { Parallel } from "./ranks.ts";
import type { World } from "./world.ts";

/** One of the ranks, and how it shares the sequence with the others. */
export interface Rank {
  readonly strategy: Strategy;
  readonly device: Device;
}

/**
 * On queues of their own of one device, or for "cuda" on a GPU each where there are as many. Where ranks are processes,
 * every process has a group of its one rank, and on all of them the same calls are made in the same order.
 */
export class RankGroup implements Disposable {
  readonly world: World;
  readonly #type: Parallel["type"];
  readonly #deviceNames: readonly string[];
  #devices: readonly Device[] = [];
  /** None while the group is left. */
  #communicators: readonly Communicator[] | undefined;

  constructor({ size, type }: Parallel, deviceName: string, world: World) {
    this.world = world;
    this.#type = type;
    this.#deviceNames = world.deviceNames(deviceName, size);
  }

  /** Of this process's ranks; others once the group was left and joined again. */
  get devices(): readonly Device[] {
    return this.#devices;
  }

  get kind(): Device["kind"] {
    return this.#deviceNames[0] === "cpu" ? "cpu" : "cuda";
  }

  /** How many processors all ranks are on: several queues may be one's, while NCCL wants a GPU for each process. */
  get deviceCount(): number {
    return this.world.size > 1 ? this.world.size : new Set(this.#deviceNames).size;
  }

  /** Opens devices and meets the other ranks, as all do; does nothing unless the group is new or was left. */
  async join(): Promise<void> {
    if (this.#communicators) return;
    // Only now is nothing left on them, so that their memory goes back to the GPU.
    for (const device of this.#devices) device.dispose();
    this.#devices = [];
    // One after the other: who has no device must be heard of before the others wait for it to connect.
    await this.attempt(async () => {
      this.#devices = this.#deviceNames.map((name) => new Device(name));
    });
    await this.attempt(async () => {
      this.#communicators = this.#type === "serial" ? [] : await this.world.connect(this.#devices);
    });
  }

  /** Resolves once nothing runs any more: a rank that has failed is waited for by the others until it leaves. */
  async leave(): Promise<void> {
    const through = Promise.allSettled(this.#devices.map((device) => device.synchronize()));
    for (const communicator of this.#communicators ?? []) communicator.dispose();
    this.#communicators = undefined;
    await through;
  }

  /**
   * Runs this process's part of what all do together, and resolves to what every process has made of it, in their order.
   * Where one fails, all leave the group and reject with the error that says most.
   */
  async attempt<T>(work: () => Promise<T>): Promise<T[]> {
    let own: unknown;
    const outcome: Outcome<T> = await work().then(
      (value) => ({ value }),
      async (error: unknown) => {
        own = error;
        await this.leave();
        return failed(error);
      },
    );
    const outcomes = await this.world.gather(outcome);
    const failure = failureAmong(outcomes, this.world.rank, own);
    if (!failure) return outcomes.map(({ value }) => value as T);
    if (outcome.error === undefined) await this.leave();
    throw failure.error;
  }

  /** Holds each device until those of all other ranks have come here too. */
  align(): void {
    for (const communicator of this.#communicators ?? []) communicator.barrier().wait();
  }

  /** Those of this process, of a sequence of so many tokens. */
  ranks(length: number): Rank[] {
    if (!this.#communicators) throw new Error("ranks of a group that was left");
    return this.#devices.map((device, at) => {
      const communicator = this.#communicators?.[at];
      return { strategy: communicator ? this.#strategy(communicator, length) : serial(length), device };
    });
  }

  #strategy(communicator: Communicator, length: number): Strategy {
    const strategy = strategyOf(this.#type, communicator, length);
    return communicator.size > 1 ? partitionPositions(strategy, communicator) : strategy;
  }

  [Symbol.dispose](): void {
    for (const communicator of this.#communicators ?? []) communicator.dispose();
    this.#communicators = undefined;
    for (const device of this.#devices) device.dispose();
  }
}

function strategyOf(type: Parallel["type"], communicator: Communicator, length: number): Strategy {
  switch (type) {
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

/** The largest divisor whose square is not above the number. */
function middleDivisor(count: number): number {
  let divisor = Math.floor(Math.sqrt(count));
  while (count % divisor !== 0) divisor--;
  return divisor;
}
