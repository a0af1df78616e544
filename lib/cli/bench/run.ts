// What every kind of bench begins and ends with.
import { writeFile } from "node:fs/promises";
import { type Device, info } from "../../index.ts";
import type { JsonLines, Progress } from "../output.ts";
import { PeerError, TorchPeer } from "./peer.ts";
import type { CommonSettings, floatTypes } from "./settings.ts";

/** Where it writes, and what stops it. */
export interface Run {
  readonly json: JsonLines | undefined;
  readonly stream: NodeJS.WriteStream;
  readonly progress: Progress;
  readonly signal: AbortSignal;
}

const interrupted = 130;

/** What to compute in, where nobody says. */
export function defaultDtype(device: Device): (typeof floatTypes)[number] {
  const isNative = device.kind === "cuda" || info().cpu.instructionSet === "avx512bf16";
  return isNative ? "bfloat16" : "float32";
}

/** A machine without PyTorch still gets our own figures. */
export async function startPeer(
  device: Device,
  problem: { what: string; dtype: string; masked: boolean },
): Promise<TorchPeer | undefined> {
  try {
    return await TorchPeer.start(device.name, info().cpu.threads, problem);
  } catch (error) {
    if (!(error instanceof PeerError)) throw error;
    process.stderr.write(`longseq bench: no peer: ${error.message}\n`);
    return undefined;
  }
}

/** Writes the report that was asked for, and ends the process where it was interrupted. */
export async function finish(
  { stream, signal }: Run,
  target: CommonSettings["report"],
  render: (kind: NonNullable<typeof target>["kind"]) => string,
): Promise<void> {
  if (signal.aborted) stream.write("\nInterrupted: this is what was measured.\n");
  if (target) {
    await writeFile(target.path, render(target.kind));
    stream.write(`\nReport: ${target.path}\n`);
  }
  // The interrupted run is still on its way; waiting for it is not what Ctrl-C asked for.
  if (signal.aborted) process.exit(interrupted);
}

/** What to type to run this again, with the variables of ours that were set. */
export function commandLine(): string {
  const quote = (word: string) => {
    return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
  };
  const variables = Object.entries(process.env)
    .filter(([name]) => name.startsWith("LONGSEQ_"))
    .map(([name, value = ""]) => `${name}=${quote(value)}`);
  return [...variables, "npx longseq bench", ...process.argv.slice(3).map(quote)].join(" ");
}
