// Runs the built command line as a user would.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { resolve } from "node:path";
import { type Ended, node } from "./child.ts";

export const entry = resolve("dist/cli/index.js");

export function longseq(args: readonly string[], environment: NodeJS.ProcessEnv = {}): Promise<Ended> {
  return node([entry, ...args], environment);
}

/** Ctrl-C, a moment after it has printed this. */
export async function interrupted(
  args: readonly string[],
  printed: RegExp,
): Promise<{ code: number | null; signal: NodeJS.Signals | null; stdout: string; ms: number }> {
  const env = { ...process.env, NODE_OPTIONS: "" };
  const child = spawn(process.execPath, [entry, ...args], { env, stdio: ["ignore", "pipe", "inherit"] });
  let stdout = "";
  let isInterrupted = false;
  child.stdout.on("data", (chunk: Buffer) => {
    stdout += chunk;
    if (isInterrupted || !printed.test(stdout)) return;
    isInterrupted = true; // once: a second one ends the process at once
    setTimeout(() => child.kill("SIGINT"), 300);
  });
  const start = performance.now();
  const [code, signal] = (await once(child, "close")) as [number | null, NodeJS.Signals | null];
  return { code, signal, stdout, ms: performance.now() - start };
}

export function jsonLines<T = Record<string, unknown>>(text: string): T[] {
  return text
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as T);
}
