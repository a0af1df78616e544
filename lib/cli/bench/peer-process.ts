// A Python process that runs bench/peer_torch.py, and answers one request after the other.
import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { createInterface, type Interface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { unsupported } from "./measure.ts";

const script = fileURLToPath(new URL("../../../bench/peer_torch.py", import.meta.url));

/** What it is for, said first. */
export interface Hello {
  readonly device: string;
  readonly threads: number;
  readonly what: string;
  readonly dtype: string;
  readonly masked: boolean;
}

export interface Greeting {
  readonly torch: string;
  readonly implementations: readonly string[];
}

/** There is no PyTorch to compare with, or it failed: the message says why. */
export class PeerError extends Error {
  readonly code: string = "ERR_PEER";
}

/** Those of the name that was asked for: all for "torch". */
export function implementationsNamed(name: string, { implementations }: Greeting): readonly string[] {
  const named = name === "torch" ? implementations : implementations.filter((one) => one === name);
  if (named.length > 0) return named;
  throw new PeerError(`${name} is not what PyTorch has for this: ${implementations.join(", ")}`);
}

export function sayWithout(implementation: string, reason: string): void {
  process.stderr.write(`longseq bench: without ${implementation}: ${reason}\n`);
}

/** To import PyTorch takes a minute where the disk is slow. */
const importMs = 180_000;
/** An answer is a few figures. */
const longestLine = 1 << 20;
/** Of a process that says no more, to end, so that its complaint is whole. */
const lastWordsMs = 1000;

/** `LONGSEQ_PYTHON`, or `python3`. */
export class PythonProcess {
  readonly #command = process.env.LONGSEQ_PYTHON || "python3";
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #lines: Interface;
  readonly #answers: AsyncIterator<string>;
  readonly #ended: Promise<void>;
  #complaint = "";
  /** Why we ended it. */
  #verdict: string | undefined;
  readonly #onExit = () => this.#kill();

  constructor() {
    // In a group of its own, to be ended with whatever it has started: that would hold our pipes.
    this.#child = spawn(this.#command, [script], { stdio: "pipe", detached: true });
    this.#child.stderr.on("data", (chunk: Buffer) => {
      this.#complaint = (this.#complaint + chunk).slice(-4000);
    });
    let unended = 0;
    this.#child.stdout.on("data", (chunk: Buffer) => {
      unended = chunk.includes("\n") ? 0 : unended + chunk.length;
      if (unended > longestLine) this.#giveUp("its answer has no end");
    });
    this.#ended = new Promise((resolve) => {
      this.#child.once("close", resolve);
      this.#child.once("error", (error) => {
        this.#complaint = error.message;
        resolve();
      });
    });
    // Writing to a process that has ended fails; `ask` reports its end by the answer that is missing.
    this.#child.stdin.on("error", () => {});
    this.#lines = createInterface(this.#child.stdout);
    this.#answers = this.#lines[Symbol.asyncIterator]();
    process.once("exit", this.#onExit);
  }

  /** As `ask`, of what may turn out to be no Python at all: it has to answer in time. */
  async greet(hello: Hello, patienceMs = importMs): Promise<Greeting> {
    const late = `it did not answer within ${patienceMs / 1000} s`;
    const waiting = setTimeout(() => this.#giveUp(late), patienceMs);
    try {
      const greeting = await this.ask<Partial<Greeting>>({ op: "hello", ...hello });
      const { torch, implementations } = greeting;
      if (typeof torch === "string" && Array.isArray(implementations)) return { torch, implementations };
      throw this.#misunderstood(JSON.stringify(greeting));
    } finally {
      clearTimeout(waiting);
    }
  }

  /** Rejects with a PeerError, or with a code where memory ran out or there is no kernel. */
  async ask<Answer = object>(request: object): Promise<Answer> {
    this.#child.stdin.write(`${JSON.stringify(request)}\n`);
    const { value, done } = await this.#answers.next();
    if (done) {
      await Promise.race([this.#ended, sleep(lastWordsMs, undefined, { ref: false })]);
      if (this.#isRunning) this.#giveUp("it closed its output");
      await this.end();
      throw new PeerError(`${this.#command}: ${this.#lastWords()}`);
    }
    const answer = this.#parsed(value) as Answer & { error?: string; oom?: boolean; unsupported?: boolean };
    if (answer.error === undefined) return answer;
    const [reason = ""] = String(answer.error).split("\n");
    if (answer.unsupported) throw Object.assign(new PeerError(reason), { code: unsupported });
    if (answer.oom) throw Object.assign(new PeerError(reason), { code: "ERR_OUT_OF_MEMORY" });
    throw new PeerError(String(answer.error));
  }

  /** Resolves once nothing of it is left, on the GPU either. */
  end(): Promise<void> {
    process.off("exit", this.#onExit);
    this.#kill();
    // Not all that it has started need be in its group.
    this.#lines.close();
    this.#child.stdout.destroy();
    this.#child.stderr.destroy();
    return this.#ended;
  }

  #giveUp(verdict: string): void {
    this.#verdict ??= verdict;
    void this.end();
  }

  get #isRunning(): boolean {
    const { pid, exitCode, signalCode } = this.#child;
    return pid !== undefined && exitCode === null && signalCode === null;
  }

  #kill(): void {
    if (this.#isRunning) process.kill(-Number(this.#child.pid), "SIGKILL");
  }

  #parsed(line: string): object {
    try {
      const answer: unknown = JSON.parse(line);
      if (typeof answer === "object" && answer !== null) return answer;
    } catch {
      // Said below.
    }
    throw this.#misunderstood(line);
  }

  #misunderstood(answer: string): PeerError {
    const shown = JSON.stringify(answer.slice(0, 60));
    return new PeerError(`${this.#command}: it answered ${shown}, expected what bench/peer_torch.py does`);
  }

  #lastWords(): string {
    if (this.#verdict !== undefined) return this.#verdict;
    if (/No module named 'torch'/.test(this.#complaint)) {
      return "it has no torch; set LONGSEQ_PYTHON to a Python that has it";
    }
    // What it had to say before says nothing of that.
    if (this.#child.signalCode !== null) return `it ended with ${this.#child.signalCode}`;
    return this.#complaint.trim().split("\n").at(-1) || "it ended without a word";
  }
}
