// One implementation of one pass of one problem, ready to be run again and again.
import {
  type AttentionOptions,
  attentionBackward,
  attentionForward,
  type Device,
  type Tensor,
  Tensor as Tensors,
} from "../../index.ts";
import { attentionOptions, type Pass, type Problem } from "./problem.ts";

export interface Contender {
  readonly implementation: string;
  /** Makes the inputs. */
  prepare(): Promise<void>;
  /** Runs once; resolves to the milliseconds from the call until the results are there. */
  run(): Promise<number>;
  /** From now on the peak is counted anew. */
  resetPeak(): Promise<void>;
  /** The most memory held since, inputs included; undefined where it cannot be told. */
  peakBytes(): Promise<number | undefined>;
  dispose(): Promise<void>;
}

type Implementation = NonNullable<AttentionOptions["implementation"]>;

/** Ours, through the public API. */
export class OwnAttention implements Contender {
  readonly implementation: string;
  readonly #device: Device;
  readonly #problem: Problem;
  readonly #pass: Pass;
  readonly #chosen: Implementation | undefined;
  #options: AttentionOptions = {};
  #inputs: [q: Tensor, k: Tensor, v: Tensor] | undefined;
  #saved: { out: Tensor; logSumExp: Tensor; dout: Tensor } | undefined;

  constructor(device: Device, problem: Problem, pass: Pass, chosen: Implementation | undefined) {
    this.implementation = chosen ?? (device.kind === "cuda" ? "sm80" : "cpu");
    this.#device = device;
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
    await this.#device.synchronize();
  }

  #normal(heads: number, seed: number): Tensor {
    const { mask, batch, seqLen, headDim, dtype } = this.#problem;
    // Documents are packed: [T, H, D].
    const leading = mask === "documents" ? [batch * seqLen] : [batch, seqLen];
    return Tensors.normal([...leading, heads, headDim], { dtype, device: this.#device, seed });
  }

  async run(): Promise<number> {
    if (!this.#inputs) throw new Error("run before prepare");
    const [q, k, v] = this.#inputs;
    const start = performance.now();
    const results = this.#saved
      ? attentionBackward({ q, k, v, ...this.#saved }, this.#options)
      : attentionForward(q, k, v, this.#options);
    try {
      await this.#device.synchronize();
      return performance.now() - start;
    } finally {
      for (const tensor of Object.values(results)) tensor.dispose();
    }
  }

  async resetPeak(): Promise<void> {
    this.#device.resetPeak();
  }

  async peakBytes(): Promise<number> {
    return this.#device.memory().peakBytes;
  }

  async dispose(): Promise<void> {
    for (const tensor of [...(this.#inputs ?? []), ...Object.values(this.#saved ?? {})]) tensor.dispose();
    this.#options.mask?.dispose();
  }
}
