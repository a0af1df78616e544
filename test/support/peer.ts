// Stands for Python with PyTorch: speaks bench/peer_torch.py's protocol, and writes down what it was asked.
import { chmod, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { jsonLines } from "./command-line.ts";

interface StandIn {
  /** For LONGSEQ_PYTHON. */
  readonly python: string;
  readonly asked: () => Promise<Record<string, unknown>[]>;
}

/** Its runs take a millisecond, or more memory than there is where the sequence is longer than 100. */
export async function standInPeer(folder: string): Promise<StandIn> {
  const log = join(folder, "asked.jsonl");
  const python = join(folder, "python.cjs");
  await writeFile(
    python,
    `#!${process.execPath}
const { appendFileSync } = require("node:fs");
let size = 0;
require("node:readline").createInterface(process.stdin).on("line", (line) => {
  const request = JSON.parse(line);
  appendFileSync(${JSON.stringify(log)}, line + "\\n");
  size = request.seqLen ?? size;
  const answers = {
    hello: { torch: "9.9", implementations: ["torch-cpu"] },
    run: size > 100 ? { error: "too much", oom: true } : { ms: 1 },
    runMany: { ms: [1, 1] },
    peak: { bytes: 4096 },
  };
  console.log(JSON.stringify(answers[request.op] ?? {}));
});
`,
  );
  await chmod(python, 0o755);
  const asked = async () => jsonLines(await readFile(log, "utf8"));
  return { python, asked };
}
