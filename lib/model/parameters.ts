// The parameters of layers and models: one table, which says of each its shape, how it begins, and what a rank holds.
import { failure, wrongKind } from "../errors.ts";
import type { Range, Strategy } from "../parallel/strategy.ts";
import {
  type GptOptions,
  gptConfiguration,
  type LayerConfiguration,
  type LayerOptions,
  layerConfiguration,
} from "./configuration.ts";
import { positionTable } from "./position.ts";

/** Which heads, feed-forward columns and learned positions a rank holds: a `Strategy`, or as much of it. */
export type Placement = Pick<Strategy, "heads" | "columns" | "positions">;

/** One parameter of a layer or model. */
export interface ParameterSpecification {
  readonly name: string;
  /** Of the whole. */
  readonly shape: readonly number[];
  /** What it begins with: one number, or normal numbers of this standard deviation. */
  readonly initial: { readonly value: number } | { readonly deviation: number };
  /** The axis that ranks divide. */
  readonly axis: number;
  /** The ranges of that axis that a rank holds, one behind the other; several ranks may hold the same. */
  held(placement: Placement): readonly Range[];
  /** Its name in files, or where it is several tensors there, one behind the other on axis 0, theirs. */
  readonly stored: readonly { readonly name: string; readonly rows: number }[];
}

/** A part of an axis that is divided in units, by heads or by columns. */
interface Section {
  readonly units: number;
  readonly unitSize: number;
  held(placement: Placement): Range;
}

function specification(
  name: string,
  shape: readonly number[],
  initial: ParameterSpecification["initial"],
  divided?: { axis: number; sections: readonly Section[] },
  storedNames: readonly string[] = [name],
): ParameterSpecification {
  const { axis, sections } = divided ?? { axis: 0, sections: [] };
  const [rows = 0] = shape;
  return {
    name,
    shape,
    initial,
    axis,
    held: (placement) => (divided ? rangesOf(sections, placement) : [{ begin: 0, end: rows }]),
    stored: storedNames.map((stored) => ({ name: stored, rows: rows / storedNames.length })),
  };
}

function rangesOf(sections: readonly Section[], placement: Placement): Range[] {
  let start = 0;
  return sections.map(({ units, unitSize, held }) => {
    const { begin, end } = held(placement);
    const range = { begin: start + begin * unitSize, end: start + end * unitSize };
    start += units * unitSize;
    return range;
  });
}

/**
 * The parameters of a `TransformerLayer`, in the order of their use; beside them the names of the same in Hugging Face's
 * Llama, whose q, k and v are rows of one tensor here, one behind the other (`concatenate`):
 *
 *     input_norm.weight     [h]                     input_layernorm.weight
 *     qkv.weight            [(Hq + 2 Hkv) D, h]     self_attn.q_proj.weight, .k_proj.weight, .v_proj.weight
 *     proj.weight           [h, Hq D]               self_attn.o_proj.weight
 *     mlp_norm.weight       [h]                     post_attention_layernorm.weight
 *     mlp_gate_up.weight    [2 F, h]                mlp.gate_proj.weight, mlp.up_proj.weight
 *     mlp_down.weight       [h, F]                  mlp.down_proj.weight
 *
 * GPT's kind has `mlp_up.weight` [F, h] in place of `mlp_gate_up`, and a bias beside each weight (`qkv.bias`). In files
 * `mlp_gate_up` is two tensors, `mlp_gate` and `mlp_up`.
 *
 * @throws `ERR_OPTION` for options that cannot be.
 * @example
 * const table = layerParameters({ hidden: 64, heads: 4, keyValueHeads: 2 });
 * table.find(({ name }) => name === "qkv.weight")?.shape; // [128, 64]
 */
export function layerParameters(options: LayerOptions): ParameterSpecification[] {
  return specificationsOf(layerConfiguration("layerParameters", options), "", 0.02, 1);
}

/**
 * The parameters of a `GPT`: `embedding.weight` [V, h], `position.weight` [positions, h] unless it is rotary, the layers'
 * as `layers.<i>.<name>`, `final_norm.weight` [h] (and `.bias`), and `head.weight` [V, h] where the output projection is
 * not the embedding. The parameters in files are these too, but for `mlp_gate_up`.
 *
 * @throws `ERR_OPTION` for options that cannot be.
 * @example
 * parameterCount(gptParameters(presets.GPT125M)); // 125262336
 */
