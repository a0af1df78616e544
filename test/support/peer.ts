// Stands for Python with PyTorch: speaks bench/peer_torch.py's protocol, and writes down what it was asked.
import { chmod, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { jsonLines } from "./command-line.ts";

interface StandIn {
  /** For LONGSEQ_PYTHON. */
  readonly python: string;
  readonly asked: () => Promise<Record<string, unknown>[]>;
}

/** `answer` is the text of a function of a request, of this process's number, and of what it keeps between requests. */
async function standIn(folder: string, answer: string): Promise<StandIn> {
  const log = join(folder, "asked.jsonl");
  const python = join(folder, "python.cjs");
  await writeFile(
    python,
    `#!${process.execPath}
const { appendFileSync } = require("node:fs");
const kept = {};
const answer = ${answer};
require("node:readline").createInterface(process.stdin).on("line", (line) => {
  const request = JSON.parse(line);
  appendFileSync(${JSON.stringify(log)}, JSON.stringify({ ...request, pid: process.pid }) + "\\n");
  const answered = answer(request, kept);
  if (answered) console.log(JSON.stringify(answered));
});
`,
  );
  await chmod(python, 0o755);
  const asked = async () => jsonLines(await readFile(log, "utf8"));
  return { python, asked };
}

/** Its runs take a millisecond, or more memory than there is where the sequence is longer than 100. */
export async function standInPeer(folder: string): Promise<StandIn> {
  return await standIn(
    folder,
    `({ op, seqLen }, kept) => {
  kept.seqLen = seqLen ?? kept.seqLen;
  const answers = {
    hello: { torch: "9.9", implementations: ["torch-cpu"] },
    run: kept.seqLen > 100 ? { error: "too much", oom: true } : { ms: 1 },
    runMany: { ms: [1, 1] },
    peak: { bytes: 4096 },
  };
  return answers[op] ?? {};
}`,
  );
}

/**
 * Of ranks: rank r's runs take r + 1 milliseconds and 1,024 bytes as often. torch-cudnn has no memory on rank 1 for 128
 * tokens, while rank 0 waits for it there, and no kernel on rank 0 for 256.
 */
export async function standInRankedPeer(folder: string): Promise<StandIn> {
  return await standIn(
    folder,
    `({ op, rank, implementation, seqLen, count }, kept) => {
  kept.rank = rank ?? kept.rank;
  if (op === "prepare" && implementation === "torch-cudnn") {
    if (seqLen === 128) return kept.rank === 1 ? { error: "too much", oom: true } : undefined;
    if (seqLen === 256 && kept.rank === 0) return { error: "no kernel", unsupported: true };
  }
  const answers = {
    hello: { torch: "9.9", implementations: ["torch-flash", "torch-cudnn"] },
    listen: { port: 4321 },
    run: { ms: kept.rank + 1 },
    runMany: { ms: Array(count).fill(kept.rank + 1) },
    peak: { bytes: 1024 * (kept.rank + 1) },
  };
  return answers[op] ?? {};
}`,
  );
}
