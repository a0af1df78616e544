// One implementation of one pass of one problem, ready to be run again and again.
import {
  type AttentionOptions,
  attentionBackward,
  attentionForward,
  attentionKernels,
  type Device,
  Tensor,
} from "../../index.ts";
import { attentionOptions, type Pass, type Problem } from "./problem.ts";

export interface Contender {
  readonly implementation: string;
  /** Makes the inputs. */
  prepare(): Promise<void>;
  /** Runs once; resolves to the milliseconds from the call until the results are there. */
  run(): Promise<number>;
  /** On a GPU: the milliseconds of each of `count` runs by its own clock, none with its inputs in the cache. */
  readonly runMany: ((count: number) => Promise<readonly number[]>) | undefined;
  /** From now on the peak is counted anew. */
  resetPeak(): Promise<void>;
  /** The most memory held since, inputs included; undefined where it cannot be told. */
  peakBytes(): Promise<number | undefined>;
  dispose(): Promise<void>;
}

/** Twice the largest cache of any GPU. */
const coldBytes = 2 ** 28;

/** Queues a write before a run, so that the run finds its inputs in memory. */
export function emptyCache(device: Device): void {
  Tensor.zeros([coldBytes], { dtype: "uint8", device }).dispose();
}

/** Ours, through the public API. */
export abstract class Own implements Contender {
  readonly implementation: string;
  readonly runMany: Contender["runMany"];
  protected readonly device: Device;

  constructor(device: Device, implementation: string) {
    this.device = device;
    this.implementation = implementation;
    if (device.kind === "cuda") this.runMany = (count) => this.#timeMany(count);
  }

  abstract prepare(): Promise<void>;
  /** What is timed; the results are disposed. */
  protected abstract call(): readonly Tensor[];
  abstract dispose(): Promise<void>;

  async run(): Promise<number> {
    const start = performance.now();
    const results = this.call();
    try {
      await this.device.synchronize();
      return performance.now() - start;
    } finally {
      for (const tensor of results) tensor.dispose();
    }
  }

  async #timeMany(count: number): Promise<number[]> {
    const times = Array.from({ length: count }, () => {
      emptyCache(this.device);
      const start = this.device.mark();
      const results = this.call();
      const time = this.device.mark().since(start);
      for (const tensor of results) tensor.dispose();
      return time;
    });
    return Promise.all(times);
  }

  async resetPeak(): Promise<void> {
    this.device.resetPeak();
  }

  async peakBytes(): Promise<number> {
    return this.device.memory().peakBytes;
  }
}

type Implementation = NonNullable<AttentionOptions["implementation"]>;

export class OwnAttention extends Own {
  readonly #problem: Problem;
  readonly #pass: Pass;
  readonly #chosen: Implementation | undefined;
  #options: AttentionOptions = {};
  #inputs: [q: Tensor, k: Tensor, v: Tensor] | undefined;
  #saved: { out: Tensor; logSumExp: Tensor; dout: Tensor } | undefined;

  constructor(device: Device, problem: Problem, pass: Pass, chosen: Implementation | undefined) {
    super(device, attentionKernels({ device, dtype: problem.dtype, implementation: chosen }));
    this.#problem = problem;
    this.#pass = pass;
    this.#chosen = chosen;
  }

  async prepare(): Promise<void> {
    const { heads, kvHeads } = this.#problem;
    this.#options = attentionOptions(this.#problem);
    if (this.#chosen) this.#options.implementation = this.#chosen;
    const q = this.#normal(heads, 1);
    const k = this.#normal(kvHeads, 2);
    const v = this.#normal(kvHeads, 3);
    this.#inputs = [q, k, v];
    if (this.#pass === "backward") {
      this.#saved = { ...attentionForward(q, k, v, this.#options), dout: this.#normal(heads, 4) };
    }
    await this.device.synchronize();
  }

  #normal(heads: number, seed: number): Tensor {
    const { mask, batch, seqLen, headDim, dtype } = this.#problem;
    // Documents are packed: [T, H, D].
    const leading = mask === "documents" ? [batch * seqLen] : [batch, seqLen];
    return Tensor.normal([...leading, heads, headDim], { dtype, device: this.device, seed });
  }

  protected call(): readonly Tensor[] {
    if (!this.#inputs) throw new Error("run before prepare");
    const [q, k, v] = this.#inputs;
    const results = this.#saved
      ? attentionBackward({ q, k, v, ...this.#saved }, this.#options)
      : attentionForward(q, k, v, this.#options);
    return Object.values(results);
  }

  async dispose(): Promise<void> {
    for (const tensor of [...(this.#inputs ?? []), ...Object.values(this.#saved ?? {})]) tensor.dispose();
    this.#options.mask?.dispose();
  }
}
