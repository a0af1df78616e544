import t from "tap";
import type { Measurement } from "../../lib/cli/bench/sweep.ts";
import { niceTicks, renderChart } from "../../lib/cli/report/chart.ts";
import { type Report, renderReport } from "../../lib/cli/report/report.ts";

function measurement(changes: Partial<Measurement>): Measurement {
  return {
    what: "attention",
    pass: "forward",
    implementation: "cpu",
    device: "cpu",
    deviceName: "Processor <1> & 2",
    dtype: "float32",
    batch: 1,
    heads: 8,
    kvHeads: 8,
    headDim: 64,
    causal: true,
    mask: "none",
    seqLen: 1024,
    ...changes,
  };
}

const figures = { ms: 2, msMin: 1.9, tokensPerSecond: 512000, peakBytes: 2 ** 20, runs: 5 };
const report: Report = {
  measurements: [
    measurement({ ...figures, tflops: 0.3, peakShare: 0.75 }),
    measurement({ ...figures, tflops: 0.1, implementation: "torch-cpu" }),
    measurement({ ...figures, tflops: 0.2, pass: "backward" }),
    measurement({ ...figures, tflops: 0.1, pass: "backward", implementation: "torch-cpu" }),
    measurement({ ...figures, tflops: 0.32, seqLen: 128000 }),
    measurement({ oom: true, seqLen: 128000, implementation: "torch-cpu" }),
  ],
  facts: [{ name: "device", value: "Processor <1> | 2" }],
  command: "npx longseq bench --json '<x>'",
  date: new Date("2026-01-02T03:04:05Z"),
};

t.test("the chart is well-formed, self-contained and follows the reader's scheme", async (t) => {
  const svg = renderReport(".svg", report);
  t.match(svg, /^<svg xmlns="http:\/\/www.w3.org\/2000\/svg" viewBox=/);
  t.match(svg, "prefers-color-scheme: dark");
  t.notMatch(svg.replace("http://www.w3.org/2000/svg", ""), /http|url\(|<script|href/);
  t.equal(svg.match(/<circle class="f0"[^>]*r="4"><title>/g)?.length, 3, "a point a measurement of ours");
  t.match(svg, "no memory");
  t.match(svg, "multiply-add peak");
  t.match(svg, "Processor &lt;1&gt; &amp; 2");
  t.notMatch(svg, "NaN");
  t.same(unbalanced(svg), []);
});

t.test("the page holds chart, table, machine, command, date and data", async (t) => {
  const html = renderReport(".html", report);
  t.match(html, "<!doctype html>");
  t.match(html, "<svg ");
  t.match(html, "3.00x");
  t.match(html, "At 128,000 tokens: 320 GFLOP/s forward.");
  t.match(html, "Processor &lt;1&gt; | 2");
  t.match(html, "npx longseq bench --json &#39;&lt;x&gt;&#39;");
  t.match(html, "2026-01-02 03:04 UTC");
  t.match(html, "&quot;oom&quot;:true");
  t.notMatch(html, "<x>");
});

t.test("Markdown keeps its table whole", async (t) => {
  const text = renderReport(".md", report);
  const rows = text.split("\n").filter((line) => line.startsWith("| ") && line.includes("ward"));
  t.equal(rows.length, 3);
  t.ok(rows.every((row) => row.split("|").length === 11));
  t.match(text, "Processor \\<1\\> \\| 2");
});

t.test("nothing measured is a report too", async (t) => {
  for (const kind of [".svg", ".html", ".md"] as const) {
    const text = renderReport(kind, { ...report, measurements: [] });
    t.match(text, "nothing was measured");
    t.notMatch(text, /NaN|Infinity|undefined/);
  }
});

t.test("axes end on round numbers at or above the largest value", async (t) => {
  t.same(niceTicks(310), [0, 100, 200, 300, 400]);
  t.same(niceTicks(1), [0, 0.2, 0.4, 0.6000000000000001, 0.8, 1]);
  for (const largest of [0, 0.003, 7, 99.9, 100, 12345]) {
    const ticks = niceTicks(largest);
    t.ok(
      (ticks.at(-1) ?? 0) >= largest - 1e-9 && ticks.length >= 4 && ticks.length <= 7,
      `${largest}: ${ticks}`,
    );
  }
});

t.test("labels at the ends of near lines do not touch", async (t) => {
  const series = (label: string, y: number) => ({ label, points: [{ x: 1024, y, note: "" }] });
  const svg = renderChart({
    title: "",
    subtitle: "",
    footer: "",
    unit: "",
    panels: [{ title: "", series: [series("a", 100), series("b", 101), series("c", 102)] }],
  });
  const heights = [...svg.matchAll(/class="value f\d" x="[\d.]+" y="([\d.]+)"/g)].map(([, y]) => Number(y));
  t.equal(heights.length, 3);
  const sorted = heights.sort((a, b) => a - b);
  t.ok(sorted.every((y, i) => i === 0 || y - (sorted[i - 1] ?? 0) >= 13.9));
});

/** Tags that are opened and not closed, or closed and not opened. */
function unbalanced(xml: string): string[] {
  const open: string[] = [];
  for (const [, closing, name = "", selfClosing] of xml.matchAll(/<(\/?)([a-z]+)[^>]*?(\/?)>/g)) {
    if (selfClosing) continue;
    if (!closing) open.push(name);
    else if (open.pop() !== name) return [`</${name}>`];
  }
  return open;
}
