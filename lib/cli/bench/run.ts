// What every kind of bench begins and ends with.
import { type Device, info } from "../../index.ts";
import { isOfOneLaunch } from "../environment.ts";
import { type Output, RemoteFailure } from "../output.ts";
import { quoted } from "../shell.ts";
import type { World } from "../world.ts";
import { unlessAborted } from "./measure.ts";
import { PeerError } from "./peer-process.ts";
import type { CommonSettings, floatTypes } from "./settings.ts";

/** Where it writes, and what stops it. */
export interface Run {
  readonly world: World;
  readonly output: Output;
  readonly signal: AbortSignal;
}

const interrupted = 130;

/** What to compute in, where nobody says. */
export function defaultDtype(device: Device): (typeof floatTypes)[number] {
  const isNative = device.kind === "cuda" || info().cpu.instructionSet === "avx512bf16";
  return isNative ? "bfloat16" : "float32";
}

/** A machine without PyTorch still gets our own figures. `name` is what was asked for, and `start` starts it. */
export async function startPeer<Peer>(
  name: string | undefined,
  { world, output: { progress }, signal }: Run,
  start: (name: string) => Promise<Peer>,
): Promise<Peer | undefined> {
  if (name === undefined) return undefined;
  progress.show("waiting for PyTorch (Ctrl-C to stop)");
  try {
    return await unlessAborted(start(name), signal).finally(() => progress.clear());
  } catch (error) {
    if (!(error instanceof PeerError || error instanceof RemoteFailure)) throw error;
    if (world.rank === 0) process.stderr.write(`longseq bench: no peer: ${error.message}\n`);
    return undefined;
  }
}

/** Writes the report that was asked for, and ends the process where it was interrupted. */
export function finish(
  { output, signal }: Run,
  target?: CommonSettings["report"],
  render: (kind: NonNullable<typeof target>["kind"]) => string = () => "",
): void {
  const { report, stream } = output;
  if (signal.aborted) stream.write("\nInterrupted: this is what was measured.\n");
  if (target && report) {
    report.empty();
    report.write(render(target.kind));
    stream.write(`\nReport: ${target.path}\n`);
  }
  // The interrupted run is still on its way; waiting for it is not what Ctrl-C asked for.
  if (signal.aborted) process.exit(interrupted);
}

/** Of a bench that has nothing to show yet. */
export function endInterrupted({ output }: Run): never {
  output.progress.clear();
  output.stream.write("\nInterrupted before anything was measured.\n");
  process.exit(interrupted);
}

/** What to type to run this again, with the variables of ours that were set. */
export function commandLine({ world }: Run): string {
  const variables = Object.entries(process.env)
    .filter(([name]) => name.startsWith("LONGSEQ_") && !isOfOneLaunch(name))
    .map(([name, value = ""]) => `${name}=${quoted(value)}`);
  const launch = world.size > 1 ? [`npx longseq launch --ranks ${world.size} --`] : [];
  return [...variables, ...launch, "npx longseq bench", ...process.argv.slice(3).map(quoted)].join(" ");
}
