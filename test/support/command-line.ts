// Runs the built command line as a user would.
import { spawn } from "node:child_process";
import { resolve } from "node:path";

export interface Outcome {
  code: number | null;
  stdout: string;
  stderr: string;
}

export const entry = resolve("dist/cli/index.js");

export function longseq(args: readonly string[], environment: NodeJS.ProcessEnv = {}): Promise<Outcome> {
  // Without tap's own loaders, which a child would inherit by NODE_OPTIONS.
  const env = { ...process.env, NODE_OPTIONS: "", ...environment };
  const child = spawn(process.execPath, [entry, ...args], { env, stdio: ["ignore", "pipe", "pipe"] });
  let stdout = "";
  let stderr = "";
  child.stdout.on("data", (chunk: Buffer) => {
    stdout += chunk;
  });
  child.stderr.on("data", (chunk: Buffer) => {
    stderr += chunk;
  });
  return new Promise((done) => child.once("close", (code) => done({ code, stdout, stderr })));
}

export function jsonLines<T = Record<string, unknown>>(text: string): T[] {
  return text
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as T);
}
