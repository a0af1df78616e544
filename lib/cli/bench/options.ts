// The options of `longseq bench`, and which of them go with what is measured.

import { presets } from "../../index.ts";
import { recomputes } from "../../model/recompute.ts";
import { type Arguments, type OptionTable, UsageError } from "../arguments.ts";
import { parallelOptions } from "../ranks.ts";
import { type OperationName, operationNames } from "./operations.ts";
import { implementations, peerNames } from "./settings.ts";

export const modelNames = ["layer", "gpt"] as const;
export type ModelName = (typeof modelNames)[number];

/** Those of layers and models alone. */
const modelOptions = {
  preset: {
    value: "NAME",
    help: `the shape of a published model: ${Object.keys(presets)
      .filter((name) => !/_\d+L$/.test(name))
      .join(", ")}, or layers of one (GPT145B_2L, GPT1T_1L and more)`,
  },
  kind: { value: "gpt|llama", help: "what is left out of a layer's shape (default: gpt)" },
  hidden: { value: "N", help: "width of a layer (default: 512, on a GPU 5,120)" },
  ffn: { value: "N", help: "columns of its MLP (default: its kind's, 4 or about 8/3 times --hidden)" },
  layers: { value: "N", help: "layers of gpt (default: the preset's, else 2)" },
  recompute: {
    value: "NAME",
    help: `what of a layer is computed again backward: ${recomputes.join(", ")}: nothing, norms and activations, all but attention, or all of it (default: pointwise)`,
  },
  "float32-gradients": {
    help: "the weights' gradients are summed in float32, whatever --dtype is (default: in --dtype)",
  },
  "mlp-tiles": { value: "N", help: "tiles of rows that the MLP works on one after the other (default: 1)" },
} as const satisfies OptionTable;

/** Of what attends: operations by rows see no sequence, and have one implementation. */
const attentionOptions = [
  ...["implementation", "kv-heads", "causal", "no-causal", "window", "mask", "deterministic"],
  ...Object.keys(parallelOptions),
];

export const benchOptions: OptionTable = {
  what: {
    value: "NAME",
    help: `what to measure: ${["attention", ...modelNames, ...operationNames].join(", ")} (default: attention)`,
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
  heads: { value: "N", help: "query heads (default: 8; of a layer on a GPU 40)" },
  "kv-heads": { value: "N", help: "key and value heads, a divisor of --heads (default: as many as --heads)" },
  "head-dim": {
    value: "N",
    help: "size of a head, a multiple of 8 up to 256 (default: 64; of a layer --hidden over --heads)",
  },
  width: {
    value: "N",
    help: "elements of a row, for other operations than attention (default: --heads times --head-dim)",
  },
  vocabulary: {
    value: "N",
    help: "tokens that gpt or linearCrossEntropy knows (default: the preset's, else 4,096)",
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
  pass: {
    value: "forward|backward|both",
    help: "what to time (default: both: one row for each, or of a layer or model one row for both together)",
  },
  seconds: {
    value: "N",
    help: "how long each measurement is repeated; 0 runs once after the warm-up (default: 1.5, or 0.5 without --seq-len)",
  },
  ...modelOptions,
  ...parallelOptions,
  peer: {
    value: "torch|torch-NAME",
    help: `also run PyTorch's attention, layer or operation on the same shapes, turn by turn: all its implementations, or one of ${peerNames.slice(1).join(", ")} alone; LONGSEQ_PYTHON names a Python that has it (default: python3)`,
  },
  json: { value: "FILE", help: "also write each measurement as a line of JSON; - is standard output" },
  report: {
    value: "FILE",
    help: "also write a page (.html), a chart (.svg) or a table (.md), by the ending of its name",
  },
};

/** What is to be measured, with no option that is another's. */
export function whatOf(given: Arguments): "attention" | OperationName | ModelName {
  const [extra] = given.positionals;
  if (extra !== undefined) throw new UsageError(`unexpected "${extra}": bench takes options only`);
  const what = given.choice("what", ["attention", ...modelNames, ...operationNames]) ?? "attention";
  const isModel = what === "layer" || what === "gpt";
  const refuse = (names: readonly string[], whose: string) => {
    const name = names.find((one) => given.has(one));
    if (name !== undefined) throw new UsageError(`--${name} goes with ${whose}, not with ${what}`);
  };
  if (!isModel) refuse(Object.keys(modelOptions), "--what layer or gpt");
  if (isModel || what === "attention") refuse(["width"], "an operation by rows");
  else refuse(attentionOptions, "attention, a layer or gpt");
  if (what === "layer") refuse(["layers"], "--what gpt");
  if (what !== "gpt" && what !== "linearCrossEntropy")
    refuse(["vocabulary"], "--what gpt or linearCrossEntropy");
  return what;
}
