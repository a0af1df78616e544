// Which device the tests run on (LONGSEQ_DEVICE, else the best there is), and what that changes.
import { createRequire } from "node:module";
import { dirname } from "node:path";
import { type AttentionOptions, attentionKernels, Device, type DType } from "longseq";
import t from "tap";

/** The package's folder, also for tests that lie compiled in build/ts. */
export const root = dirname(createRequire(import.meta.url).resolve("longseq/package.json"));

export const kind = Device.default.kind;

type Implementation = NonNullable<AttentionOptions["implementation"]>;
/** The device's own of every dtype, and the definition. */
export const implementations: readonly [own: Implementation, reference: Implementation] = [
  kind === "cuda" ? "sm80" : "cpu",
  "reference",
];

/** Those and what else the device has for a dtype, the one that runs by default first. */
export function implementationsOf(dtype: DType): readonly Implementation[] {
  return [...new Set([attentionKernels({ dtype }), ...implementations])];
}

/** Ends the test file on a GPU: what has nothing to do with one runs where there is npm, a compiler and the sources. */
export function skipFileOnGpu(reason: string): void {
  if (kind === "cpu") return;
  t.plan(0, `not on a GPU: ${reason}`);
  process.exit(0);
}
