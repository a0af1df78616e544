// What is asked of `longseq bench --what layer` and `--what gpt`: a shape, and how it is run.
import { type GptOptions, presets, type RecomputeOptions } from "../../index.ts";
import { gptConfiguration, layerConfiguration } from "../../model/configuration.ts";
import { recomputes } from "../../model/recompute.ts";
import { type Arguments, suggestion, UsageError } from "../arguments.ts";
import { type Parallel, parallelOf, rankDevice } from "../ranks.ts";
import type { ModelPass, ModelShape } from "./flops.ts";
import type { ModelName } from "./options.ts";
import { type CommonSettings, commonSettings, headDimOf, vocabularyOf } from "./settings.ts";

export interface ModelSettings extends CommonSettings {
  readonly what: ModelName;
  /** "cuda" stands for as many GPUs as there are ranks. */
  readonly device: string;
  readonly preset: string | null;
  readonly options: GptOptions;
  /** With nothing left out; of a layer one, and no vocabulary. */
  readonly shape: ModelShape;
  readonly parallel: Parallel;
  readonly pass: ModelPass;
  readonly recompute: NonNullable<RecomputeOptions["recompute"]>;
  readonly mlpTiles: number;
  /** The weights' gradients are float32, and not of the weights' own type. */
  readonly float32Gradients: boolean;
}

/** On a GPU the layer that most papers measure; on a CPU one that is done in seconds. */
const defaults = { cpu: { hidden: 512, heads: 8 }, gpu: { hidden: 5120, heads: 40 } } as const;
const shapeOptions = ["kind", "hidden", "heads", "kv-heads", "head-dim", "ffn", "vocabulary"] as const;

export function modelSettings(given: Arguments, what: ModelName): ModelSettings {
  const common = commonSettings(given);
  if (common.mask === "blocks") {
    throw new UsageError(`--mask is "blocks", expected none or documents with --what ${what}`);
  }
  const device = rankDevice(common.device);
  const preset = given.text("preset") ?? null;
  const options = preset === null ? givenShape(given, device !== "cpu") : presetShape(given, preset);
  const shape =
    what === "layer"
      ? { ...layerConfiguration("bench", options), layers: 1, vocabulary: 0 }
      : gptConfiguration("bench", options);
  const settings: ModelSettings = {
    ...common,
    what,
    device,
    preset,
    options,
    shape,
    parallel: parallelOf(given),
    pass: given.choice("pass", ["forward", "backward", "both"]) ?? "both",
    recompute: given.choice("recompute", recomputes) ?? "pointwise",
    mlpTiles: given.integer("mlp-tiles", 1) ?? 1,
    float32Gradients: given.has("float32-gradients"),
  };
  refuseCombinations(settings);
  return settings;
}

function presetShape(given: Arguments, preset: string): GptOptions {
  const table: Readonly<Record<string, GptOptions>> = presets;
  const named = Object.hasOwn(table, preset) ? table[preset] : undefined;
  if (!named) {
    const near = suggestion(preset, Object.keys(table));
    throw new UsageError(`--preset is "${preset}", expected one of those that --help lists${near}`);
  }
  const other = shapeOptions.find((name) => given.has(name));
  if (other !== undefined) throw new UsageError(`--preset and --${other} exclude each other`);
  return { ...named, layers: given.integer("layers", 1) ?? named.layers };
}

function givenShape(given: Arguments, isGpu: boolean): GptOptions {
  const kind = given.choice("kind", ["gpt", "llama"]) ?? "gpt";
  const { hidden: width, heads: count } = isGpu ? defaults.gpu : defaults.cpu;
  const [hidden, heads] = [given.integer("hidden", 1) ?? width, given.integer("heads", 1) ?? count];
  const keyValueHeads = given.integer("kv-heads", 1) ?? heads;
  if (heads % keyValueHeads !== 0) {
    throw new UsageError(`--kv-heads is ${keyValueHeads}, expected a divisor of --heads (${heads})`);
  }
  const headDim = headDimOf(given) ?? hidden / heads;
  if (headDim % 8 !== 0 || headDim > 256) {
    throw new UsageError(
      `--hidden ${hidden} over --heads ${heads} is ${headDim}, expected a multiple of 8 up to 256, or --head-dim`,
    );
  }
  const feedForward = given.integer("ffn", 1);
  return {
    kind,
    hidden,
    heads,
    keyValueHeads,
    headDim,
    ...(feedForward === undefined ? {} : { feedForward }),
    layers: given.integer("layers", 1) ?? 2,
    vocabulary: vocabularyOf(given),
  };
}

function refuseCombinations(settings: ModelSettings): void {
  const { what, parallel, mlpTiles, peer, shape, mask, window, recompute, deterministic } = settings;
  const { pass, float32Gradients } = settings;
  if (parallel.type === "megatron" && parallel.size > 1 && mlpTiles > 1) {
    throw new UsageError(`--mlp-tiles is ${mlpTiles}, expected 1: megatron divides the MLP's columns`);
  }
  if (float32Gradients && pass === "forward") {
    throw new UsageError("--float32-gradients goes with gradients, not with --pass forward");
  }
  if (!peer) return;
  if (what === "gpt") throw new UsageError("--peer goes with --what layer, not with gpt");
  const isPlain = shape.norm === "layernorm" && shape.activation === "gelu" && shape.rotary === null;
  if (!isPlain) throw new UsageError("--peer has layers of the kind gpt alone");
  if (mask !== "none" || window !== undefined || deterministic || float32Gradients) {
    throw new UsageError(
      "--peer has no layers with --mask, --window, --deterministic or --float32-gradients",
    );
  }
  if (recompute === "attention") {
    throw new UsageError('--peer has no layers with --recompute "attention"; "full" and "none" are there');
  }
}
