// `longseq bench --what NAME` for what operations.ts lists: measured length by length, printed, written as JSON lines.
import type { Device, DType, Tensor } from "../../index.ts";
import { measurePeak } from "../../peak.ts";
import { UsageError } from "../arguments.ts";
import { type Column, Table, type TextStream } from "../output.ts";
import { formatBytes, formatFigure, formatLength } from "../quantity.ts";
import { alone } from "../world.ts";
import { type Contender, Own } from "./contender.ts";
import type { ModelPass } from "./flops.ts";
import { measure, type Timing } from "./measure.ts";
import type { Operation, Prepared, Rows, Work } from "./operation.ts";
import { type OperationName, operations } from "./operations.ts";
import type { TorchPeer } from "./peer.ts";
import { endInterrupted, finish, type Run } from "./run.ts";
import type { Settings } from "./settings.ts";

export interface OperationMeasurement {
  readonly what: OperationName;
  readonly pass: ModelPass;
  readonly implementation: string;
  readonly device: string;
  readonly deviceName: string;
  readonly dtype: DType;
  readonly rows: number;
  readonly width: number;
  /** Where logits are made. */
  readonly vocabulary?: number;
  /** The median, in milliseconds. */
  readonly ms?: number;
  readonly msMin?: number;
  readonly runs?: number;
  /** Bytes that must be read and written over the time, where they are what bounds it, */
  readonly gigabytesPerSecond?: number;
  /** and else the arithmetic. */
  readonly tflops?: number;
  /** The share of a copy's rate, or of the multiply-adds' peak, as measured. */
  readonly peakShare?: number;
  readonly peakBytes?: number;
  readonly oom?: true;
}

interface Bench {
  readonly settings: Settings;
  readonly device: Device;
  readonly dtype: NonNullable<Settings["dtype"]>;
  readonly peer: TorchPeer | undefined;
  readonly run: Run;
}

class OwnOperation extends Own {
  readonly #make: () => Prepared;
  readonly #pass: ModelPass;
  #prepared: Prepared | undefined;

  constructor(operation: Operation, shape: Rows, pass: ModelPass) {
    super(shape.device, shape.device.kind);
    this.#make = () => operation.prepare(shape);
    this.#pass = pass;
  }

  async prepare(): Promise<void> {
    this.#prepared = this.#make();
    await this.device.synchronize();
  }

  protected call(): readonly Tensor[] {
    return this.#prepared?.[this.#pass]?.() ?? [];
  }

