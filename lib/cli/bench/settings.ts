// What the options of `longseq bench` mean.
import { extname } from "node:path";
import type { AttentionOptions, DType } from "../../index.ts";
import { type Arguments, UsageError } from "../arguments.ts";
import { parseLengths } from "../quantity.ts";
import { type Parallel, parallelOf } from "../ranks.ts";
import { launchedProcesses } from "../world.ts";
import type { OperationName } from "./operations.ts";
import { type MaskName, maskNames, type Pass, passes } from "./problem.ts";

export const implementations = ["reference", "cpu", "sm80", "sm90"] as const satisfies readonly NonNullable<
  AttentionOptions["implementation"]
>[];
export const floatTypes = ["float32", "bfloat16", "float16"] as const satisfies readonly DType[];
/** All of PyTorch's implementations (bench/peer_torch.py), and each alone. */
export const peerNames = [
  "torch",
  "torch-cpu",
  "torch-flash",
  "torch-cudnn",
  "torch-efficient",
  "torch-flex",
  "torch-eager",
  "torch-compiled",
] as const;
export const reportKinds = [".html", ".svg", ".md"] as const;
export type ReportKind = (typeof reportKinds)[number];

/** What layers and models are measured by too. */
export interface CommonSettings {
  readonly device: string | undefined;
  readonly implementation: (typeof implementations)[number] | undefined;
  readonly dtype: (typeof floatTypes)[number] | undefined;
  /** Absent: doubling, for as long as it is quick. */
  readonly seqLens: readonly number[] | undefined;
  readonly batch: number;
  readonly causal: boolean;
  readonly window: number | undefined;
  readonly mask: MaskName;
  readonly deterministic: boolean;
  /** How long each measurement is repeated. */
  readonly seconds: number;
  /** "torch", or one of its implementations alone. */
  readonly peer: string | undefined;
  readonly json: string | undefined;
  readonly report: { readonly path: string; readonly kind: ReportKind } | undefined;
}

export interface Settings extends CommonSettings {
  readonly what: "attention" | OperationName;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly width: number | undefined;
  /** Of an operation that makes logits. */
  readonly vocabulary: number | undefined;
  readonly passes: readonly Pass[];
  /** Of attention: ranks that share its sequence. */
  readonly parallel: Parallel;
}

export function benchSettings(given: Arguments, what: Settings["what"]): Settings {
  const { size, launcher } = launchedProcesses();
  if (size > 1 && given.has("peer")) {
    throw new UsageError(
      `--peer has attention in one process, expected none where ${launcher} started ${size}; --what layer has a peer there`,
    );
  }
  const heads = given.integer("heads", 1) ?? 8;
  const kvHeads = given.integer("kv-heads", 1) ?? heads;
  if (heads % kvHeads !== 0) {
    throw new UsageError(`--kv-heads is ${kvHeads}, expected a divisor of --heads (${heads})`);
  }
  const pass = given.choice("pass", [...passes, "both"]) ?? "both";
  const common = commonSettings(given);
  if (common.report && what !== "attention") {
    throw new UsageError("--report is attention's, a layer's or a model's; --json writes the rest");
  }
  return {
    ...common,
    what,
    heads,
    kvHeads,
    headDim: headDimOf(given) ?? 64,
    width: given.integer("width", 1),
    vocabulary: what === "linearCrossEntropy" ? vocabularyOf(given) : undefined,
    passes: pass === "both" ? passes : [pass],
    parallel: parallelOf(given),
  };
}

export function commonSettings(given: Arguments): CommonSettings {
  const lengths = given.text("seq-len");
  return {
    device: deviceName(given),
    implementation: given.choice("implementation", implementations),
    dtype: given.choice("dtype", floatTypes),
    seqLens: lengths === undefined ? undefined : parseLengths(lengths),
    batch: given.integer("batch", 1) ?? 1,
    causal: given.flag("causal", true),
    window: given.integer("window", 0),
    mask: given.choice("mask", maskNames) ?? "none",
    deterministic: given.flag("deterministic", false),
    seconds: given.amount("seconds") ?? (lengths === undefined ? 0.5 : 1.5),
    peer: given.choice("peer", peerNames),
    json: given.text("json"),
    report: reportTarget(given.text("report")),
  };
}

export function headDimOf(given: Arguments): number | undefined {
  const headDim = given.integer("head-dim", 8);
  if (headDim !== undefined && (headDim % 8 !== 0 || headDim > 256)) {
    throw new UsageError(`--head-dim is ${headDim}, expected a multiple of 8 up to 256`);
  }
  return headDim;
}

export const vocabularyOf = (given: Arguments) => given.integer("vocabulary", 1) ?? 4096;

export function deviceName(given: Arguments): string | undefined {
  const name = given.text("device");
  if (name !== undefined && !/^(cpu|cuda(:\d+)?)$/.test(name)) {
    throw new UsageError(`--device is "${name}", expected cpu, cuda or cuda:N`);
  }
  return name;
}

function reportTarget(path: string | undefined): CommonSettings["report"] {
  if (path === undefined) return undefined;
  const kind = reportKinds.find((one) => one === extname(path).toLowerCase());
  if (!kind)
    throw new UsageError(`--report is "${path}", expected a name that ends in ${reportKinds.join(", ")}`);
  return { path, kind };
}
