// `longseq bench`: throughput by sequence length.
import { writeFile } from "node:fs/promises";
import { Device, type DType, info } from "../index.ts";
import { measurePeak } from "../peak.ts";
import type { Command } from "./arguments.ts";
import { benchOperation } from "./bench/operation-sweep.ts";
import { PeerError, TorchPeer } from "./bench/peer.ts";
import { benchOptions, benchSettings, type Settings } from "./bench/settings.ts";
import { type Measurement, sweep } from "./bench/sweep.ts";
import { MeasurementTable } from "./bench/table.ts";
import { machineFacts } from "./machine.ts";
import { JsonLines, Progress, textStream } from "./output.ts";
import { renderReport, titleOf } from "./report/report.ts";

const interrupted = 130;

export const bench: Command = {
  usage: "[options]",
  description: `Measures the throughput of attention by sequence length, forward and backward, and prints a table.
Floating-point operations count 4 * batch * heads * tokens^2 * head size forward (half when causal,
the visible share for masks and windows) and 2.5 times that backward. Times are medians; "of peak"
is the share of what the processor reaches when it only multiplies and adds (measured at the start);
memory is the most that tensors and scratch held during a run, inputs included. A GPU is timed by its
own clock, and finds each run's inputs out of its cache. Other operations than attention have rows of
heads * head size, one for each token of each sequence; for those that memory bounds the rate is bytes
read and written, "of copy" its share of what a copy of 256 MiB reaches.`,
  options: benchOptions,
  async run(given) {
    const settings = benchSettings(given);
    using json = settings.json === undefined ? undefined : new JsonLines(settings.json);
    const stopping = new AbortController();
    const stop = () => stopping.abort();
    // Once: a second Ctrl-C ends the process the usual way.
    process.once("SIGINT", stop);
    try {
      return await measureAll(settings, json, stopping.signal);
    } finally {
      process.off("SIGINT", stop);
    }
  },
};

async function measureAll(
  settings: Settings,
  json: JsonLines | undefined,
  signal: AbortSignal,
): Promise<number> {
  const stream = textStream(settings.json);
  const progress = new Progress();
  using device =
    settings.device === undefined ? new Device(Device.default.name) : new Device(settings.device);
  const { version, cpu } = info();
  const dtype = settings.dtype ?? (hasNativeBfloat16(device) ? "bfloat16" : "float32");
  using peer = settings.hasPeer ? await startPeer(settings, device, dtype, cpu.threads) : undefined;
  if (settings.what !== "attention") {
    const onProgress = (text: string) => progress.show(text);
    return await benchOperation({ settings, device, dtype, peer, signal, stream, json, onProgress });
  }

  const peakTeraflops = await measurePeak(device, dtype);
  const measurements: Measurement[] = [];
  const table = new MeasurementTable(stream, device, peer?.implementations ?? []);
  stream.write(`longseq ${version} on ${device.description}\n${titleOf({ ...settings, dtype })}\n\n`);
  table.head();
  for await (const group of sweep({
    settings,
    device,
    dtype,
    peer,
    peakTeraflops,
    signal,
    onProgress: (text) => progress.show(text),
  })) {
    progress.clear();
    for (const measurement of group) json?.write(measurement);
    measurements.push(...group);
    table.row(group);
  }
  progress.clear();
  if (signal.aborted) stream.write("\nInterrupted: this is what was measured.\n");
  if (settings.report) {
    const { path, kind } = settings.report;
    const facts = machineFacts(device, peer?.version);
    await writeFile(
      path,
      renderReport(kind, { measurements, facts, command: commandLine(), date: new Date() }),
    );
    stream.write(`\nReport: ${path}\n`);
  }
  // The interrupted run is still on its way; waiting for it is not what Ctrl-C asked for.
  if (signal.aborted) process.exit(interrupted);
  return 0;
}

function hasNativeBfloat16(device: Device): boolean {
  return device.kind === "cuda" || info().cpu.instructionSet === "avx512bf16";
}

/** A machine without PyTorch still gets our own figures. */
async function startPeer(
  settings: Settings,
  device: Device,
  dtype: DType,
  threads: number,
): Promise<TorchPeer | undefined> {
  const masked = settings.mask !== "none" || settings.window !== undefined;
  try {
    return await TorchPeer.start(device.name, threads, { what: settings.what, dtype, masked });
  } catch (error) {
    if (!(error instanceof PeerError)) throw error;
    process.stderr.write(`longseq bench: no peer: ${error.message}\n`);
    return undefined;
  }
}

/** What to type to run this again, with the variables of ours that were set. */
function commandLine(): string {
  const quote = (word: string) => {
    return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
  };
  const variables = Object.entries(process.env)
    .filter(([name]) => name.startsWith("LONGSEQ_"))
    .map(([name, value = ""]) => `${name}=${quote(value)}`);
  return [...variables, "npx longseq bench", ...process.argv.slice(3).map(quote)].join(" ");
}
