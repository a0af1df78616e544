// PyTorch as a peer of ranks that are processes: a Python process beside each of them, on its GPU, and all of them
// together a layer as Megatron-LM divides it. A rank that does not come to a collective would hold all others there for
// good, so all ranks ask alike, and hear of each other's answers; where one fails the processes of all are ended, and
// others started where there is more to do.
import { setTimeout as sleep } from "node:timers/promises";
import { failed, failureAmong, type Outcome } from "../outcome.ts";
import { RemoteFailure } from "../output.ts";
import type { World } from "../world.ts";
import type { Contender } from "./contender.ts";
import { unsupported } from "./measure.ts";
import {
  type Greeting,
  type Hello,
  implementationsNamed,
  PeerError,
  PythonProcess,
  sayWithout,
} from "./peer-process.ts";

/** How often those that wait for their answer hear whether another has failed. */
const lookMs = 1000;

export class RankedTorchPeer implements Disposable {
  readonly version: string;
  /** As rows are named: however ours share the sequence, these are Megatron's. */
  readonly implementations: readonly string[];
  readonly #names: readonly string[];
  readonly #hello: Hello;
  readonly #world: World;
  #session: Session;

  private constructor(name: string, hello: Hello, world: World, session: Session) {
    this.#names = implementationsNamed(name, session.greeting);
    this.implementations = this.#names.map(rowName);
    this.version = session.greeting.torch;
    this.#hello = hello;
    this.#world = world;
    this.#session = session;
  }

  /** As TorchPeer.start, on all ranks: rejects on all of them where one has no peer. */
  static async start(name: string, hello: Hello, world: World): Promise<RankedTorchPeer> {
    const session = await Session.open(hello, world);
    try {
      return new RankedTorchPeer(name, hello, world, session);
    } catch (error) {
      await session.end();
      throw error;
    }
  }

  operationContenders(problem: object): Contender[] {
    const isGpu = this.#hello.device !== "cpu";
    return this.#names.map(
      (name) => new RankedTorchContender(() => this.#opened(), this.#world, isGpu, name, problem),
    );
  }

  async #opened(): Promise<Session> {
    if (this.#session.isEnded) this.#session = await Session.open(this.#hello, this.#world);
    return this.#session;
  }

  [Symbol.dispose](): void {
    void this.#session.end();
  }
}

const rowName = (implementation: string) => `${implementation} (megatron)`;

class RankedTorchContender implements Contender {
  readonly implementation: string;
  readonly runMany: Contender["runMany"];
  readonly #open: () => Promise<Session>;
  readonly #world: World;
  readonly #name: string;
  readonly #problem: object;
  #session: Session | undefined;

  constructor(open: () => Promise<Session>, world: World, isGpu: boolean, name: string, problem: object) {
    this.implementation = rowName(name);
    this.#open = open;
    this.#world = world;
    this.#name = name;
    this.#problem = problem;
    if (isGpu) this.runMany = (count) => this.#runMany(count);
  }

  /** Whatever one rank lacks for it, all do without. */
  async prepare(): Promise<void> {
    try {
      this.#session = await this.#open();
      await this.#session.ask({ op: "prepare", implementation: this.#name, ...this.#problem });
    } catch (error) {
      const isPeers = error instanceof PeerError || error instanceof RemoteFailure;
      if (!isPeers || (error as { code?: unknown }).code === "ERR_OUT_OF_MEMORY") throw error;
      if (this.#world.rank === 0) sayWithout(this.implementation, error.message);
      throw Object.assign(new PeerError(error.message), { code: unsupported });
    }
  }

  async run(): Promise<number> {
    const answers = await this.#ask<{ ms: number }>("run");
    return Math.max(...answers.map(({ ms }) => ms));
  }

  async #runMany(count: number): Promise<number[]> {
    const answers = await this.#ask<{ ms: number[] }>("runMany", { count });
    // The slowest rank's: the others would only wait for it.
    return Array.from({ length: count }, (_, run) => Math.max(...answers.map(({ ms }) => ms[run] as number)));
  }

  async resetPeak(): Promise<void> {
    await this.#ask("resetPeak");
  }

  /** Of the rank that held most. */
  async peakBytes(): Promise<number | undefined> {
    const bytes = (await this.#ask<{ bytes: number | null }>("peak")).map((answer) => answer.bytes);
    return bytes.includes(null) ? undefined : Math.max(...bytes.map(Number));
  }

  async dispose(): Promise<void> {
    if (this.#session && !this.#session.isEnded) await this.#ask("dispose");
  }

  async #ask<Answer>(op: string, more: object = {}): Promise<Answer[]> {
    // Another implementation's failure has ended all processes, and what was ready in them.
    if (!this.#session || this.#session.isEnded) await this.prepare();
    const session = this.#session as Session;
    return await session.ask<Answer>({ op, implementation: this.#name, ...more });
  }
}

/** The Python processes of all ranks, joined by torch.distributed; this rank has its own in hand. */
class Session {
  readonly #process = new PythonProcess();
  readonly #world: World;
  #greeting: Greeting = { torch: "", implementations: [] };
  #isEnded = false;

  private constructor(world: World) {
    this.#world = world;
  }

  static async open(hello: Hello, world: World): Promise<Session> {
    const { rank, size, host } = world;
    const session = new Session(world);
    const [first] = await session.#agree(session.#process.greet(hello));
    session.#greeting = first as Greeting;
    const listening = rank === 0 ? session.#process.ask<{ port: number }>({ op: "listen", host }) : undefined;
    const [root] = await session.#agree(Promise.resolve(listening));
    await session.ask({ op: "join", rank, size, host, port: root?.port });
    return session;
  }

  /** Rank 0's. */
  get greeting(): Greeting {
    return this.#greeting;
  }

  get isEnded(): boolean {
    return this.#isEnded;
  }

  /** The answers of all ranks, in their order. */
  ask<Answer>(request: object): Promise<Answer[]> {
    return this.#agree(this.#process.ask<Answer>(request));
  }

  async end(): Promise<void> {
    this.#isEnded = true;
    await this.#process.end();
  }

  async #agree<T>(work: Promise<T>): Promise<T[]> {
    const own: { outcome: Outcome<T> | null; error?: unknown } = { outcome: null };
    const settled = work.then(
      (value) => {
        own.outcome = { value };
      },
      (error: unknown) => {
        own.outcome = failed(error);
        own.error = error;
      },
    );
    for (;;) {
      await Promise.race([settled, sleep(lookMs, undefined, { ref: false })]);
      const outcomes = await this.#world.gather(own.outcome);
      const failure = failureAmong(outcomes, this.#world.rank, own.error);
      if (failure) {
        await this.end();
        throw failure.error;
      }
      if (outcomes.every((outcome) => outcome !== null))
        return outcomes.map((outcome) => outcome?.value as T);
    }
  }
}
