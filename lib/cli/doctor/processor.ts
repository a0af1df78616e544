// How many threads this process may use, and why.
import { readFileSync } from "node:fs";
import os from "node:os";

/** Cores' worth of time that the cgroup grants; undefined where it sets no limit. */
export function cgroupCores(): number | undefined {
  const text = firstReadable(["/sys/fs/cgroup/cpu.max"]);
  if (text !== undefined) return quota(text);
  const v1 = ["cpu.cfs_quota_us", "cpu.cfs_period_us"].map((name) =>
    firstReadable([`/sys/fs/cgroup/cpu/${name}`]),
  );
  return quota(v1.join(" "));
}

/** "150000 100000" is one and a half cores; "max" and negative quotas are no limit. */
export function quota(text: string): number | undefined {
  const [time = Number.NaN, period = Number.NaN] = text.trim().split(/\s+/).map(Number);
  return time > 0 && period > 0 ? time / period : undefined;
}

/** Bytes that the cgroup grants; undefined where it sets no limit. */
export function cgroupMemory(): number | undefined {
  const text = firstReadable(["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]);
  const bytes = Number(text ?? Number.NaN);
  // cgroup v1 writes "no limit" as a number near 2^63.
  return bytes > 0 && bytes < os.totalmem() ? bytes : undefined;
}

export function threadsReason(): string {
  const asked = process.env.LONGSEQ_THREADS;
  if (asked) return `LONGSEQ_THREADS=${asked}`;
  const cores = os.cpus().length;
  const usable = os.availableParallelism();
  const granted = cgroupCores();
  const affinity = usable < cores ? `${usable} of ${cores} cores by affinity` : `${cores} cores`;
  return granted === undefined ? affinity : `${affinity}, the cgroup grants ${granted.toFixed(1)}`;
}

function firstReadable(paths: readonly string[]): string | undefined {
  for (const path of paths) {
    try {
      return readFileSync(path, "utf8");
    } catch {
      // Another version of cgroups, or none.
    }
  }
  return undefined;
}
