// A Python process that runs bench/peer_torch.py, and answers one request after the other.
import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { createInterface } from "node:readline";
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
export class PeerError extends Error {}

/** Those of the name that was asked for: all for "torch". */
export function implementationsNamed(name: string, { implementations }: Greeting): readonly string[] {
  const named = name === "torch" ? implementations : implementations.filter((one) => one === name);
  if (named.length > 0) return named;
  throw new PeerError(`${name} is not what PyTorch has for this: ${implementations.join(", ")}`);
}

export function sayWithout(implementation: string, reason: string): void {
  process.stderr.write(`longseq bench: without ${implementation}: ${reason}\n`);
}

/** `LONGSEQ_PYTHON`, or `python3`. */
export class PythonProcess {
  readonly #command = process.env.LONGSEQ_PYTHON || "python3";
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #answers: AsyncIterator<string>;
  readonly #ended: Promise<void>;
  #complaint = "";
  readonly #onExit = () => this.#child.kill("SIGKILL");

  constructor() {
    this.#child = spawn(this.#command, [script], { stdio: "pipe" });
    this.#child.stderr.on("data", (chunk: Buffer) => {
      this.#complaint = (this.#complaint + chunk).slice(-4000);
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
    this.#answers = createInterface(this.#child.stdout)[Symbol.asyncIterator]();
    process.once("exit", this.#onExit);
  }

  /** Rejects with a PeerError, or with a code where memory ran out or there is no kernel. */
  async ask<Answer = object>(request: object): Promise<Answer> {
    this.#child.stdin.write(`${JSON.stringify(request)}\n`);
    const { value, done } = await this.#answers.next();
    if (done) {
      await this.#ended;
      throw new PeerError(`${this.#command}: ${this.#lastWords()}`);
    }
    const answer = JSON.parse(value) as Answer & { error?: string; oom?: boolean; unsupported?: boolean };
    if (answer.error === undefined) return answer;
    const [reason = ""] = answer.error.split("\n");
    if (answer.unsupported) throw Object.assign(new PeerError(reason), { code: unsupported });
    if (answer.oom) throw Object.assign(new PeerError(reason), { code: "ERR_OUT_OF_MEMORY" });
    throw new PeerError(answer.error);
  }

  /** Resolves once nothing of it is left, on the GPU either. */
  end(): Promise<void> {
    process.off("exit", this.#onExit);
    this.#child.kill("SIGKILL");
    return this.#ended;
  }

  #lastWords(): string {
    if (/No module named 'torch'/.test(this.#complaint)) {
      return "it has no torch; set LONGSEQ_PYTHON to a Python that has it";
    }
    // What it had to say before says nothing of that.
    if (this.#child.signalCode !== null) return `it ended with ${this.#child.signalCode}`;
    return this.#complaint.trim().split("\n").at(-1) || "it ended without a word";
  }
}
