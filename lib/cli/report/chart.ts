// A line chart as SVG that stands alone: one panel a pass side by side, a shared scale, log2 across. It follows the
// reader's light or dark scheme, and brings its own background, since a page that embeds it as an image may not.
import { formatFigure, formatLength } from "../quantity.ts";
import { escapeMarkup } from "./markup.ts";

export interface Point {
  readonly x: number;
  /** Absent where memory ran out. */
  readonly y?: number;
  /** Shown when the pointer rests on the point. */
  readonly note: string;
}

export interface Series {
  readonly label: string;
  readonly points: readonly Point[];
}

export interface Chart {
  readonly title: string;
  readonly subtitle: string;
  readonly footer: string;
  readonly unit: string;
  /** A line across at what the machine can do at most. */
  readonly ceiling?: { readonly y: number; readonly label: string };
  /** Series of the same place in each panel are of one colour, and have one entry in the legend. */
  readonly panels: readonly { readonly title: string; readonly series: readonly Series[] }[];
}

const width = 860;
const margin = 28;
const plotTop = 138;
const plotHeight = 236;
const height = plotTop + plotHeight + 88;
const axisWidth = 44;
/** Right of the lines, for the last points' figures. */
const labelWidth = 46;
const gap = 14;

const style = `
  text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; fill: #1f2328; font-size: 12px }
  .card { fill: #ffffff; stroke: #d1d9e0 }
  .title { font-size: 18px; font-weight: 600 }
  .panel { font-size: 13px; font-weight: 600 }
  .soft { fill: #59636e }
  .command { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 11px }
  .grid { stroke: #e4e8ec }
  .axis { stroke: #8c959f }
  .ceiling { stroke: #8c959f; stroke-dasharray: 5 4 }
  .value { font-weight: 600; paint-order: stroke; stroke: #ffffff; stroke-width: 3px }
  .line { fill: none; stroke-width: 2.5; stroke-linejoin: round; stroke-linecap: round }
  .s0 { stroke: #0b62d6 } .s1 { stroke: #c4570b } .s2 { stroke: #0a7d57 } .s3 { stroke: #8a3fc0 } .s4 { stroke: #59636e } .s5 { stroke: #b3366b }
  .f0 { fill: #0b62d6 } .f1 { fill: #c4570b } .f2 { fill: #0a7d57 } .f3 { fill: #8a3fc0 } .f4 { fill: #59636e } .f5 { fill: #b3366b }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .soft { fill: #9198a1 } .card { fill: #0d1117; stroke: #3d444d }
    .grid { stroke: #232a33 } .axis, .ceiling { stroke: #6b747f } .value { stroke: #0d1117 }
    .s0 { stroke: #58a6ff } .s1 { stroke: #f0883e } .s2 { stroke: #3fb68b } .s3 { stroke: #bc8cff } .s4 { stroke: #9198a1 } .s5 { stroke: #f778ba }
    .f0 { fill: #58a6ff } .f1 { fill: #f0883e } .f2 { fill: #3fb68b } .f3 { fill: #bc8cff } .f4 { fill: #9198a1 } .f5 { fill: #f778ba }
  }`;
const colours = 6;

