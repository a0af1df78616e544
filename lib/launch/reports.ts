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
  const [, host, rank, code, words] = srun.exec(line) ?? pals.exec(line) ?? [];
  if (rank === undefined) return undefined;
  const death = ended(rank, host, code === undefined ? 128 + signalNumber(words ?? "") : Number(code));
  return death.code === 128 + constants.signals.SIGTERM ? undefined : { ...death, isOurs: false };
}

const srun = /^srun: error: ([\w.-]+): tasks? (\d+)[-,\d]*: (?:Exited with exit code (\d+)|([A-Z][a-z]+.*))/;
const pals = /^([\w.-]+): rank (\d+) (?:exited with code ([1-9]\d*)|died from signal (\d+))/;

/** "9", or as strsignal has it. */
function signalNumber(words: string): number {
  const { SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGKILL, SIGSEGV, SIGTERM } = constants.signals;
  const byWord = {
    Aborted: SIGABRT,
    Bus: SIGBUS,
    Floating: SIGFPE,
    Illegal: SIGILL,
    Segmentation: SIGSEGV,
    Terminated: SIGTERM,
  };
  const [first = ""] = words.split(" ");
  if (/^\d+$/.test(first)) return Number(first);
  return Object.entries(byWord).find(([word]) => word === first)?.[1] ?? SIGKILL;
}

function ended(rank: string | undefined, host: string | undefined, code: number): Death {
  // A shell's way to say that it was a signal.
  const name = Object.entries(constants.signals).find(([, number]) => number === code - 128)?.[0];
  const how = `ended with ${name ?? `exit code ${code}`}`;
  return { rank: Number(rank), host: host || "an unknown host", how, code };
}
