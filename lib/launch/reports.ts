// What the programs that start ranks say of them, each in its own way.
import { constants } from "node:os";
import type { Starter } from "./starter.ts";

/** How a rank ended, in words, and the exit code that stands for it. */
export interface Death {
  /** undefined: of the starter itself. */
  readonly rank: number | undefined;
  readonly host: string;
  readonly how: string;
  readonly code: number;
}

/** Before each line, as each starter's option for labels has it. */
const labels: Readonly<Record<Exclude<Starter, "local">, RegExp>> = {
  // "[1,3]<stdout>:line"; from version 5 on "[prterun-host-41@1,3]<stdout>: line".
  "Open MPI": /^\[(?:[^\]]*@)?\d+,(\d+)\]<std(?:out|err|diag)>:/,
  MPICH: /^\[(\d+)\] /,
  PALS: /^[\w.-]+ (\d+): /,
  srun: /^ *(\d+): /,
};

/** A starter's line with the label "[3] ", or with none. Lines of the starter itself have none. */
export function relabelled(line: string, starter: Exclude<Starter, "local">): string {
  return line.replace(labels[starter], (_, rank: string) => `[${rank}] `);
}

/** `isOurs` where the line is for the launcher alone. */
export function deathIn(line: string): (Death & { isOurs: boolean }) | undefined {
  const ours = /^(?:\[\d+\] )?longseq-rank-ended (\d+) (\d+) (\S*)$/.exec(line);
  if (ours) return { ...ended(ours[1], ours[3], Number(ours[2])), isOurs: true };
  const srun =
    /^srun: error: ([\w.-]+): tasks? (\d+)[-,\d]*: (?:Exited with exit code (\d+)|(\w[\w ]*))/.exec(line);
  if (srun) {
    const [, host, rank, code, words] = srun;
    if (code !== undefined) return { ...ended(rank, host, Number(code)), isOurs: false };
    const number =
      words === "Segmentation fault" ? 11 : words === "Aborted" ? 6 : words === "Terminated" ? 15 : 9;
    return { ...ended(rank, host, 128 + number), isOurs: false };
  }
  const pals = /^([\w.-]+): rank (\d+) (?:exited with code (\d+)|died from signal (\d+))/.exec(line);
  if (!pals) return undefined;
  const [, host, rank, code, signal] = pals;
  return { ...ended(rank, host, code === undefined ? 128 + Number(signal) : Number(code)), isOurs: false };
}

function ended(rank: string | undefined, host: string | undefined, code: number): Death {
  // A shell's way to say that it was a signal.
  const name = Object.entries(constants.signals).find(([, number]) => number === code - 128)?.[0];
  const how = `ended with ${name ?? `exit code ${code}`}`;
  return { rank: Number(rank), host: host || "an unknown host", how, code };
}
