// Runs the processes of a launch: passes their output on, passes signals to them, and ends all of them when one fails.
import { type ChildProcess, spawn } from "node:child_process";
import { constants } from "node:os";
import type { Writable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { copyLines, Sink } from "./lines.ts";
import { remnants, signalProcesses } from "./remnants.ts";
import { type Death, deathIn, relabelled } from "./reports.ts";
import type { Start, Starter } from "./starter.ts";

export interface Supervision {
  readonly starter: Starter;
  /** The launch's own, which its processes are known by. */
  readonly token: string;
  /** This machine, for messages. */
  readonly host: string;
  readonly environment: NodeJS.ProcessEnv;
  readonly isLabelled: boolean;
  /** From asking what is left to end until ending it. */
  readonly graceMs: number;
  readonly stdout: Writable;
  readonly stderr: Writable;
  /** What the launcher itself has to say. */
  say(message: string): void;
}

const forwarded = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/** Of pipes that are still open when everything that is known to hold them has ended. */
const lastWordsMs = 1000;

/** Resolves to the exit code when all have ended: 0, that of the first that failed, or 128 and the signal's number. */
export async function supervise(starts: readonly Start[], supervision: Supervision): Promise<number> {
  return await new Launch(starts, supervision).run();
}

class Launch {
  readonly #starts: readonly Start[];
  readonly #with: Supervision;
  /** Each leads a process group, of its own children too. */
  readonly #children: ChildProcess[] = [];
  /** Of groups that may still have processes. */
  readonly #groups = new Set<number>();
  #death: Death | undefined;
  /** How the starter itself ended, where that is not the ranks' own doing. */
  #last: Death | undefined;
  /** What it said of a rank. */
  #told: Death | undefined;
  #signal: NodeJS.Signals | undefined;
  #killing: NodeJS.Timeout | undefined;

  constructor(starts: readonly Start[], supervision: Supervision) {
    this.#starts = starts;
    this.#with = supervision;
  }

  readonly #onSignal = (signal: NodeJS.Signals) => {
    if (this.#signal === undefined) {
      this.#signal = signal;
      this.#signalAll(signal);
      this.#with.say(`${signal} is passed on; a second one ends all ranks at once`);
    } else this.#killAll();
  };

  /** However this process ends, short of being killed itself. */
  readonly #onExit = () => this.#killAll();

  async run(): Promise<number> {
    for (const signal of forwarded) process.on(signal, this.#onSignal);
    process.on("exit", this.#onExit);
    try {
      const stdout = new Sink(this.#with.stdout);
      const stderr = new Sink(this.#with.stderr);
      const copies = this.#starts.map((start) => this.#start(start, stdout, stderr));
      await Promise.all(copies.map(({ ended }) => ended));
      await this.#endRemnants();
      const outputs = Promise.all(copies.map(({ output }) => output));
      await Promise.race([outputs, sleep(lastWordsMs, undefined, { ref: false })]);
      for (const { stdout: out, stderr: err } of this.#children) {
        out?.destroy();
        err?.destroy();
      }
      await outputs;
      // Not before its output has been read: that says more.
      if (this.#last !== undefined && this.#last.code !== 0) this.#fail(this.#told ?? this.#last);
    } finally {
      clearTimeout(this.#killing);
      for (const signal of forwarded) process.off(signal, this.#onSignal);
      process.off("exit", this.#onExit);
    }
    if (this.#signal !== undefined) return 128 + constants.signals[this.#signal];
    return this.#death?.code ?? 0;
  }

  #start({ argv, variables, rank }: Start, stdout: Sink, stderr: Sink) {
    const [program = "", ...args] = argv;
    const { environment, host } = this.#with;
    const child = spawn(program, args, {
      env: { ...environment, ...variables },
      // As with mpiexec, what is typed or piped in is the first rank's; from a terminal another session cannot read.
      stdio: [rank === undefined || rank === 0 ? inheritable() : "ignore", "pipe", "pipe"],
      detached: true,
    });
    this.#children.push(child);
    if (child.pid !== undefined) this.#groups.add(child.pid);
    const ended = new Promise<void>((resolve) => {
      child.once("error", (error: NodeJS.ErrnoException) => {
        if (child.pid !== undefined) return;
        const code = error.code === "ENOENT" ? 127 : 126;
        this.#fail({ rank, host, how: `cannot be started: ${error.message}`, code });
        resolve();
      });
      child.once("exit", (code, signal) => {
        const status = signal === null ? (code ?? 0) : 128 + constants.signals[signal];
        const death = { rank, host, how: `ended with ${signal ?? `exit code ${code}`}`, code: status };
        this.#signalGroup(child.pid, "SIGTERM");
        if (rank === undefined) this.#last = death;
        else if (status !== 0) this.#fail(death);
        resolve();
      });
    });
    const output = Promise.all([
      // None where this process has too many files open to start it.
      child.stdout && copyLines(child.stdout, stdout, (line) => this.#label(line, rank)),
      child.stderr && copyLines(child.stderr, stderr, (line) => this.#label(line, rank)),
    ]);
    return { ended, output };
  }

  #label(line: Buffer, rank: number | undefined): Uint8Array | string | null {
    const { starter, isLabelled } = this.#with;
    if (starter === "local") return isLabelled ? Buffer.concat([Buffer.from(`[${rank}] `), line]) : line;
    // latin1 keeps every byte as it is.
    const text = line.toString("latin1");
    const shown = isLabelled ? relabelled(text, starter) : text;
    const death = deathIn(shown);
    if (death?.isOurs) this.#fail(death);
    // Any program could print such a line: it counts once the starter has failed.
    else if (death !== undefined) this.#told ??= death;
    return death?.isOurs ? null : Buffer.from(shown, "latin1");
  }

  /** The first to fail is why the others end. */
  #fail(death: Death): void {
    if (this.#death !== undefined) return;
    this.#death = death;
    if (this.#signal !== undefined) return;
    const { starter, graceMs, say } = this.#with;
    const who = death.rank === undefined ? starter : `rank ${death.rank} on ${death.host}`;
    say(`${who} ${death.how}${this.#groups.size > 0 ? "; ending the others" : ""}`);
    // The others end the rest themselves; Open MPI 4 crashes when it is asked to while it does.
    if (starter === "local" || starter === "MPICH") this.#signalAll("SIGTERM");
    this.#killing = setTimeout(() => this.#killAll(), graceMs);
  }

  /** What ranks that have ended left running on this machine: asked to end, then ended. */
  async #endRemnants(): Promise<void> {
    const until = performance.now() + this.#with.graceMs;
    signalProcesses(this.#remnants(), "SIGTERM");
    while (this.#remnants().length > 0 && performance.now() < until) await sleep(20);
    this.#killAll();
  }

  #remnants(): number[] {
    return remnants("LONGSEQ_TOKEN", this.#with.token);
  }

  #killAll(): void {
    this.#signalAll("SIGKILL");
    signalProcesses(this.#remnants(), "SIGKILL");
  }

  #signalAll(signal: NodeJS.Signals): void {
    for (const group of this.#groups) this.#signalGroup(group, signal);
  }

  #signalGroup(group: number | undefined, signal: NodeJS.Signals): void {
    if (group === undefined || !this.#groups.has(group)) return;
    try {
      process.kill(-group, signal);
    } catch {
      // Nobody is left in it, and its number may become another's.
      this.#groups.delete(group);
    }
  }
}

const inheritable = () => (process.stdin.isTTY ? "ignore" : "inherit");
