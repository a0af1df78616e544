// The report of a layer's or a model's bench: ours by both counts, and beside it what was published.

import type { ModelMeasurement } from "../bench/model-sweep.ts";
import { largestOf, modelColumns, modelRowCells } from "../bench/model-table.ts";
import type { ReportKind } from "../bench/settings.ts";
import { formatFigure, formatLength, type RateUnit, rateUnit } from "../quantity.ts";
import { renderChart, type Series } from "./chart.ts";
import { causalTeraflops, type PublishedTable, publishedTables } from "./published.ts";
import { type Contents, type Report, renderContents } from "./report.ts";

export function renderModelReport(kind: ReportKind, report: Report<ModelMeasurement>, title: string): string {
  const { measurements, command } = report;
  const unit = rateUnit(largestOf(measurements));
  const implementations = [...new Set(measurements.map(({ implementation }) => implementation))];
  const [ownName, ...peers] = implementations;
  const own = measurements.filter(({ implementation }) => implementation === ownName);
  const rows = own.map((one) => {
    const others = measurements.filter(({ seqLen }) => seqLen === one.seqLen);
    return modelRowCells(one, others, peers, unit);
  });
  const [first] = measurements;
  const contents: Contents = {
    heading: first?.what === "gpt" ? "Model throughput" : "Layer throughput",
    title: first ? title : `${title}: nothing was measured`,
    summary: summaryOf(own, unit),
    chart: renderChart({
      title: "Throughput by sequence length",
      subtitle: [title, ...(first ? [first.deviceName] : [])].join(" · "),
      footer: command,
      unit: unit.name,
      panels: [{ title: panelTitle(unit), series: seriesOf(measurements, implementations, unit) }],
    }),
    table: { columns: modelColumns(unit, peers).map(({ title: name }) => name), rows, note: method },
    published: {
      title: "Beside the published tables",
      columns: [
        "tokens",
        ...publishedTables.map(({ label }) => label),
        "as causal model TFLOP/s",
        "ours, counted so",
        "ours, causal model TFLOP/s",
      ],
      rows: publishedRows(own),
      note: published,
    },
    report,
  };
  return renderContents(kind, contents);
}

function panelTitle(unit: RateUnit): string {
  return hasPublished(unit) ? "A device; published: 32 A100s, by their own count" : "A device";
}

/** 32 GPUs beside a processor would be a line far above one at nought. */
function hasPublished({ perTeraflop }: RateUnit): boolean {
  return perTeraflop === 1;
}

function seriesOf(
  measurements: readonly ModelMeasurement[],
  implementations: readonly string[],
  unit: RateUnit,
): Series[] {
  const line = (label: string, name: string | undefined, rate: "tflops" | "tflopsOriginal"): Series => ({
    label,
    points: measurements
      .filter(({ implementation }) => implementation === name)
      .map(({ seqLen, ms = 0, [rate]: value }) => {
        if (value === undefined) return { x: seqLen, note: "out of memory" };
        const y = value * unit.perTeraflop;
        return { x: seqLen, y, note: `${formatFigure(y)} ${unit.name}, ${formatFigure(ms)} ms` };
      }),
  });
  const [own, ...peers] = implementations;
  const ours = [line("longseq", own, "tflops"), line("longseq, their count", own, "tflopsOriginal")];
  const others = hasPublished(unit) ? publishedTables.slice(1).map(publishedSeries) : [];
  return [...ours, ...peers.map((name) => line(name, name, "tflops")), ...others];
}

function publishedSeries({ label, runs }: PublishedTable): Series {
  return {
    label,
    points: runs.map(({ seqLen, teraflops }) => {
      const y = Math.max(...teraflops);
      return { x: seqLen, y, note: `${formatFigure(y)} TFLOP/s a GPU, 32 A100s, their count` };
    }),
  };
}

/** A row a length that they or we have. */
function publishedRows(own: readonly ModelMeasurement[]): string[][] {
  const lengths = [...publishedTables.flatMap(({ runs }) => runs), ...own].map(({ seqLen }) => seqLen);
  return [...new Set(lengths)]
    .sort((a, b) => a - b)
    .map((seqLen) => {
      const found = publishedTables.map(({ runs }) => runs.find((run) => run.seqLen === seqLen));
      const cells = found.map((run) => {
        if (!run) return "";
        return run.teraflops.length > 0 ? run.teraflops.map(formatFigure).join(", ") : "no memory";
      });
      const best = found.findLast((run) => run && run.teraflops.length > 0);
      const causal = best ? formatFigure(causalTeraflops(best, Math.max(...best.teraflops))) : "";
      const ours = own.find((one) => one.seqLen === seqLen);
      const rates = [ours?.tflopsOriginal, ours?.tflops].map((rate) => {
        if (rate !== undefined) return formatFigure(rate);
        return ours ? "no memory" : "";
      });
      return [formatLength(seqLen), ...cells, causal, ...rates];
    });
}

/** The longest length in a sentence: what a reader would look for first. */
function summaryOf(own: readonly ModelMeasurement[], unit: RateUnit): string {
  const longest = own.findLast(({ tflops }) => tflops !== undefined);
  if (!longest) return "Nothing was measured.";
  const { seqLen, tflops = 0, tflopsOriginal = 0, ranks, communicationShare = 0 } = longest;
  const waiting = ranks > 1 ? `; a rank waits ${(100 * communicationShare).toFixed(0)} % of its time` : "";
  const rate = (value: number) => formatFigure(value * unit.perTeraflop);
  return `At ${formatLength(seqLen)} tokens: ${rate(tflops)} ${unit.name} a device, ${rate(tflopsOriginal)} as published tables count${waiting}.`;
}

const method =
  "Times are medians, of the slowest rank. Rates are a device's. TFLOP/s are causal model operations: two a multiply-add of the products and of attention's visible pairs, 3 (24·S·h² + 2·S²·h) for a GPT layer; backward counts twice, recomputation nothing. Original is the count of the published tables: 24·c·B·S·L·h²·(1 + S/6h + V/16Lh), c = 3, or 4 with recomputation. Memory is the most that a rank held. Waiting is the share of a rank's time in which its queue waited for the other ranks.";
const published =
  "Published, TFLOP/s a GPU by their own count, which takes attention over all pairs and recomputation as work: GPT of 25 to 30B (64 layers of 6,144, 64 heads) on 32 A100s of 40 GB, a sequence over all of them, 2k to 256k before and with their long-sequence work, and 128k to 420k with offload. Other GPUs, and whole training steps: to be laid beside ours, not to be ranked with them. As causal model TFLOP/s they are what this bench would have counted.";
