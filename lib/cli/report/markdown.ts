// The report as Markdown: the table, the machine and the command.
import { formatDate } from "./page.ts";
import type { Contents, Rows } from "./report.ts";

export function renderMarkdown({ title, summary, table, published, report }: Contents): string {
  const facts = [["", ""], ["---", "---"], ...report.facts.map(({ name, value }) => [name, value])].map(
    (cells) => {
      return row(cells);
    },
  );
  return `# Throughput by sequence length

${text(title)} · ${formatDate(report.date)}

${text(summary)}

${renderRows(table)}
${published ? `\n## ${text(published.title)}\n\n${renderRows(published)}\n` : ""}
${facts.join("\n")}

\`\`\`sh
${report.command}
\`\`\`
`;
}

function renderRows({ columns, rows, note }: Rows): string {
  const rule = columns.map((name) => (name === "pass" ? "---" : "--:"));
  return `${[columns, rule, ...rows].map(row).join("\n")}\n\n${note}`;
}

function row(cells: readonly string[]): string {
  return `| ${cells.map(text).join(" | ")} |`;
}

/** Nothing that a name may hold opens a cell, a tag or emphasis. */
function text(value: string): string {
  return value.replace(/[\\|<>*_`[\]]/g, "\\$&");
}