export function renderChart(chart: Chart): string {
  const all = chart.panels.flatMap(({ series }) => series.flatMap(({ points }) => points));
  const ticks = niceTicks(Math.max(chart.ceiling?.y ?? 0, ...all.map(({ y = 0 }) => y)));
  const span = (width - 2 * margin - (chart.panels.length - 1) * gap) / Math.max(1, chart.panels.length);
  const panels = chart.panels.map((panel, i) => {
    return renderPanel(chart, panel, new Frame(margin + i * (span + gap), span, all, ticks));
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img" aria-label="${escapeMarkup(`${chart.title}. ${chart.subtitle}`)}">
<style>${style}
</style>
<rect class="card" x="0.5" y="0.5" width="${width - 1}" height="${height - 1}" rx="8"/>
${label(margin, 38, chart.title, "title")}
${label(margin, 60, shortened(chart.subtitle, 126), "soft")}
${legend(chart)}
${panels.join("\n")}
${label(margin, height - 18, shortened(chart.footer, 118), "soft command")}
</svg>
`;
}

/** Where a panel's values are on the picture. */
class Frame {
  readonly left: number;
  readonly right: number;
  readonly lengths: readonly number[];
  readonly ticks: readonly number[];
  readonly #low: number;
  readonly #high: number;

  constructor(x: number, span: number, points: readonly Point[], ticks: readonly number[]) {
    this.left = x + axisWidth;
    this.right = x + span - labelWidth;
    this.ticks = ticks;
    this.lengths = [...new Set(points.map((point) => point.x))].sort((a, b) => a - b);
    this.#low = Math.log2(this.lengths[0] ?? 1);
    this.#high = Math.log2(this.lengths.at(-1) ?? 2);
  }

  x(length: number): number {
    // A single length stands in the middle.
    const share = this.#high === this.#low ? 0.5 : (Math.log2(length) - this.#low) / (this.#high - this.#low);
    return this.left + 10 + share * (this.right - this.left - 10);
  }

  y(value: number): number {
    return plotTop + plotHeight * (1 - value / (this.ticks.at(-1) ?? 1));
  }
}

function renderPanel(chart: Chart, panel: Chart["panels"][number], frame: Frame): string {
  const { left, right } = frame;
  const bottom = plotTop + plotHeight;
  const rows = frame.ticks.map((tick) => {
    const y = round(frame.y(tick));
    const line = `<line class="${tick === 0 ? "axis" : "grid"}" x1="${left}" x2="${right}" y1="${y}" y2="${y}"/>`;
    return `${line}${label(left - 8, y + 4, formatTick(tick), "soft", "end")}`;
  });
  const marks = thinned(frame).map((length) => {
    return label(round(frame.x(length)), bottom + 19, formatLength(length), "soft", "middle");
  });
  const ceiling = chart.ceiling ? renderCeiling(chart.ceiling, frame) : "";
  // The first series is ours: drawn last, on top.
  const lines = panel.series.map((series, i) => renderSeries(series, i % colours, frame)).reverse();
  return [
    label(left, plotTop - 16, panel.title, "panel"),
    label(right, plotTop - 16, chart.unit, "soft", "end"),
    ...rows,
    ...marks,
    label(round((left + right) / 2), bottom + 38, "sequence length (tokens)", "soft", "middle"),
    ceiling,
    ...lines,
    endLabels(panel.series, frame),
  ].join("\n");
}

function renderCeiling(ceiling: NonNullable<Chart["ceiling"]>, frame: Frame): string {
  const y = round(frame.y(ceiling.y));
  const line = `<line class="ceiling" x1="${frame.left}" x2="${frame.right}" y1="${y}" y2="${y}"/>`;
  return `${line}${label(frame.right, y - 6, ceiling.label, "soft", "end")}`;
}

function renderSeries({ label: name, points }: Series, colour: number, frame: Frame): string {
  const known = points.filter((point) => point.y !== undefined);
  const place = ({ x, y = 0 }: Point) => `${round(frame.x(x))} ${round(frame.y(y))}`;
  const path = known.length > 1 ? `<path class="line s${colour}" d="M${known.map(place).join("L")}"/>` : "";
  const dots = points.map(({ x, y, note }) => {
    const title = `<title>${escapeMarkup(`${name}, ${formatLength(x)} tokens: ${note}`)}</title>`;
    if (y === undefined) {
      const at = { x: round(frame.x(x)), y: round(frame.y(0)) - 6 };
      return `<g>${title}<text class="f${colour}" x="${at.x}" y="${at.y}" text-anchor="middle">no memory</text></g>`;
    }
    return `<circle class="f${colour}" cx="${round(frame.x(x))}" cy="${round(frame.y(y))}" r="4">${title}</circle>`;
  });
  return [path, ...dots].join("");
}

/** The last figure of each series beside its end, moved apart where they would touch. */
function endLabels(series: readonly Series[], frame: Frame): string {
  const ends = series.flatMap(({ points }, i) => {
    const last = points.findLast((point) => point.y !== undefined);
    if (last?.y === undefined) return [];
    return [
      { x: frame.x(last.x) + 9, y: frame.y(last.y) + 4, text: formatFigure(last.y), colour: i % colours },
    ];
  });
  ends.sort((a, b) => a.y - b.y);
  let above = Number.NEGATIVE_INFINITY;
  const placed = ends.map(({ x, y, text, colour }) => {
    above = Math.max(y, above + 14);
    return label(round(x), round(above), text, `value f${colour}`);
  });
  return placed.join("");
}

function legend(chart: Chart): string {
  const names = chart.panels[0]?.series.map(({ label: name }) => name) ?? [];
  let x = margin;
  const entries = names.map((name, i) => {
    const colour = i % colours;
    const at = x;
    // Six pixels and a half a letter: no text can be measured here, and this is enough for any usual font.
    x += 34 + 6.5 * name.length + 20;
    return `<path class="line s${colour}" d="M${at} 84h24"/><circle class="f${colour}" cx="${at + 12}" cy="84" r="4"/>${label(at + 32, 88, name, "")}`;
  });
  return entries.join("\n");
}

function label(x: number, y: number, text: string, kind: string, anchor?: "middle" | "end"): string {
  return `<text${kind ? ` class="${kind}"` : ""} x="${x}" y="${y}"${anchor ? ` text-anchor="${anchor}"` : ""}>${escapeMarkup(text)}</text>`;
}

/** Every length has a mark where they fit, else every second, and so on, counted from the longest. */
function thinned({ lengths, left, right }: Frame): number[] {
  const step = Math.ceil((36 * lengths.length) / (right - left));
  return lengths.filter((_, i) => (lengths.length - 1 - i) % Math.max(1, step) === 0);
}

/** From 0 to a round number at or above the largest value, in four to six steps. */
export function niceTicks(largest: number): number[] {
  const rough = (largest || 1) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough) ?? 10);
  return Array.from({ length: Math.ceil((largest || 1) / step - 1e-9) + 1 }, (_, i) => i * step);
}

function formatTick(value: number): string {
  return value.toLocaleString("en-US", { maximumFractionDigits: 2 });
}

/** To what fits across the picture in the usual fonts. */
function shortened(text: string, letters: number): string {
  return text.length > letters ? `${text.slice(0, letters - 1)}…` : text;
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}
