// What a layer and a model are made of: the options that are given, and what follows from them.
import { checkNames, checkOptions, failure, type OptionNames, shown, wrongKind } from "../errors.ts";
import { type RotaryOptions, rotaryFrequencies } from "../ops/position.ts";

/** How the rotary embedding of a layer turns; where its rows stand is its strategy's. */
export type LayerRotaryOptions = Omit<RotaryOptions, "offset" | "positions">;

/** The shape of a transformer layer. What is left out is its kind's. */
export interface LayerOptions {
  /**
   * - "gpt", the default: layer norm, biases, GeLU of 4 h columns, no rotary embedding (Radford et al., 2019).
   * - "llama": RMS norm, no biases, SwiGLU of 8/3 h columns up to the next multiple of 256, rotary (Touvron et al., 2023).
   */
  kind?: "gpt" | "llama";
  /** h, the width of the residual stream. */
  hidden: number;
  /** Hq, of the queries. */
  heads: number;
  /** Hkv, of the keys and values, a divisor of Hq. Default: Hq. */
  keyValueHeads?: number;
  /** D. Default: h / Hq. */
  headDim?: number;
  /** F, the columns of the MLP. */
  feedForward?: number;
  norm?: "layernorm" | "rmsnorm";
  /** "gelu" is its tanh form. */
  activation?: "gelu" | "swiglu";
  /** Of the products, and of layer norms. */
  bias?: boolean;
  /** Queries and keys are turned by their positions; true for the defaults of `rotaryEmbedding`. */
  rotary?: boolean | LayerRotaryOptions;
  /** Of the norms. Default: the norm's. */
  eps?: number;
}

/** The shape of a model. What is left out is its kind's. */
export interface GptOptions extends LayerOptions {
  /** L. */
  layers: number;
  /** V, the tokens there are. */
  vocabulary: number;
  /** Rows of the learned positions, which a model that is not rotary has. Default: 2,048. */
  maxPositions?: number;
  /** The output projection is the token embedding. Default: for "gpt" true, for "llama" false. */
  tiedEmbeddings?: boolean;
  /** Standard deviation of the initial weights; those that end a residual branch have this / sqrt(2 L). Default: 0.02. */
  initialDeviation?: number;
}

/** `LayerOptions` with nothing left out. */
export interface LayerConfiguration {
  hidden: number;
  heads: number;
  keyValueHeads: number;
  headDim: number;
  feedForward: number;
  norm: "layernorm" | "rmsnorm";
  activation: "gelu" | "swiglu";
  bias: boolean;
  rotary: LayerRotaryOptions | null;
  eps: number;
}

/** `GptOptions` with nothing left out. */
export interface GptConfiguration extends LayerConfiguration {
  layers: number;
  vocabulary: number;
  /** 0 where it is rotary. */
  maxPositions: number;
  tiedEmbeddings: boolean;
  initialDeviation: number;
}

/** Of a model, and so of a layer: what is given for one may be all of the model's, as a preset is. */
const optionNames: OptionNames<GptOptions> = {
  kind: true,
  hidden: true,
  heads: true,
  keyValueHeads: true,
  headDim: true,
  feedForward: true,
  norm: true,
  activation: true,
  bias: true,
  rotary: true,
  eps: true,
  layers: true,
  vocabulary: true,
  maxPositions: true,
  tiedEmbeddings: true,
  initialDeviation: true,
};
const rotaryOptionNames: OptionNames<LayerRotaryOptions> = {
  base: true,
  scaling: true,
  interleaved: true,
  rotaryDim: true,
};

const kinds = {
  gpt: { norm: "layernorm", activation: "gelu", bias: true, rotary: false, tiedEmbeddings: true },
  llama: { norm: "rmsnorm", activation: "swiglu", bias: false, rotary: true, tiedEmbeddings: false },
} as const;
const defaultEps = { layernorm: 1e-5, rmsnorm: 1e-6 } as const;

function kindOf(what: string, { kind = "gpt" }: LayerOptions): (typeof kinds)[keyof typeof kinds] {
  return kinds[oneOf(what, "kind", kind, ["gpt", "llama"])];
}