export function gptParameters(options: GptOptions): ParameterSpecification[] {
  const configuration = gptConfiguration("gptParameters", options);
  const { hidden, layers, vocabulary, maxPositions, tiedEmbeddings, initialDeviation } = configuration;
  const normal = { deviation: initialDeviation };
  const positions: Section = {
    units: maxPositions,
    unitSize: 1,
    held: (placement) => (placement.positions ?? positionTable).held(maxPositions),
  };
  return [
    specification("embedding.weight", [vocabulary, hidden], normal),
    ...(maxPositions > 0
      ? [specification("position.weight", [maxPositions, hidden], normal, { axis: 0, sections: [positions] })]
      : []),
    ...Array.from({ length: layers }, (_, layer) =>
      specificationsOf(configuration, `layers.${layer}.`, initialDeviation, layers),
    ).flat(),
    ...norm(configuration, "final_norm"),
    ...(tiedEmbeddings ? [] : [specification("head.weight", [vocabulary, hidden], normal)]),
  ];
}

/**
 * How many numbers the parameters are, whole.
 *
 * @example
 * parameterCount(layerParameters({ hidden: 64, heads: 4, bias: false })); // 49280
 */
export function parameterCount(table: readonly ParameterSpecification[]): number {
  checkTable("parameterCount", table);
  return table.reduce((sum, { shape }) => sum + shape.reduce((product, size) => product * size, 1), 0);
}

function norm({ norm, bias, hidden }: LayerConfiguration, name: string): ParameterSpecification[] {
  const hasBias = bias && norm === "layernorm";
  return [
    specification(`${name}.weight`, [hidden], { value: 1 }),
    ...(hasBias ? [specification(`${name}.bias`, [hidden], { value: 0 })] : []),
  ];
}

function specificationsOf(
  configuration: LayerConfiguration,
  prefix: string,
  deviation: number,
  layers: number,
): ParameterSpecification[] {
  const { hidden, heads, keyValueHeads, headDim, feedForward, activation, bias } = configuration;
  const query: Section = {
    units: heads,
    unitSize: headDim,
    held: (placement) => placement.heads(heads, keyValueHeads).query,
  };
  const keyValue: Section = {
    units: keyValueHeads,
    unitSize: headDim,
    held: (placement) => placement.heads(heads, keyValueHeads).keyValue,
  };
  const columns: Section = {
    units: feedForward,
    unitSize: 1,
    held: (placement) => placement.columns(feedForward),
  };
  const up =
    activation === "gelu"
      ? { name: "mlp_up", sections: [columns], stored: ["mlp_up"] }
      : { name: "mlp_gate_up", sections: [columns, columns], stored: ["mlp_gate", "mlp_up"] };

  /** A product's weight and bias; `divided` is one of the weight's axes, and of the bias's where that is the rows. */
  const product = (
    name: string,
    [rows, depth]: readonly [number, number],
    initial: ParameterSpecification["initial"],
    divided: { axis: number; sections: readonly Section[] },
    stored: readonly string[] = [name],
  ) => {
    const named = (suffix: string) => stored.map((file) => `${prefix}${file}.${suffix}`);
    const ofBias = divided.axis === 0 ? divided : undefined;
    return [
      specification(`${prefix}${name}.weight`, [rows, depth], initial, divided, named("weight")),
      ...(bias ? [specification(`${prefix}${name}.bias`, [rows], { value: 0 }, ofBias, named("bias"))] : []),
    ];
  };
  const normal = { deviation };
  // Each layer adds two branches to the residual stream, whose variance would grow with their number (GPT-2).
  const residual = { deviation: deviation / Math.sqrt(2 * layers) };
  const ofHeads = heads * headDim;
  const packed = ofHeads + 2 * keyValueHeads * headDim;
  return [
    ...norm(configuration, `${prefix}input_norm`),
    ...product("qkv", [packed, hidden], normal, { axis: 0, sections: [query, keyValue, keyValue] }),
    ...product("proj", [hidden, ofHeads], residual, { axis: 1, sections: [query] }),
    ...norm(configuration, `${prefix}mlp_norm`),
    ...product(
      up.name,
      [feedForward * up.sections.length, hidden],
      normal,
      { axis: 0, sections: up.sections },
      up.stored,
    ),
    ...product("mlp_down", [hidden, feedForward], residual, { axis: 1, sections: [columns] }),
  ];
}

export function checkTable(what: string, table: readonly ParameterSpecification[]): void {
  if (!Array.isArray(table) || !table.every((parameter) => typeof parameter?.held === "function")) {
    throw failure("ERR_OPTION", `${what}: table is not one of layerParameters or gptParameters`);
  }
}

export function checkPlacement(what: string, placement: Placement): void {
  if (typeof placement?.heads !== "function" || typeof placement.columns !== "function") {
    throw wrongKind(what, "a Strategy", placement);
  }
  const { positions } = placement;
  if (positions === undefined) return;
  if (typeof positions?.held !== "function" || typeof positions.rows !== "function")
    throw wrongKind(`${what}.positions`, "a PositionEmbedding", positions);
}