  async dispose(): Promise<void> {
    for (const input of this.#prepared?.inputs ?? []) input[Symbol.dispose]();
  }
}

const defaultLengths = [1024, 4096, 16384];
const mostRuns = 200;

export async function benchOperation(bench: Bench): Promise<number> {
  const { settings, device, dtype, peer, run } = bench;
  const { signal } = run;
  const { stream, json, progress } = run.output;
  const what = settings.what as OperationName;
  const operation: Operation = operations[what];
  const { headDim, width = settings.heads * headDim, vocabulary } = settings;
  if (what === "rotaryEmbedding" && width % headDim !== 0) {
    throw new UsageError(`--width is ${width}, expected a multiple of --head-dim (${headDim})`);
  }
  const passes = operation.passes.filter((pass) =>
    settings.passes.includes(pass === "both" ? "backward" : pass),
  );
  if (passes.length === 0) {
    throw new UsageError(
      `--pass is ${settings.passes.join()}, expected ${operation.passes.join()} with --what ${what}`,
    );
  }
  const isBound = "bytes" in operation.work({ rows: 1, width, headDim, dtype, device }, "forward");
  const peak = isBound ? await copyRate(bench) : 1e12 * (await measurePeak(device, dtype));
  if (signal.aborted) endInterrupted(run);
  const unit = isBound ? "GB/s" : "TFLOP/s";
  const title = [
    `longseq ${what} on ${device.description}: ${dtype}, rows of ${width}`,
    ...(vocabulary === undefined ? [] : [`, a vocabulary of ${vocabulary}`]),
    `; ${isBound ? "a copy" : "multiply-adds"} `,
    peak === undefined ? "has no memory" : `at ${formatFigure(peak / (isBound ? 1e9 : 1e12))} ${unit}`,
  ];
  stream.write(`${title.join("")}\n\n`);
  const table = tableOf(stream, unit, isBound, peer?.implementations ?? []);
  table.head();
  for (const length of settings.seqLens ?? defaultLengths) {
    const shape: Rows = { rows: settings.batch * length, width, headDim, vocabulary, dtype, device };
    for (const pass of passes) {
      if (signal.aborted) finish(run); // and does not return
      const { rows } = shape;
      const contenders: Contender[] = [
        new OwnOperation(operation, shape, pass),
        ...(peer?.operationContenders({ what, pass, dtype, rows, width, headDim, vocabulary }) ?? []),
      ];
      const effort = { seconds: settings.seconds, mostRuns, now: alone.now };
      const timings = await measure(contenders, effort, signal, (round) => {
        progress.show(`${rows.toLocaleString("en-US")} rows, ${pass}: round ${round + 1} (Ctrl-C to stop)`);
      });
      progress.clear();
      const work = operation.work(shape, pass);
      const group = timings.map((timing) => measurementOf(what, shape, pass, work, peak, timing));
      for (const measurement of group) json?.write(measurement);
      if (group.length > 0) table.row(cells(group, peer?.implementations ?? []));
    }
  }
  finish(run);
  return 0;
}

/** Bytes a second that a copy of 256 MiB reads and writes: what memory gives at most. Undefined where it has none. */
async function copyRate({ device, settings, run: { output, signal } }: Bench): Promise<number | undefined> {
  const shape: Rows = { rows: 2 ** 13, width: 2 ** 14, headDim: 1, dtype: "bfloat16", device };
  const effort = { seconds: Math.min(0.2, settings.seconds), mostRuns, now: alone.now };
  const [timing] = await measure([new OwnOperation(operations.copy, shape, "forward")], effort, signal, () =>
    output.progress.show("what a copy reaches (Ctrl-C to stop)"),
  );
  output.progress.clear();
  return timing?.figures && (2 * 2 ** 28) / (timing.figures.ms / 1000);
}

function measurementOf(
  what: OperationName,
  { rows, width, vocabulary, dtype, device }: Rows,
  pass: ModelPass,
  work: Work,
  peak: number | undefined,
  { implementation, figures, peakBytes }: Timing,
): OperationMeasurement {
  const { name, description: deviceName } = device;
  const shape = { rows, width, ...(vocabulary === undefined ? {} : { vocabulary }) };
  const measurement = { what, pass, implementation, device: name, deviceName, dtype, ...shape };
  if (!figures) return { ...measurement, oom: true };
  const rate = ("bytes" in work ? work.bytes : work.operations) / (figures.ms / 1000);
  return {
    ...measurement,
    ...figures,
    ...("bytes" in work ? { gigabytesPerSecond: rate / 1e9 } : { tflops: rate / 1e12 }),
    ...(peak === undefined ? {} : { peakShare: rate / peak }),
    ...(peakBytes === undefined ? {} : { peakBytes }),
  };
}

function tableOf(stream: TextStream, unit: string, isBound: boolean, peers: readonly string[]): Table {
  const columns: Column[] = [
    { title: "rows", width: 9 },
    { title: "pass", width: 8, align: "left" },
    { title: "ms", width: 9 },
    { title: unit, width: 8 },
    { title: isBound ? "of copy" : "of peak", width: 7 },
    { title: "memory", width: 8 },
    ...peers.flatMap((name): Column[] => [
      { title: name, width: 9 },
      { title: "ratio", width: 6 },
    ]),
  ];
  return new Table(stream, columns);
}

function cells(group: readonly OperationMeasurement[], peers: readonly string[]): string[] {
  const [own] = group;
  const rate = (one: OperationMeasurement | undefined) => one?.gigabytesPerSecond ?? one?.tflops;
  const ownRate = rate(own);
  const figures =
    ownRate === undefined
      ? ["out of", "memory", "", ""]
      : [
          formatFigure(own?.ms ?? 0),
          formatFigure(ownRate),
          own?.peakShare === undefined ? "" : `${(100 * own.peakShare).toFixed(0)}%`,
          formatBytes(own?.peakBytes ?? 0),
        ];
  const against = peers.flatMap((name) => {
    const other = group.slice(1).find(({ implementation }) => implementation === name);
    if (!other) return ["", ""];
    const otherRate = rate(other);
    if (otherRate === undefined) return ["no memory", ""];
    return [formatFigure(otherRate), ownRate === undefined ? "" : `${(ownRate / otherRate).toFixed(2)}x`];
  });
  return [formatLength(own?.rows ?? 0), own?.pass ?? "", ...figures, ...against];
}
