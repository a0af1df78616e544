// `longseq bench`: throughput by sequence length.
import { Device, info } from "../index.ts";
import { measurePeak } from "../peak.ts";
import { type Command, UsageError } from "./arguments.ts";
import { benchModel } from "./bench/model-bench.ts";
import { modelSettings } from "./bench/model-settings.ts";
import { benchOperation } from "./bench/operation-sweep.ts";
import { benchOptions, whatOf } from "./bench/options.ts";
import { TorchPeer } from "./bench/peer.ts";
import { commandLine, defaultDtype, endInterrupted, finish, type Run, startPeer } from "./bench/run.ts";
import { benchSettings, type CommonSettings, type Settings } from "./bench/settings.ts";
import { type Measurement, sweep } from "./bench/sweep.ts";
import { MeasurementTable } from "./bench/table.ts";
import { machineFacts } from "./machine.ts";
import { openOutput } from "./output.ts";
import { openRanks, rankDevice } from "./ranks.ts";
import { renderReport, titleOf } from "./report/report.ts";
import { launchedProcesses, openWorld } from "./world.ts";

export const bench: Command = {
  usage: "[options]",
  description: `Measures the throughput of attention by sequence length, forward and backward, and prints a table.
Floating-point operations count 4 * batch * heads * tokens^2 * head size forward (half when causal,
the visible share for masks and windows) and 2.5 times that backward. Times are medians; "of peak"
is the share of what the processor reaches when it only multiplies and adds (measured at the start);
memory is the most that tensors and scratch held during a run, inputs included. A GPU is timed by its
own clock, and finds each run's inputs out of its cache. Other operations than attention have rows of
heads * head size, one for each token of each sequence; for those that memory bounds the rate is bytes
read and written, "of copy" its share of what a copy of 256 MiB reaches. Operations count two for each
multiply-add of a product: linearCrossEntropy has one forward, and three in the row "both", which is
its forward and backward pass in one run, since it makes its gradients on the way forward.

--what layer is one transformer layer, --what gpt a model with its embedding and its loss, forward and
backward without the optimizer's step, over one rank, several of this process, or under longseq launch
as many as it starts processes, each on its GPU, of which rank 0 prints. Rates are those of one
processor, however many ranks share it. The first counts two operations for each multiply-add of the
products and of attention's visible pairs, for both passes three times the forward's, and nothing for
what is recomputed: 3 (24 S h^2 + 2 S^2 h) for a causal GPT layer; "original" counts as the tables that
were published for long sequences in 2023 do: all pairs, and recomputation as work. Memory is that of
the rank that held most. "Waiting" is the share of a rank's time, on their mean, in which its queue
waited for the link: for what other ranks send, and for them to have made it; ranks that share one
processor wait for each other's turn too. Where ranks are processes --peer has one beside each, which
together are a layer as Megatron-LM divides it, however ours share the sequence.`,
  options: benchOptions,
  async run(given) {
    const what = whatOf(given);
    if (what === "layer" || what === "gpt") {
      const settings = modelSettings(given, what);
      return await running(settings, (run) => benchModel(settings, run));
    }
    const { size, launcher } = launchedProcesses();
    if (what !== "attention" && size > 1) {
      throw new UsageError(
        `--what ${what} runs in one process, expected no more: ${launcher} started ${size}`,
      );
    }
    const settings = benchSettings(given, what);
    return await running(settings, (run) => measureAll(settings, run));
  },
};

async function running(
  { json, report }: CommonSettings,
  work: (run: Run) => Promise<number>,
): Promise<number> {
  const stopping = new AbortController();
  const stop = () => stopping.abort();
  // Once: a second Ctrl-C ends the process the usual way.
  process.once("SIGINT", stop);
  try {
    const { signal } = stopping;
    const world = openWorld(signal);
    using output = openOutput({ json, report: report?.path }, world.rank);
    const run = { world, output, signal };
    try {
      return await work(run);
    } catch (error) {
      if (error === signal.reason) endInterrupted(run);
      throw error;
    }
  } finally {
    process.off("SIGINT", stop);
  }
}

async function measureAll(settings: Settings, run: Run): Promise<number> {
  const { world, signal } = run;
  const { json, stream, progress } = run.output;
  const { parallel } = settings;
  const isShared = parallel.type !== "serial";
  using group = isShared ? await openRanks(parallel, rankDevice(settings.device), world) : undefined;
  using device = new Device(group?.devices[0]?.name ?? settings.device ?? Device.default.name);
  const dtype = settings.dtype ?? defaultDtype(device);
  const { what } = settings;
  const masked = settings.mask !== "none" || settings.window !== undefined;
  const hello = { device: device.name, threads: info().cpu.threads, what, dtype, masked };
  using peer = await startPeer(settings.peer, run, (name) => TorchPeer.start(name, hello));
  if (what !== "attention") return await benchOperation({ settings, device, dtype, peer, run });

  const peakTeraflops = await measurePeak(device, dtype);
  const measurements: Measurement[] = [];
  const table = new MeasurementTable(stream, device, peer?.implementations ?? [], isShared);
  const shared = group ? { ranks: parallel.size, sequenceParallel: parallel.type } : {};
  const title = titleOf({ ...settings, ...shared, dtype });
  stream.write(`longseq ${info().version} on ${device.description}\n${title}\n\n`);
  table.head();
  const onProgress = (text: string) => progress.show(text);
  const options = { settings, device, group, dtype, peer, peakTeraflops, signal, onProgress };
  for await (const row of sweep(options)) {
    progress.clear();
    for (const measurement of row) json?.write(measurement);
    measurements.push(...row);
    table.row(row);
  }
  progress.clear();
  const facts = machineFacts(device, peer?.version);
  const report = { measurements, facts, command: commandLine(run), date: new Date() };
  finish(run, settings.report, (kind) => renderReport(kind, report));
  return 0;
}
