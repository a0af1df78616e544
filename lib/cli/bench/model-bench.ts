// `longseq bench --what layer` and `--what gpt`: measured length by length, printed, written as JSON lines.
import { type Device, info } from "../../index.ts";
import { machineFacts } from "../machine.ts";
import { Table } from "../output.ts";
import { rateUnit } from "../quantity.ts";
import { openRanks } from "../ranks.ts";
import { renderModelReport } from "../report/model-report.ts";
import type { ModelSettings } from "./model-settings.ts";
import { type ModelMeasurement, modelSweep, modelTitle } from "./model-sweep.ts";
import { modelColumns, modelRowCells } from "./model-table.ts";
import { TorchPeer } from "./peer.ts";
import { RankedTorchPeer } from "./ranked-peer.ts";
import { commandLine, defaultDtype, finish, type Run, startPeer } from "./run.ts";

export async function benchModel(settings: ModelSettings, run: Run): Promise<number> {
  const { world, signal } = run;
  const { stream, progress, json } = run.output;
  using group = await openRanks(settings.parallel, settings.device, world);
  const [device] = group.devices as [Device];
  const dtype = settings.dtype ?? defaultDtype(device);
  const hello = { device: device.name, threads: info().cpu.threads, what: "layer", dtype, masked: false };
  using peer = await startPeer(settings.peer, run, async (name) =>
    world.size > 1 ? await RankedTorchPeer.start(name, hello, world) : await TorchPeer.start(name, hello),
  );
  const peers = peer?.implementations ?? [];
  const unit = rateUnit(device.kind === "cuda" ? 1 : 0);
  const measurements: ModelMeasurement[] = [];
  const table = new Table(stream, modelColumns(unit, peers));
  const title = modelTitle(settings, dtype);
  const count = group.deviceCount;
  const where = count === 1 ? device.description : `${count} x ${device.description}`;
  stream.write(`longseq ${info().version} on ${where}\n${title}\n\n`);
  table.head();
  const onProgress = (text: string) => progress.show(text);
  for await (const row of modelSweep({ settings, group, dtype, peer, signal, onProgress })) {
    progress.clear();
    for (const measurement of row) json?.write(measurement);
    measurements.push(...row);
    const [own] = row;
    if (own) table.row(modelRowCells(own, row.slice(1), peers, unit));
  }
  progress.clear();
  const facts = machineFacts(device, peer?.version);
  const report = { measurements, facts, command: commandLine(run), date: new Date() };
  finish(run, settings.report, (kind) => renderModelReport(kind, report, title));
  return 0;
}
