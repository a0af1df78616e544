// The options of `longseq bench`, and what they mean.
import { existsSync } from "node:fs";
import { dirname, extname } from "node:path";
import type { AttentionOptions, DType } from "../../index.ts";
import { type Arguments, type OptionTable, UsageError } from "../arguments.ts";
import { parseLengths } from "../quantity.ts";
import { type OperationName, operationNames } from "./operations.ts";
import { type MaskName, maskNames, type Pass, passes } from "./problem.ts";

export const implementations = ["reference", "cpu", "sm80", "sm90"] as const satisfies readonly NonNullable<
  AttentionOptions["implementation"]
>[];
export const floatTypes = ["float32", "bfloat16", "float16"] as const satisfies readonly DType[];
export const reportKinds = [".html", ".svg", ".md"] as const;
export type ReportKind = (typeof reportKinds)[number];

export const benchOptions: OptionTable = {
  what: {
    value: "NAME",
    help: `what to measure: ${["attention", ...operationNames].join(", ")}; layer and gpt come in a later version (default: attention)`,
  },
  device: { value: "cpu|cuda|cuda:N", help: "where to run (default: the best there is)" },
  implementation: {
    value: "NAME",
    help: `which kernel: ${implementations.join(", ")} (default: the device's best)`,
  },
  dtype: {
    value: "T",
    help: "float32, bfloat16 or float16 (default: bfloat16 where the device multiplies it natively, else float32)",
  },
  "seq-len": {
    value: "LIST",
    help: "lengths with commas: 1024, 1k (1,024), 128k, 1m (1,048,576), 128000 (default: doubling from 1k for up to half a minute)",
  },
  batch: { value: "N", help: "sequences at once (default: 1)" },
  heads: { value: "N", help: "query heads (default: 8)" },
  "kv-heads": { value: "N", help: "key and value heads, a divisor of --heads (default: as many as --heads)" },
  "head-dim": { value: "N", help: "size of a head, a multiple of 8 up to 256 (default: 64)" },
  width: {
    value: "N",
    help: "elements of a row, for other operations than attention (default: --heads times --head-dim)",
  },
  causal: { help: "no query sees a later key (default)" },
  "no-causal": { help: "every query sees every key" },
  window: {
    value: "N",
    help: "each query sees itself and the N keys before it, and with --no-causal the N after it",
  },
  mask: {
    value: "none|documents|blocks",
    help: "documents: 16 packed documents of unequal length; blocks: a window of a sixteenth of the sequence to each side, and a thirty-second of the tokens that see all and are seen by all (default: none)",
  },
  deterministic: {
    help: "attention's gradients are the same bits in every run; the peer's too, where it has such a way",
  },
  pass: { value: "forward|backward|both", help: "what to time (default: both, one row for each)" },
  seconds: {
    value: "N",
    help: "how long each measurement is repeated; 0 runs once after the warm-up (default: 1.5, or 0.5 without --seq-len)",
  },
  ranks: { value: "N", help: "ranks that share the sequence; this version has 1 (default)" },
  "sequence-parallel": { value: "TYPE", help: "how ranks share the sequence; comes in a later version" },
  peer: {
    value: "torch",
    help: "also run PyTorch's attention on the same shapes, turn by turn; LONGSEQ_PYTHON names a Python that has it (default: python3)",
  },
  json: { value: "FILE", help: "also write each measurement as a line of JSON; - is standard output" },
  report: {
    value: "FILE",
    help: "also write a page (.html), a chart (.svg) or a table (.md), by the ending of its name",
  },
};

export interface Settings {
  readonly what: "attention" | OperationName;
  readonly device: string | undefined;
  readonly implementation: (typeof implementations)[number] | undefined;
  readonly dtype: (typeof floatTypes)[number] | undefined;
  /** Absent: doubling, for as long as it is quick. */
  readonly seqLens: readonly number[] | undefined;
  readonly batch: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly width: number | undefined;
  readonly causal: boolean;
  readonly window: number | undefined;
  readonly mask: MaskName;
  readonly deterministic: boolean;
  readonly passes: readonly Pass[];
  /** How long each measurement is repeated. */
  readonly seconds: number;
  readonly hasPeer: boolean;
  readonly json: string | undefined;
  readonly report: { readonly path: string; readonly kind: ReportKind } | undefined;
}

export function benchSettings(given: Arguments): Settings {
  const [extra] = given.positionals;
  if (extra !== undefined) throw new UsageError(`unexpected "${extra}": bench takes options only`);
  const what = given.choice("what", ["attention", ...operationNames, "layer", "gpt"]) ?? "attention";
  if (what === "layer" || what === "gpt") {
    throw new UsageError(`--what ${what} comes in a later version`);
  }
  refuseParallel(given);
  const lengths = given.text("seq-len");
  const heads = given.integer("heads", 1) ?? 8;
  const kvHeads = given.integer("kv-heads", 1) ?? heads;
  if (heads % kvHeads !== 0) {
    throw new UsageError(`--kv-heads is ${kvHeads}, expected a divisor of --heads (${heads})`);
  }
  const headDim = given.integer("head-dim", 8) ?? 64;
  if (headDim % 8 !== 0 || headDim > 256) {
    throw new UsageError(`--head-dim is ${headDim}, expected a multiple of 8 up to 256`);
  }
  const pass = given.choice("pass", [...passes, "both"]) ?? "both";
  const report = reportTarget(given.text("report"));
  if (report && what !== "attention") throw new UsageError("--report is attention's; --json writes the rest");
  return {
    what,
    device: deviceName(given),
    implementation: given.choice("implementation", implementations),
    dtype: given.choice("dtype", floatTypes),
    seqLens: lengths === undefined ? undefined : parseLengths(lengths),
    batch: given.integer("batch", 1) ?? 1,
    heads,
    kvHeads,
    headDim,
    width: given.integer("width", 1),
    causal: given.flag("causal", true),
    window: given.integer("window", 0),
    mask: given.choice("mask", maskNames) ?? "none",
    deterministic: given.flag("deterministic", false),
    passes: pass === "both" ? passes : [pass],
    seconds: given.amount("seconds") ?? (lengths === undefined ? 0.5 : 1.5),
    hasPeer: given.choice("peer", ["torch"]) === "torch",
    json: given.text("json"),
    report,
  };
}

/** Also for verify: one rank is what there is. */
export function refuseParallel(given: Arguments): void {
  const ranks = given.integer("ranks", 1) ?? 1;
  if (ranks !== 1) {
    throw new UsageError(`--ranks ${ranks} comes in a later version; this one runs 1 rank`);
  }
  const type = given.text("sequence-parallel");
  if (type !== undefined) throw new UsageError(`--sequence-parallel ${type} comes in a later version`);
}

export function deviceName(given: Arguments): string | undefined {
  const name = given.text("device");
  if (name !== undefined && !/^(cpu|cuda(:\d+)?)$/.test(name)) {
    throw new UsageError(`--device is "${name}", expected cpu, cuda or cuda:N`);
  }
  return name;
}

/** Checked before anything is measured, so that a long run is not lost to a misspelt name. */
function reportTarget(path: string | undefined): Settings["report"] {
  if (path === undefined) return undefined;
  const kind = reportKinds.find((one) => one === extname(path).toLowerCase());
  if (!kind)
    throw new UsageError(`--report is "${path}", expected a name that ends in ${reportKinds.join(", ")}`);
  if (!existsSync(dirname(path)))
    throw new UsageError(`--report ${path}: there is no folder ${dirname(path)}`);
  return { path, kind };
}
