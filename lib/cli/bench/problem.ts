// What is measured: one attention layer at one length, and how much arithmetic that is.
import { AttentionMask, type AttentionOptions, type DType } from "../../index.ts";

export const passes = ["forward", "backward"] as const;
export type Pass = (typeof passes)[number];
export const maskNames = ["none", "documents", "blocks"] as const;
export type MaskName = (typeof maskNames)[number];

export interface Problem {
  readonly dtype: DType;
  readonly batch: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly causal: boolean;
  /** Keys that a query sees before it, and after it too where not causal. */
  readonly window: number | undefined;
  readonly mask: MaskName;
  readonly deterministic?: boolean;
  readonly seqLen: number;
}

const documentCount = 16;

/**
 * Boundaries of up to 16 documents, a sixteenth of the sequence long on average. Their lengths differ by a factor of
 * up to three, so that few boundaries fall on a tile's.
 */
export function documentBoundaries(seqLen: number): number[] {
  const weights = Array.from({ length: documentCount }, (_, i) => 1 + ((i * 7) % 5) / 2);
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const boundaries = [0];
  let before = 0;
  for (const weight of weights) {
    before += weight;
    const boundary = Math.round((seqLen * before) / total);
    if (boundary > (boundaries.at(-1) ?? 0)) boundaries.push(boundary);
  }
  return boundaries;
}

/** The options of our attention for a problem. Whoever takes them disposes the mask. */
export function attentionOptions(problem: Problem): AttentionOptions {
  const { seqLen, batch, causal, window, mask, deterministic = false } = problem;
  const options: AttentionOptions = { causal, deterministic };
  if (window !== undefined) options.window = [window, causal ? 0 : window];
  if (mask === "documents") {
    const boundaries = documentBoundaries(seqLen);
    // The batch is packed too: its rows become more documents of one sequence.
    const packed = Array.from({ length: batch }, (_, row) =>
      boundaries.slice(1).map((b) => b + row * seqLen),
    );
    options.cuSeqlens = [0, ...packed.flat()];
  }
  if (mask === "blocks") options.mask = blockMask(seqLen);
  return options;
}

/** A sliding window plus global tokens (Longformer's pattern): no interval, so it is kept as blocks. */
function blockMask(seqLen: number): AttentionMask {
  const reach = Math.ceil(seqLen / 16);
  const globals = Math.ceil(seqLen / 32);
  if (globals >= seqLen) return AttentionMask.causal(seqLen).not();
  using local = AttentionMask.window(seqLen, seqLen, reach, reach);
  // Two documents, inverted: the global tokens see all others, and all others see them.
  using split = AttentionMask.documents([0, globals, seqLen]);
  using global = split.not();
  return local.or(global);
}

/** Everything that hides keys in a problem, in one mask; undefined where only `causal` or nothing does. */
export function wholeMask(problem: Problem): AttentionMask | undefined {
  const { seqLen, causal, window, mask } = problem;
  if (mask === "none" && window === undefined) return undefined;
  const parts: AttentionMask[] = [];
  if (window !== undefined) {
    parts.push(AttentionMask.window(seqLen, seqLen, window, causal ? 0 : window));
  }
  if (mask === "documents") parts.push(AttentionMask.documents(documentBoundaries(seqLen)));
  if (mask === "blocks") parts.push(blockMask(seqLen));
  if (causal) parts.push(AttentionMask.causal(seqLen));
  return parts.reduce((a, b) => {
    const both = a.and(b);
    a.dispose();
    b.dispose();
    return both;
  });
}

/** Which share of all pairs of a query and a key is looked at: by convention exactly half for causal alone. */
export function visibleShare(problem: Problem): number {
  using mask = wholeMask(problem);
  return mask?.density ?? (problem.causal ? 0.5 : 1);
}

/** Two products forward (q·kᵀ, p·v) of two operations a multiply-add; five backward, of which one is the forward's. */
export function floatingPointOperations(problem: Problem, pass: Pass, share: number): number {
  const { batch, heads, headDim, seqLen } = problem;
  return 4 * batch * heads * seqLen * seqLen * headDim * share * (pass === "backward" ? 2.5 : 1);
}
