// Processes of this machine that a launch has left: those of ranks, and of what started them, wherever they now hang.
import { readdirSync, readFileSync } from "node:fs";

/**
 * Those that were started with this variable of this value, which a launch gives to nothing else. A process group does
 * not tell: mpiexec's ranks lead their own, and are nobody's children once mpiexec has gone.
 */
export function remnants(name: string, value: string): number[] {
  const assignment = `${name}=${value}`;
  return readdirSync("/proc").flatMap((entry) => {
    if (!/^\d+$/.test(entry)) return [];
    try {
      const environment = readFileSync(`/proc/${entry}/environ`, "latin1");
      return environment.split("\0").includes(assignment) ? [Number(entry)] : [];
    } catch {
      // Another user's, or gone since.
      return [];
    }
  });
}

export function signalProcesses(processes: readonly number[], signal: NodeJS.Signals): void {
  for (const id of processes) {
    try {
      process.kill(id, signal);
    } catch {
      // Gone since.
    }
  }
}
