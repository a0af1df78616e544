// Times contenders against each other: one run each, turn by turn, so that a machine that slows down or is shared
// slows all of them alike.
import { median } from "../quantity.ts";
import type { Contender } from "./contender.ts";

export interface Timing {
  readonly implementation: string;
  /** Absent where memory ran out. */
  readonly figures?: { readonly ms: number; readonly msMin: number; readonly runs: number };
  readonly peakBytes?: number;
}

export interface Effort {
  /** Timed runs go on for this long together, */
  readonly seconds: number;
  /** but no more often than this each. */
  readonly mostRuns: number;
}

const fewestRuns = 3;
/** Runs that take this many times the effort's seconds are not repeated up to the fewest. */
const patience = 4;

/** How long `measure` will take for contenders of these times a run. */
export function predictSeconds(runSeconds: readonly number[], effort: Effort): number {
  const round = runSeconds.reduce((sum, seconds) => sum + seconds, 0);
  const enough = Math.max(fewestRuns, Math.ceil(effort.seconds / round));
  const rounds = Math.min(enough, Math.ceil((patience * effort.seconds) / round));
  // Preparing the backward pass runs the forward pass: with the warm-up less than two rounds.
  return (2 + rounds) * round;
}

/**
 * Warms up, then runs in turn. An abort ends at once, with the runs that were done. `onRound` hears how many rounds
 * are done, -1 before the warm-up.
 */
export async function measure(
  contenders: readonly Contender[],
  effort: Effort,
  signal: AbortSignal,
  onRound: (round: number) => void,
): Promise<Timing[]> {
  const samples = new Map<Contender, number[]>();
  const peaks = new Map<Contender, number>();
  const outOfMemory = new Set<Contender>();
  /** False once it has run out of memory, which is a result and not an error. */
  const attempt = async (contender: Contender, step: () => Promise<void>) => {
    if (outOfMemory.has(contender)) return;
    try {
      await unlessAborted(step(), signal);
    } catch (error) {
      if ((error as { code?: unknown }).code !== "ERR_OUT_OF_MEMORY") throw error;
      outOfMemory.add(contender);
      await contender.dispose();
    }
  };
  try {
    onRound(-1);
    for (const contender of contenders) {
      await attempt(contender, async () => {
        await contender.prepare();
        await contender.run();
      });
    }
    onRound(0);
    const start = performance.now();
    for (let round = 1; outOfMemory.size < contenders.length && !signal.aborted; round++) {
      for (const contender of contenders) {
        await attempt(contender, async () => {
          if (round === 1) await contender.resetPeak();
          const ms = await contender.run();
          samples.set(contender, [...(samples.get(contender) ?? []), ms]);
          if (round > 1) return;
          const bytes = await contender.peakBytes();
          if (bytes !== undefined) peaks.set(contender, bytes);
        });
      }
      onRound(round);
      const elapsed = (performance.now() - start) / 1000;
      const isLong = round >= fewestRuns ? elapsed >= effort.seconds : elapsed >= patience * effort.seconds;
      if (isLong || round >= effort.mostRuns) break;
    }
  } catch (error) {
    if (!(error instanceof Aborted)) throw error;
  }
  // After an abort a run is still under way, and the process about to end: nothing to wait for.
  for (const contender of contenders) {
    if (!outOfMemory.has(contender) && !signal.aborted) await contender.dispose();
  }
  return contenders.flatMap((contender) => {
    const { implementation } = contender;
    if (outOfMemory.has(contender)) return [{ implementation }];
    const ms = samples.get(contender);
    if (!ms) return [];
    const peakBytes = peaks.get(contender);
    const figures = { ms: median(ms), msMin: Math.min(...ms), runs: ms.length };
    return [{ implementation, figures, ...(peakBytes === undefined ? {} : { peakBytes }) }];
  });
}

class Aborted extends Error {}

async function unlessAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  if (signal.aborted) throw new Aborted();
  let onAbort = () => {};
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => reject(new Aborted());
    signal.addEventListener("abort", onAbort, { once: true });
  });
  try {
    return await Promise.race([work, aborted]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
