// A bench's measurements as a page, a chart or text: what each of them says, before how it looks.

import { type Problem, passes } from "../bench/problem.ts";
import type { ReportKind } from "../bench/settings.ts";
import type { Measurement } from "../bench/sweep.ts";
import { rowCells } from "../bench/table.ts";
import type { Fact } from "../machine.ts";
import { counted, formatFigure, formatLength, type RateUnit, rateUnit } from "../quantity.ts";
import { type Chart, renderChart } from "./chart.ts";
import { renderMarkdown } from "./markdown.ts";
import { renderPage } from "./page.ts";

export interface Report<One extends object = Measurement> {
  readonly measurements: readonly One[];
  /** The machine and the versions. */
  readonly facts: readonly Fact[];
  readonly command: string;
  readonly date: Date;
}

export interface Rows {
  readonly columns: readonly string[];
  readonly rows: readonly (readonly string[])[];
  /** What the figures mean, under the table. */
  readonly note: string;
}

/** What every kind of report shows, worked out once. */
export interface Contents {
  readonly heading: string;
  readonly title: string;
  readonly summary: string;
  readonly chart: string;
  readonly table: Rows;
  /** What others have published, where there is anything. */
  readonly published?: Rows & { readonly title: string };
  readonly report: Report<object>;
}

export function renderReport(kind: ReportKind, report: Report): string {
  return renderContents(kind, contentsOf(report));
}

export function renderContents(kind: ReportKind, contents: Contents): string {
  switch (kind) {
    case ".svg":
      return contents.chart;
    case ".html":
      return renderPage(contents);
    case ".md":
      return renderMarkdown(contents);
  }
}

type Shape = Omit<Problem, "seqLen"> & Pick<Measurement, "ranks" | "sequenceParallel">;

export function titleOf(shape: Shape): string {
  const { dtype, causal, mask, window, deterministic, batch, heads, kvHeads, headDim, ranks } = shape;
  const parts = [
    dtype,
    causal ? "causal" : "full",
    ...(mask === "none" ? [] : [mask === "documents" ? "packed documents" : "block mask"]),
    ...(window === undefined ? [] : [`window ${window}`]),
    ...(deterministic ? ["deterministic"] : []),
    `batch ${batch}`,
    `${heads} heads of ${headDim}${kvHeads === heads ? "" : ` over ${kvHeads}`}`,
    ...(ranks === undefined ? [] : [`${shape.sequenceParallel} over ${counted(ranks, "rank")}`]),
  ];
  return `attention: ${parts.join(", ")}`;
}

function contentsOf(report: Report): Contents {
  const { measurements } = report;
  const [first] = measurements;
  const title = first ? titleOf({ ...first, window: first.window }) : "attention: nothing was measured";
  const unit = rateUnit(Math.max(0, ...measurements.map(({ tflops = 0 }) => tflops)));
  const implementations = [...new Set(measurements.map(({ implementation }) => implementation))];
  const peers = implementations.slice(1);
  const rows = measurements
    .filter(({ implementation }) => implementation === implementations[0])
    .map((own) => {
      const others = measurements.filter(({ seqLen, pass }) => seqLen === own.seqLen && pass === own.pass);
      return rowCells(own, others, peers, unit);
    });
  const waiting = first?.ranks === undefined ? [] : ["waiting"];
  const columns = ["tokens", "pass", "ms", unit.name, "of peak", "tokens/s", "memory", ...waiting];
  return {
    heading: "Attention throughput",
    title,
    summary: summaryOf(measurements, peers, unit),
    chart: renderChart(chartOf(report, title, implementations, unit)),
    table: {
      columns: [...columns, ...peers.flatMap((name) => [name, "ratio"])],
      rows,
      note: method,
    },
    report,
  };
}

const method =
  "Times are medians. Operations count 4·B·H·S²·D forward (half when causal, the visible share for masks and windows) and 2.5 times that backward. Memory is the most held during a run, inputs included; of several ranks, by the one that held most. Rates are a processor's. Waiting is the share of a rank's time in which its queue waited for the others. The peak is what a loop of multiply-adds reached, from register to register on all threads. A ratio is our throughput over the peer's.";

function chartOf(
  { measurements, command }: Report,
  title: string,
  implementations: readonly string[],
  unit: RateUnit,
): Chart {
  const peak = measurements.find(({ peakShare }) => peakShare !== undefined);
  const ceiling = peak?.peakShare
    ? { y: ((peak.tflops ?? 0) / peak.peakShare) * unit.perTeraflop, label: "multiply-add peak" }
    : undefined;
  const measured = passes.filter((pass) => measurements.some((one) => one.pass === pass));
  const panels = measured.map((pass) => ({
    title: pass === "forward" ? "Forward" : "Backward",
    series: implementations.map((implementation, i) => ({
      label: i === 0 ? `longseq (${implementation})` : implementation,
      points: measurements
        .filter((one) => one.pass === pass && one.implementation === implementation)
        .map(({ seqLen, tflops, ms }) => {
          if (tflops === undefined) return { x: seqLen, note: "out of memory" };
          const y = tflops * unit.perTeraflop;
          return { x: seqLen, y, note: `${formatFigure(y)} ${unit.name}, ${formatFigure(ms ?? 0)} ms` };
        }),
    })),
  }));
  return {
    title: "Throughput by sequence length",
    subtitle: [title, ...measurements.slice(0, 1).map(({ deviceName }) => deviceName)].join(" · "),
    footer: command,
    unit: unit.name,
    ...(ceiling ? { ceiling } : {}),
    panels,
  };
}

/** The longest length in a sentence: what a reader would look for first. */
function summaryOf(measurements: readonly Measurement[], peers: readonly string[], unit: RateUnit): string {
  const own = measurements.filter((one) => !peers.includes(one.implementation) && one.tflops !== undefined);
  const seqLen = Math.max(0, ...own.map((one) => one.seqLen));
  const parts = own
    .filter((one) => one.seqLen === seqLen)
    .map(({ pass, tflops = 0 }) => {
      const ratios = peers.flatMap((name) => {
        const peer = measurements.find((one) => {
          return one.implementation === name && one.pass === pass && one.seqLen === seqLen;
        });
        return peer?.tflops ? [`${(tflops / peer.tflops).toFixed(2)} times ${name}`] : [];
      });
      const rate = `${formatFigure(tflops * unit.perTeraflop)} ${unit.name} ${pass}`;
      return ratios.length > 0 ? `${rate} (${ratios.join(", ")})` : rate;
    });
  return parts.length > 0
    ? `At ${formatLength(seqLen)} tokens: ${parts.join(", ")}.`
    : "Nothing was measured.";
}
