// Published shapes, as differences from what a kind has by itself.
import type { GptOptions } from "./configuration.ts";

/** GPT-2's 50,257 tokens, up to a multiple of 128 as Megatron-LM has them. */
const gpt2Tokens = 50_304;

function gpt(layers: number, hidden: number, heads: number): Readonly<GptOptions> {
  return { layers, hidden, heads, vocabulary: gpt2Tokens };
}

function llama(
  layers: number,
  hidden: number,
  heads: number,
  feedForward: number,
  more: Partial<GptOptions> = {},
): Readonly<GptOptions> {
  return { kind: "llama", layers, hidden, heads, feedForward, vocabulary: 32_000, ...more };
}

/** The first layers of a model that is too large for a few devices: each costs what it costs there. */
function slices<Name extends string, Counts extends number>(
  name: Name,
  whole: Readonly<GptOptions>,
  counts: readonly Counts[],
): Record<`${Name}_${Counts}L`, Readonly<GptOptions>> {
  const entries = counts.map((layers) => [`${name}_${layers}L`, { ...whole, layers }]);
  return Object.fromEntries(entries) as Record<`${Name}_${Counts}L`, Readonly<GptOptions>>;
}

/** With the objects in it: all who import this have the same. */
function frozen<T extends object>(object: T): Readonly<T> {
  for (const value of Object.values(object)) if (typeof value === "object") frozen(value);
  return Object.freeze(object);
}

const gpt145B = gpt(80, 12_288, 96);
const gpt1T = gpt(128, 25_600, 160);
const llama3 = { vocabulary: 128_256, rotary: { base: 500_000 } };

/**
 * Shapes of models that long-sequence training has been measured with:
 *
 * - `GPT..`, `BERT1_2B`: those of Megatron-DeepSpeed for GenSLM; `GPT145B_nL` and `GPT1T_nL` are n layers of a model.
 *   GPT30B has the numbers of GPT25B there, and GPT125M 16 heads, where the paper has 12. BERT1_2B is its shape alone.
 * - `LLAMA_..`: Touvron et al., 2023.
 * - `AURORA_..`, `LLAMA3_3B`, `SMOLLM3_3B`, `PHI4_MINI`: those of AuroraGPT's scripts, without their 33B, whose heads of
 *   106 columns no kernel takes.
 *
 * Frozen. A model with learned positions has 2,048 of them; `{ ...presets.GPT25B, maxPositions: 131_072 }` has more.
 *
 * @example
 * const { layers, hidden, heads } = presets.GPT13B;
 * [layers, hidden, heads]; // [40, 5120, 64]
 */
export const presets = frozen({
  GPT125M: gpt(12, 768, 16),
  BERT1_2B: gpt(24, 2048, 128),
  GPT1_5B: gpt(48, 1536, 24),
  GPT2_7B: gpt(32, 2560, 32),
  GPT6_7B: gpt(32, 4096, 32),
  GPT13B: gpt(40, 5120, 64),
  GPT25B: gpt(64, 6144, 64),
  GPT30B: gpt(64, 6144, 64),
  GPT33B: gpt(80, 6144, 64),
  GPT145B: gpt145B,
  ...slices("GPT145B", gpt145B, [2, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64]),
  ...slices("GPT1T", gpt1T, [1, 2, 4, 8, 16, 24, 30, 32, 60, 64, 120, 128, 256, 512, 1024]),
  LLAMA_7B: llama(32, 4096, 32, 11_008),
  LLAMA_13B: llama(40, 5120, 40, 13_824),
  LLAMA_70B: llama(80, 8192, 64, 28_672, { keyValueHeads: 8 }),
  AURORA_2B: llama(12, 2048, 16, 11_008, { keyValueHeads: 4 }),
  AURORA_7B: llama(32, 4096, 32, 11_008, { keyValueHeads: 8 }),
  AURORA_70B: llama(80, 8192, 64, 28_672, { keyValueHeads: 8 }),
  LLAMA3_3B: llama(28, 3072, 24, 8192, { keyValueHeads: 8, ...llama3 }),
  SMOLLM3_3B: llama(24, 2048, 16, 11_008, { keyValueHeads: 4, vocabulary: 128_256 }),
  PHI4_MINI: llama(24, 3072, 32, 8192, { keyValueHeads: 8, vocabulary: 200_064 }),
} as const satisfies Readonly<Record<string, Readonly<GptOptions>>>);
