// PyTorch as a peer: one Python process for the whole sweep, told over standard input what to prepare and which of its
// implementations to run when, so that their runs and ours alternate.
import { unlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Contender } from "./contender.ts";
import { unsupported } from "./measure.ts";
import {
  type Greeting,
  type Hello,
  implementationsNamed,
  PythonProcess,
  sayWithout,
} from "./peer-process.ts";
import { documentBoundaries, type Pass, type Problem, wholeMask } from "./problem.ts";

/** PyTorch wants a mask as an array; one of more than 2 GiB is no sensible comparison. */
const largestMaskBytes = 2 ** 31;

export class TorchPeer implements Disposable {
  readonly version: string;
  readonly implementations: readonly string[];
  readonly #process: PythonProcess;
  readonly #isGpu: boolean;

  private constructor(name: string, process: PythonProcess, isGpu: boolean, greeting: Greeting) {
    this.implementations = implementationsNamed(name, greeting);
    this.version = greeting.torch;
    this.#process = process;
    this.#isGpu = isGpu;
  }

  /** For all implementations ("torch") or the one of that name; throws a PeerError where Python has no torch, or not that. */
  static async start(name: string, hello: Hello): Promise<TorchPeer> {
    const process = new PythonProcess();
    try {
      const greeting = await process.greet(hello);
      return new TorchPeer(name, process, hello.device !== "cpu", greeting);
    } catch (error) {
      void process.end();
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
    void this.#process.end();
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
    const request = await this.#request();
    try {
      await this.#ask("prepare", request);
    } catch (error) {
      const { code, message } = error as { code?: unknown; message: string };
      if (code === unsupported) sayWithout(this.implementation, message);
      throw error;
    }
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
