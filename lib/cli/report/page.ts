// The report as one HTML file that needs nothing else: chart, table, machine, command and the data themselves.
import { escapeMarkup } from "./markup.ts";
import type { Contents, Rows } from "./report.ts";

const style = `
  :root { color-scheme: light dark; --text: #1f2328; --soft: #59636e; --rule: #d1d9e0; --back: #f6f8fa; --card: #ffffff }
  @media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --soft: #9198a1; --rule: #3d444d; --back: #010409; --card: #0d1117 } }
  body { margin: 0; background: var(--back); color: var(--text); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
  main { max-width: 860px; margin: 0 auto; padding: 40px 20px 60px }
  h1 { font-size: 26px; line-height: 1.2; margin: 0 0 6px } h2 { font-size: 17px; margin: 34px 0 10px }
  .soft { color: var(--soft); margin: 0 } .summary { font-size: 17px; margin: 16px 0 24px }
  svg { display: block; width: 100%; height: auto }
  .scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--rule); border-radius: 8px }
  table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
  th, td { padding: 7px 14px; text-align: right; white-space: nowrap; border-top: 1px solid var(--rule) }
  thead th { border-top: 0; color: var(--soft); font-weight: 600; font-size: 13px }
  .left { text-align: left } .facts td { white-space: normal } .facts th { font-weight: 600 }
  .facts tr:first-child > * { border-top: 0 }
  pre { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 12px 14px; overflow-x: auto; font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; margin: 0 }
  details pre { margin-top: 10px; max-height: 320px } summary { cursor: pointer }`;

export function renderPage({ heading, title, summary, chart, table, published, report }: Contents): string {
  const facts = report.facts.map(({ name, value }) => {
    return `<tr><th scope="row" class="left">${escapeMarkup(name)}</th><td class="left">${escapeMarkup(value)}</td></tr>`;
  });
  const lines = report.measurements.map((measurement) => JSON.stringify(measurement));
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escapeMarkup(`longseq bench: ${title}`)}</title>
<style>${style}
</style>
</head>
<body>
<main>
<h1>${escapeMarkup(heading)}</h1>
<p class="soft">${escapeMarkup(title)} · ${escapeMarkup(formatDate(report.date))}</p>
<p class="summary">${escapeMarkup(summary)}</p>
${chart}
<h2>Measurements</h2>
${renderRows(table)}
${published ? `<h2>${escapeMarkup(published.title)}</h2>\n${renderRows(published)}\n` : ""}<h2>Machine</h2>
<div class="scroll"><table class="facts"><tbody>
${facts.join("\n")}
</tbody></table></div>
<h2>Command</h2>
<pre>${escapeMarkup(report.command)}</pre>
<h2>Data</h2>
<details><summary>${lines.length} JSON lines, as <code>--json</code> writes them</summary>
<pre>${escapeMarkup(lines.join("\n"))}</pre></details>
</main>
</body>
</html>
`;
}

function renderRows({ columns, rows, note }: Rows): string {
  const side = (i: number) => (columns[i] === "pass" ? ' class="left"' : "");
  const head = columns.map((name, i) => `<th scope="col"${side(i)}>${escapeMarkup(name)}</th>`).join("");
  const body = rows.map(
    (cells) => `<tr>${cells.map((cell, i) => `<td${side(i)}>${escapeMarkup(cell)}</td>`).join("")}</tr>`,
  );
  return `<div class="scroll"><table>
<thead><tr>${head}</tr></thead>
<tbody>
${body.join("\n")}
</tbody>
</table></div>
<p class="soft" style="margin-top: 8px">${escapeMarkup(note)}</p>`;
}

export function formatDate(date: Date): string {
  return `${date.toISOString().slice(0, 16).replace("T", " ")} UTC`;
}
