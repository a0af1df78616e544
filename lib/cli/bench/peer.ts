// PyTorch as a peer: one Python process for the whole sweep, told over standard input what to prepare and which of its
// implementations to run when, so that their runs and ours alternate.
import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { unlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import type { Contender } from "./contender.ts";
import { unsupported } from "./measure.ts";
import { documentBoundaries, type Pass, type Problem, wholeMask } from "./problem.ts";

const script = fileURLToPath(new URL("../../../bench/peer_torch.py", import.meta.url));
/** PyTorch wants a mask as an array; one of more than 2 GiB is no sensible comparison. */
const largestMaskBytes = 2 ** 31;

interface Greeting {
  readonly torch: string;
  readonly implementations: readonly string[];
}

/** There is no PyTorch to compare with, or it failed: the message says why. */
export class PeerError extends Error {}

export class TorchPeer implements Disposable {
  readonly version: string;
  readonly implementations: readonly string[];
  readonly #process: PythonProcess;
  readonly #isGpu: boolean;

  private constructor(process: PythonProcess, isGpu: boolean, greeting: Greeting) {
    this.#process = process;
    this.#isGpu = isGpu;
    this.version = greeting.torch;
    this.implementations = greeting.implementations;
  }

  /**
   * Starts `LONGSEQ_PYTHON`, or `python3`, for all implementations ("torch") or the one of that name; throws a
   * PeerError where it has no torch, or not that implementation.
   */
  static async start(
    name: string,
    device: string,
    threads: number,
    problem: { what: string; dtype: string; masked: boolean },
  ): Promise<TorchPeer> {
    const process = new PythonProcess(globalThis.process.env.LONGSEQ_PYTHON || "python3");
    try {
      const greeting = await process.ask<Greeting>({ op: "hello", device, threads, ...problem });
      const all = greeting.implementations;
      const implementations = name === "torch" ? all : all.filter((one) => one === name);
      if (implementations.length === 0) {
        throw new PeerError(`${name} is not what PyTorch has for this: ${all.join(", ")}`);
      }
      return new TorchPeer(process, device !== "cpu", { ...greeting, implementations });
    } catch (error) {
      process.end();
      throw error;
    }
  }

  contenders(problem: Problem, pass: Pass): Contender[] {
    return this.implementations.map(
      (name) => new TorchAttention(this.#process, this.#isGpu, name, problem, pass),
    );
  }

  /** Of an operation by rows (operations.ts). */
  operationContenders(problem: object): Contender[] {
    return this.implementations.map(
      (name) => new TorchContender(this.#process, this.#isGpu, name, async () => problem),
    );
  }

  [Symbol.dispose](): void {
    this.#process.end();
  }
}

class TorchContender implements Contender {
  readonly implementation: string;
  readonly runMany: Contender["runMany"];
  readonly #process: PythonProcess;
  readonly #request: () => Promise<object>;

  /** `request` resolves to what peer_torch.py is to prepare. */
  constructor(
    process: PythonProcess,
    isGpu: boolean,
    implementation: string,
    request: () => Promise<object>,
  ) {
    this.#process = process;
    this.implementation = implementation;
    this.#request = request;
    if (isGpu) this.runMany = async (count) => (await this.#ask<{ ms: number[] }>("runMany", { count })).ms;
  }

  #ask<Answer = object>(op: string, more: object = {}): Promise<Answer> {
    return this.#process.ask<Answer>({ op, implementation: this.implementation, ...more });
  }

  async prepare(): Promise<void> {
    await this.#ask("prepare", await this.#request());
  }

  async run(): Promise<number> {
    return (await this.#ask<{ ms: number }>("run")).ms;
  }

  async resetPeak(): Promise<void> {
    await this.#ask("resetPeak");
  }

  async peakBytes(): Promise<number | undefined> {
    return (await this.#ask<{ bytes: number | null }>("peak")).bytes ?? undefined;
  }

  async dispose(): Promise<void> {
    await this.#ask("dispose");
  }
}

class TorchAttention extends TorchContender {
  #maskFile: string | null = null;

  constructor(process: PythonProcess, isGpu: boolean, name: string, problem: Problem, pass: Pass) {
    super(process, isGpu, name, async () => {
      // FlexAttention takes the rule itself.
      this.#maskFile = name === "torch-flex" ? null : await writeMask(problem);
      const boundaries = problem.mask === "documents" ? documentBoundaries(problem.seqLen) : null;
      return { pass, ...problem, boundaries, maskFile: this.#maskFile };
    });
  }

  override async prepare(): Promise<void> {
    try {
      await super.prepare();
    } finally {
      if (this.#maskFile) await unlink(this.#maskFile);
    }
  }
}

async function writeMask(problem: Problem): Promise<string | null> {
  using mask = wholeMask(problem);
  if (!mask) return null;
  if (mask.queries * mask.keys > largestMaskBytes) {
    throw Object.assign(new Error("the dense mask is too large"), { code: "ERR_OUT_OF_MEMORY" });
  }
  const path = join(tmpdir(), `longseq-mask-${process.pid}`);
  await writeFile(path, mask.toDense());
  return path;
}

class PythonProcess {
  readonly #command: string;
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #answers: AsyncIterator<string>;
  readonly #ended: Promise<void>;
  #complaint = "";
  readonly #onExit = () => this.#child.kill("SIGKILL");

  constructor(command: string) {
    this.#command = command;
    this.#child = spawn(command, [script], { stdio: "pipe" });
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

  async ask<Answer = object>(request: object): Promise<Answer> {
    this.#child.stdin.write(`${JSON.stringify(request)}\n`);
    const { value, done } = await this.#answers.next();
    if (done) {
      await this.#ended;
      throw new PeerError(`${this.#command}: ${this.#lastWords()}`);
    }
    const answer = JSON.parse(value) as Answer & { error?: string; oom?: boolean; unsupported?: boolean };
    if (answer.error === undefined) return answer;
    if (answer.unsupported) {
      const { implementation } = request as { implementation?: string };
      const [reason = ""] = answer.error.split("\n");
      process.stderr.write(`longseq bench: without ${implementation}: ${reason}\n`);
      throw Object.assign(new Error(reason), { code: unsupported });
    }
    if (answer.oom) throw Object.assign(new Error(answer.error), { code: "ERR_OUT_OF_MEMORY" });
    throw new PeerError(answer.error);
  }

  end(): void {
    process.off("exit", this.#onExit);
    this.#child.kill("SIGKILL");
  }

  #lastWords(): string {
    if (/No module named 'torch'/.test(this.#complaint)) {
      return "it has no torch; set LONGSEQ_PYTHON to a Python that has it";
    }
    return this.#complaint.trim().split("\n").at(-1) || "it ended without a word";
  }
}
