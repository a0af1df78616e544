// Goes through the lengths, and turns timings into measurements: the JSON lines of the bench.
import { attentionKernels, type Device, type DType } from "../../index.ts";
import type { RankGroup } from "../rank-group.ts";
import type { Parallel } from "../ranks.ts";
import { alone, type World } from "../world.ts";
import { type Contender, OwnAttention } from "./contender.ts";
import { type Effort, measure, predictSeconds, type Timing } from "./measure.ts";
import type { TorchPeer } from "./peer.ts";
import { floatingPointOperations, type MaskName, type Pass, type Problem, visibleShare } from "./problem.ts";
import { RankedContender } from "./ranked-contender.ts";
import type { Settings } from "./settings.ts";
import { SharedAttention } from "./shared-attention.ts";

export interface Measurement {
  readonly what: "attention";
  readonly pass: Pass;
  readonly implementation: string;
  readonly device: string;
  readonly deviceName: string;
  readonly dtype: DType;
  readonly batch: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly causal: boolean;
  readonly mask: MaskName;
  readonly window?: number;
  readonly deterministic?: true;
  /** Where ranks share the sequence; the rates are then a processor's, of which there are so many. */
  readonly ranks?: number;
  readonly sequenceParallel?: Parallel["type"];
  readonly devices?: number;
  readonly seqLen: number;
  /** The median, in milliseconds. */
  readonly ms?: number;
  readonly msMin?: number;
  readonly tflops?: number;
  readonly tokensPerSecond?: number;
  readonly peakBytes?: number;
  readonly runs?: number;
  /** Of a rank's time, what it waited for the others, on the mean of the ranks. */
  readonly communicationShare?: number;
  /** The share of the device's multiply-adds, as measured. */
  readonly peakShare?: number;
  readonly oom?: true;
}

export interface SweepOptions {
  readonly settings: Settings;
  readonly device: Device;
  /** Where ranks share the sequence. */
  readonly group: RankGroup | undefined;
  readonly dtype: NonNullable<Settings["dtype"]>;
  readonly peer: TorchPeer | undefined;
  /** What the device multiplies and adds at most, where it was measured. */
  readonly peakTeraflops: number | undefined;
  readonly signal: AbortSignal;
  readonly onProgress: (text: string) => void;
}

const shortest = 1024;
const longest = 2 ** 20;
const defaultSeconds = 24;
/** Past this many the median no longer moves. */
const mostRuns = 200;

/** The measurements of one pass at one length: ours first. */
export function sweep(options: SweepOptions): AsyncGenerator<Measurement[]> {
  const { settings, signal, group } = options;
  const { world = alone } = group ?? {};
  return sweepLengths({ ...settings, world }, settings.passes, signal, (seqLen, pass, effort) =>
    measureOne(options, effort, seqLen, pass),
  );
}

/** Length by length, and at each pass by pass; where none are named, doubled for as long as it is quick. */
export async function* sweepLengths<AnyPass, One extends { readonly ms?: number }>(
  { seqLens, seconds, world }: Pick<Settings, "seqLens" | "seconds"> & { readonly world: World },
  passes: readonly AnyPass[],
  signal: AbortSignal,
  measureAt: (seqLen: number, pass: AnyPass, effort: Effort) => Promise<One[]>,
): AsyncGenerator<One[]> {
  const effort = { seconds, mostRuns, now: () => world.now() };
  // Who was interrupted waits for nobody's clock.
  const now = () =>
    world.now().catch((error: unknown) => (signal.aborted ? Number.NaN : Promise.reject(error)));
  const start = await now();
  for (let seqLen of seqLens ?? [shortest]) {
    for (;;) {
      const runSeconds: number[][] = [];
      for (const pass of passes) {
        if (signal.aborted) return;
        const measurements = await measureAt(seqLen, pass, effort);
        if (measurements.length > 0) yield measurements;
        runSeconds.push(measurements.map(({ ms = Number.POSITIVE_INFINITY }) => ms / 1000));
      }
      seqLen *= 2;
      if (seqLens || seqLen > longest) break;
      const spent = ((await now()) - start) / 1000;
      // Twice the length is at most four times the work.
      const next = runSeconds.map((all) =>
        predictSeconds(
          all.map((s) => 4 * s),
          effort,
        ),
      );
      if (next.reduce((sum, s) => sum + s, spent) > defaultSeconds) break;
    }
  }
}

async function measureOne(options: SweepOptions, effort: Effort, seqLen: number, pass: Pass) {
  const { settings, device, dtype, peer, signal, group } = options;
  const { batch, heads, kvHeads, headDim, causal, window, mask, deterministic } = settings;
  const shape = { dtype, batch, heads, kvHeads, headDim, causal, window, mask, seqLen };
  const problem: Problem = { ...shape, deterministic };
  const { implementation } = settings;
  const shared =
    group &&
    new RankedContender({
      implementation: attentionKernels({ device, dtype, implementation }),
      group,
      seqLen,
      prepare: (rank) => new SharedAttention(problem, pass, implementation, rank),
    });
  const contenders: Contender[] = [
    shared ?? new OwnAttention(device, problem, pass, implementation),
    ...(peer?.contenders(problem, pass) ?? []),
  ];
  const timings = await measure(contenders, effort, signal, (round) => {
    const what = round < 0 ? "warming up" : `round ${round + 1}`;
    options.onProgress(`${seqLen.toLocaleString("en-US")} tokens, ${pass}: ${what} (Ctrl-C to stop)`);
  });
  const share = visibleShare(problem);
  return timings.map((timing) => {
    const isShared = timing.implementation === shared?.implementation;
    return measurementOf(options, problem, pass, share, timing, isShared ? shared : undefined);
  });
}

function measurementOf(
  { settings, device, group, peakTeraflops }: SweepOptions,
  problem: Problem,
  pass: Pass,
  share: number,
  { implementation, figures, peakBytes }: Timing,
  shared: RankedContender | undefined,
): Measurement {
  const { dtype, batch, heads, kvHeads, headDim, causal, window, mask, seqLen } = problem;
  const shape = { dtype, batch, heads, kvHeads, headDim, causal, mask, seqLen };
  const { parallel } = settings;
  const devices = shared ? (group?.deviceCount ?? 1) : 1;
  const measurement = {
    what: "attention" as const,
    pass,
    implementation,
    device: device.name,
    deviceName: device.description,
    ...shape,
    ...(window === undefined ? {} : { window }),
    ...(problem.deterministic ? { deterministic: true as const } : {}),
    ...(shared ? { ranks: parallel.size, sequenceParallel: parallel.type, devices } : {}),
  };
  if (!figures) return { ...measurement, oom: true };
  const deviceSeconds = devices * (figures.ms / 1000);
  const tflops = floatingPointOperations(problem, pass, share) / deviceSeconds / 1e12;
  const communicationShare = shared?.communicationShare;
  return {
    ...measurement,
    ms: figures.ms,
    msMin: figures.msMin,
    tflops,
    tokensPerSecond: (batch * seqLen) / deviceSeconds,
    ...(peakBytes === undefined ? {} : { peakBytes }),
    runs: figures.runs,
    ...(peakTeraflops === undefined ? {} : { peakShare: tflops / peakTeraflops }),
    ...(communicationShare === undefined ? {} : { communicationShare }),
  };
}