export function layerConfiguration(what: string, options: LayerOptions): LayerConfiguration {
  checkOptions(what, options, optionNames);
  const defaults = kindOf(what, options);
  const hidden = count(what, "hidden", options.hidden);
  const heads = count(what, "heads", options.heads);
  const keyValueHeads = count(what, "keyValueHeads", options.keyValueHeads ?? heads);
  if (heads % keyValueHeads !== 0) {
    throw failure(
      "ERR_OPTION",
      `${what}: keyValueHeads is ${keyValueHeads}, expected a divisor of ${heads} (heads)`,
    );
  }
  if (options.headDim === undefined && hidden % heads !== 0) {
    throw failure("ERR_OPTION", `${what}: heads is ${heads}, expected a divisor of ${hidden} (hidden)`);
  }
  const norm = oneOf(what, "norm", options.norm ?? defaults.norm, ["layernorm", "rmsnorm"]);
  const activation = oneOf(what, "activation", options.activation ?? defaults.activation, ["gelu", "swiglu"]);
  const columns = activation === "gelu" ? 4 * hidden : 256 * Math.ceil((8 * hidden) / (3 * 256));
  return {
    hidden,
    heads,
    keyValueHeads,
    headDim: count(what, "headDim", options.headDim ?? hidden / heads),
    feedForward: count(what, "feedForward", options.feedForward ?? columns),
    norm,
    activation,
    bias: flag(what, "bias", options.bias ?? defaults.bias),
    rotary: rotaryOf(what, options.rotary ?? defaults.rotary),
    eps: number(what, "eps", options.eps ?? defaultEps[norm]),
  };
}

/** What is asked of heads beyond what their parameters may be, by attention and rotary embedding. */
export function checkHeads(what: string, { headDim, rotary }: LayerConfiguration): void {
  if (headDim % 8 !== 0 || headDim > 256) {
    throw failure(
      "ERR_OPTION",
      `${what}: headDim is ${headDim}, expected a multiple of 8 up to 256 (default: hidden over heads)`,
    );
  }
  if (rotary === null) return;
  const { rotaryDim = headDim, interleaved = false, ...frequencies } = rotary;
  rotaryFrequencies(rotaryDim, frequencies);
  flag(what, "rotary.interleaved", interleaved);
  if (rotaryDim > headDim) {
    const message = `${what}: rotary.rotaryDim is ${rotaryDim}, expected at most ${headDim} (headDim)`;
    throw failure("ERR_OPTION", message);
  }
}

export function gptConfiguration(what: string, options: GptOptions): GptConfiguration {
  const layer = layerConfiguration(what, options);
  const tiedEmbeddings = options.tiedEmbeddings ?? kindOf(what, options).tiedEmbeddings;
  const maxPositions = count(what, "maxPositions", options.maxPositions ?? 2048);
  return {
    ...layer,
    layers: count(what, "layers", options.layers, 0),
    vocabulary: count(what, "vocabulary", options.vocabulary),
    maxPositions: layer.rotary ? 0 : maxPositions,
    tiedEmbeddings: flag(what, "tiedEmbeddings", tiedEmbeddings),
    initialDeviation: number(what, "initialDeviation", options.initialDeviation ?? 0.02),
  };
}

function rotaryOf(what: string, rotary: unknown): LayerRotaryOptions | null {
  if (typeof rotary === "boolean") return rotary ? {} : null;
  if (typeof rotary !== "object" || rotary === null)
    throw wrongKind(`${what}: rotary`, "a boolean or an object", rotary);
  checkNames<LayerRotaryOptions>(`${what}: rotary`, rotary, rotaryOptionNames);
  return { ...rotary };
}

/** More would be no shape of a tensor. */
const most = 2 ** 31 - 1;

function count(what: string, name: string, value: number, least = 1): number {
  if (typeof value !== "number") throw wrongKind(`${what}: ${name}`, "a number", value);
  if (!Number.isInteger(value) || value < least || value > most) {
    throw failure(
      "ERR_OPTION",
      `${what}: ${name} is ${value}, expected an integer of ${least} to ${most.toLocaleString("en")}`,
    );
  }
  return value;
}

function number(what: string, name: string, value: number): number {
  if (typeof value !== "number") throw wrongKind(`${what}: ${name}`, "a number", value);
  if (!(value >= 0 && value < Number.POSITIVE_INFINITY)) {
    throw failure("ERR_OPTION", `${what}: ${name} is ${value}, expected a finite number of 0 or more`);
  }
  return value;
}

function flag(what: string, name: string, value: boolean): boolean {
  if (typeof value !== "boolean") throw wrongKind(`${what}: ${name}`, "a boolean", value);
  return value;
}

export function oneOf<T extends string>(what: string, name: string, value: T, expected: readonly T[]): T {
  if (!expected.includes(value)) {
    const names = expected.map((text) => `"${text}"`).join(" or ");
    throw failure("ERR_OPTION", `${what}: ${name} is ${shown(value)}, expected ${names}`);
  }
  return value;
}
