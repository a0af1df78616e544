// What was published of training on long sequences, for a report of ours to lay its figures beside: GenSLM's scripts on
// 32 A100s of 40 GB, tensor and sequence parallel over all of them (Megatron-DeepSpeed, 2023).
import { presets } from "../../index.ts";
import { gptConfiguration } from "../../model/configuration.ts";
import { modelOperations, originalOperations } from "../bench/flops.ts";

export interface PublishedRun {
  readonly seqLen: number;
  /** A GPU, as they counted: several where there were several runs, none where memory ran out. */
  readonly teraflops: readonly number[];
}

export interface PublishedTable {
  readonly label: string;
  readonly runs: readonly PublishedRun[];
}

/** The first two are of the 30B class, 2k to 256k; the last is of the 25B preset, 128k to 420k, lengths in thousands. */
export const publishedTables: readonly PublishedTable[] = [
  {
    label: "published, before",
    runs: [
      { seqLen: 2048, teraflops: [25] },
      { seqLen: 4096, teraflops: [28] },
      { seqLen: 8192, teraflops: [] },
    ],
  },
  {
    label: "published",
    runs: [
      { seqLen: 2048, teraflops: [68] },
      { seqLen: 4096, teraflops: [80] },
      { seqLen: 8192, teraflops: [86] },
      { seqLen: 16_384, teraflops: [92] },
      { seqLen: 32_768, teraflops: [100] },
      { seqLen: 65_536, teraflops: [106] },
      { seqLen: 131_072, teraflops: [119] },
      { seqLen: 262_144, teraflops: [94] },
    ],
  },
  {
    label: "published, offload",
    runs: [
      { seqLen: 128_000, teraflops: [105, 106.7] },
      { seqLen: 192_000, teraflops: [115.8] },
      { seqLen: 360_000, teraflops: [81.6, 82.7] },
      { seqLen: 400_000, teraflops: [90.6] },
      { seqLen: 420_000, teraflops: [81.8] },
    ],
  },
];

/** 25B and 30B have the same numbers in those scripts. */
const shape = gptConfiguration("bench", presets.GPT25B);

/** A published figure as causal model TFLOP/s: attention over half of the pairs, and no recomputation. */
export function causalTeraflops({ seqLen }: PublishedRun, teraflops: number): number {
  const tokens = { batch: 1, seqLen };
  const [needed, counted] = [
    modelOperations(shape, tokens, 0.5, "both"),
    originalOperations(shape, tokens, "both", true),
  ];
  return (teraflops * needed) / counted;
}
