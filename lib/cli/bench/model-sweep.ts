// `longseq bench --what layer` and `--what gpt`, length by length: from timings to the JSON lines and the table.

import { attentionKernels, type DType } from "../../index.ts";
import { isOfProducts } from "../../model/recompute.ts";
import { counted } from "../quantity.ts";
import type { RankGroup } from "../rank-group.ts";
import type { ParallelType } from "../ranks.ts";
import { type ModelPass, modelOperations, originalOperations } from "./flops.ts";
import { type Effort, measure, type Timing } from "./measure.ts";
import { type ModelProblem, ModelProgram, visibleShareOf } from "./model-program.ts";
import type { ModelSettings } from "./model-settings.ts";
import type { ModelName } from "./options.ts";
import type { TorchPeer } from "./peer.ts";
import type { MaskName } from "./problem.ts";
import { RankedContender } from "./ranked-contender.ts";
import { sweepLengths } from "./sweep.ts";

export interface ModelMeasurement {
  readonly what: ModelName;
  readonly pass: ModelPass;
  readonly implementation: string;
  readonly preset: string | null;
  readonly device: string;
  readonly deviceName: string;
  /** How many processors the ranks are on: several ranks may share one. */
  readonly devices: number;
  readonly dtype: DType;
  readonly ranks: number;
  readonly sequenceParallel: ParallelType | "serial";
  readonly recompute: ModelSettings["recompute"];
  readonly mlpTiles: number;
  /** The weights' gradients are float32; absent where they are of the weights' type. */
  readonly float32Gradients?: true;
  readonly batch: number;
  readonly seqLen: number;
  readonly causal: boolean;
  readonly mask: MaskName;
  readonly window?: number;
  readonly hidden: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly feedForward: number;
  readonly layers: number;
  /** Absent for a layer, which has none. */
  readonly vocabulary?: number;
  /** The median, in milliseconds, of the slowest rank. */
  readonly ms?: number;
  readonly msMin?: number;
  readonly runs?: number;
  /** Of each device: model FLOPs, causal, without recomputation, */
  readonly tflops?: number;
  /** and as the tables of 2023 count them. */
  readonly tflopsOriginal?: number;
  /** Of each device. */
  readonly tokensPerSecond?: number;
  /** Of the rank that held most. */
  readonly peakBytes?: number;
  /** Of a rank's time, on the mean of the ranks. */
  readonly communicationShare?: number;
  readonly oom?: true;
}

export interface ModelSweepOptions {
  readonly settings: ModelSettings;
  readonly group: RankGroup;
  readonly dtype: ModelProblem["dtype"];
  readonly peer: Pick<TorchPeer, "operationContenders"> | undefined;
  readonly signal: AbortSignal;
  readonly onProgress: (text: string) => void;
}

/** The measurements at one length: ours first. */
export function modelSweep(options: ModelSweepOptions): AsyncGenerator<ModelMeasurement[]> {
  const { settings, signal, group } = options;
  const { world } = group;
  return sweepLengths({ ...settings, world }, [settings.pass], signal, (seqLen, _pass, effort) =>
    measureOne(options, seqLen, effort),
  );
}

async function measureOne(
  options: ModelSweepOptions,
  seqLen: number,
  effort: Effort,
): Promise<ModelMeasurement[]> {
  const { settings, group, dtype, peer, signal } = options;
  const { shape, batch, causal, recompute, pass } = settings;
  const [first] = group.devices;
  const own = new RankedContender({
    implementation: attentionKernels({
      ...(first && { device: first }),
      dtype,
      implementation: settings.implementation,
    }),
    group,
    seqLen,
    prepare: (rank) => new ModelProgram({ settings, dtype, seqLen }, rank),
  });
  const { hidden, heads, keyValueHeads: kvHeads, headDim, feedForward } = shape;
  const problem = { hidden, heads, kvHeads, headDim, feedForward, bias: shape.bias, batch, seqLen };
  // Of what PyTorch saves, nothing is made again by itself.
  const again = { recompute: recompute === "full" ? recompute : "none" };
  const others = peer?.operationContenders({ what: "layer", pass, dtype, causal, ...again, ...problem });
  const timings = await measure([own, ...(others ?? [])], effort, signal, (round) => {
    const what = round < 0 ? "warming up" : `round ${round + 1}`;
    options.onProgress(`${seqLen.toLocaleString("en-US")} tokens: ${what} (Ctrl-C to stop)`);
  });
  return timings.map((timing) => {
    const share = timing.implementation === own.implementation ? own.communicationShare : undefined;
    return measurementOf(options, seqLen, timing, share);
  });
}

