// The report as Markdown: the table, the machine and the command.
import { formatDate, method } from "./page.ts";
import type { Contents } from "./report.ts";

export function renderMarkdown({ title, summary, columns, rows, report }: Contents): string {
  const rule = columns.map((name) => (name === "pass" ? "---" : "--:"));
  const table = [columns, rule, ...rows].map((cells) => row(cells));
  const facts = [["", ""], ["---", "---"], ...report.facts.map(({ name, value }) => [name, value])].map(
    (cells) => {
      return row(cells);
    },
  );
  return `# Throughput by sequence length

${text(title)} · ${formatDate(report.date)}

${text(summary)}

${table.join("\n")}

${method}

${facts.join("\n")}

\`\`\`sh
${report.command}
\`\`\`
`;
}

function row(cells: readonly string[]): string {
  return `| ${cells.map(text).join(" | ")} |`;
}

/** Nothing that a name may hold opens a cell, a tag or emphasis. */
function text(value: string): string {
  return value.replace(/[\\|<>*_`[\]]/g, "\\$&");
}