/** What a line says of the problem, before any figure. */
function description(
  { settings, group, dtype }: ModelSweepOptions,
  seqLen: number,
  implementation: string,
): ModelMeasurement {
  const isOwn = !implementation.startsWith("torch-");
  // PyTorch's layer is divided where ranks are processes, and always as Megatron does it.
  const isDivided = isOwn || group.world.size > 1;
  const { what, pass, preset, shape, parallel, recompute, mlpTiles, float32Gradients } = settings;
  const { batch, causal, mask, window } = settings;
  const [first] = group.devices;
  return {
    what,
    pass,
    implementation,
    preset,
    device: first?.name ?? "",
    deviceName: first?.description ?? "",
    devices: isDivided ? group.deviceCount : 1,
    dtype,
    ranks: isDivided ? parallel.size : 1,
    sequenceParallel: isOwn ? parallel.type : isDivided ? "megatron" : "serial",
    recompute,
    mlpTiles: isOwn ? mlpTiles : 1,
    ...(float32Gradients ? { float32Gradients } : {}),
    batch,
    seqLen,
    causal,
    mask,
    ...(window === undefined ? {} : { window }),
    hidden: shape.hidden,
    heads: shape.heads,
    kvHeads: shape.keyValueHeads,
    headDim: shape.headDim,
    feedForward: shape.feedForward,
    layers: shape.layers,
    ...(what === "gpt" ? { vocabulary: shape.vocabulary } : {}),
  };
}

function measurementOf(
  options: ModelSweepOptions,
  seqLen: number,
  { implementation, figures, peakBytes }: Timing,
  communicationShare: number | undefined,
): ModelMeasurement {
  const { settings } = options;
  const { shape, batch, pass, recompute } = settings;
  const measurement = description(options, seqLen, implementation);
  if (!figures) return { ...measurement, oom: true };
  const deviceSeconds = measurement.devices * (figures.ms / 1000);
  const rate = (operations: number) => operations / deviceSeconds / 1e12;
  const tokens = { batch, seqLen };
  return {
    ...measurement,
    ...figures,
    tflops: rate(modelOperations(shape, tokens, visibleShareOf(settings, seqLen), pass)),
    tflopsOriginal: rate(originalOperations(shape, tokens, pass, isOfProducts(recompute))),
    tokensPerSecond: (batch * seqLen) / deviceSeconds,
    ...(peakBytes === undefined ? {} : { peakBytes }),
    ...(communicationShare === undefined ? {} : { communicationShare }),
  };
}

/** "GPT25B: 64 layers of 6,144, 64 heads of 96" and how it is run, in a line. */
export function modelTitle(settings: ModelSettings, dtype: DType): string {
  const { what, preset, shape, parallel, recompute, mlpTiles, pass, batch, causal, mask, window } = settings;
  const { hidden, heads, keyValueHeads, headDim, layers } = shape;
  const parts = [
    dtype,
    pass === "both" ? "forward and backward" : pass,
    causal ? "causal" : "full",
    ...(mask === "none" ? [] : ["packed documents"]),
    ...(window === undefined ? [] : [`window ${window}`]),
    `batch ${batch}`,
    `${what === "gpt" ? `${counted(layers, "layer")} of ` : ""}width ${hidden}`,
    `${heads} heads of ${headDim}${keyValueHeads === heads ? "" : ` over ${keyValueHeads}`}`,
    ...(recompute === "pointwise" ? [] : [`recompute ${recompute}`]),
    ...(settings.float32Gradients ? ["float32 gradients"] : []),
    ...(mlpTiles === 1 ? [] : [`${mlpTiles} MLP tiles`]),
    ...(parallel.type === "serial" ? [] : [`${parallel.type} over ${counted(parallel.size, "rank")}`]),
  ];
  return `${what}${preset === null ? "" : ` ${preset}`}: ${parts.join(", ")}`;
}
