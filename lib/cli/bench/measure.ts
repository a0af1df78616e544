// Times contenders against each other: one run each, turn by turn, so that a machine that slows down or is shared
// slows all of them alike; in a new order each round, so that none always finds it as hot as the same other left it.
import { createHash } from "node:crypto";
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
  /** but no more often than this each, */
  readonly mostRuns: number;
  /** by this clock, in milliseconds. */
  readonly now: () => Promise<number>;
}

const fewestRuns = 3;
/** Runs that are timed together fill this, so that their waiting counts for little: */
const togetherMs = 20;
const mostTogether = 50;
/** Who finds an empty queue waits for the calls, all ranks' where they share a thread. So runs that are shorter than this
 * have another one before them, which is not counted. */
const leadMs = 200;
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
 * Warms up, then runs in turn; ours is the first of the contenders. An abort ends at once, with the runs that were
 * done. `onRound` hears how many rounds are done, -1 before the warm-up.
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
  const unable = new Set<Contender>();
  const isOut = (contender: Contender) => outOfMemory.has(contender) || unable.has(contender);
  /** Having no memory, or no kernel for the problem, is a result and not an error. */
  const attempt = async (contender: Contender, step: () => Promise<void>) => {
    if (isOut(contender)) return;
    try {
      await unlessAborted(step(), signal);
    } catch (error) {
      const { code } = error as { code?: unknown };
      if (code !== "ERR_OUT_OF_MEMORY" && code !== unsupported) throw error;
      (code === unsupported ? unable : outOfMemory).add(contender);
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
    const start = await unlessAborted(effort.now(), signal);
    let now = start;
    for (let round = 1; !contenders.every(isOut) && !signal.aborted; round++) {
      for (const contender of shuffled(contenders, now)) {
        await attempt(contender, async () => {
          const before = samples.get(contender) ?? [];
          if (round > 1 && contender.runMany) {
            samples.set(contender, [...before, ...(await timesTogether(contender.runMany, before))]);
            return;
          }
          if (round === 1) await contender.resetPeak();
          const ms = await contender.run();
          if (round === 1) {
            const bytes = await contender.peakBytes();
            if (bytes !== undefined) peaks.set(contender, bytes);
          }
          const timed = contender.runMany ? await timesTogether(contender.runMany, [ms]) : [ms];
          samples.set(contender, [...before, ...timed]);
        });
      }
      onRound(round);
      now = await unlessAborted(effort.now(), signal);
      const elapsed = (now - start) / 1000;
      const isLong = round >= fewestRuns ? elapsed >= effort.seconds : elapsed >= patience * effort.seconds;
      const most = Math.max(...[...samples.values()].map((times) => times.length));
      if (isLong || most >= effort.mostRuns) break;
    }
  } catch (error) {
    if (error !== signal.reason) throw error;
  }
  // After an abort a run is still under way, and the process about to end: nothing to wait for.
  for (const contender of contenders) {
    if (!isOut(contender) && !signal.aborted) await contender.dispose();
  }
  const [own] = contenders;
  // Interrupted too early: others' figures alone would be taken for ours.
  if (own && !isOut(own) && !samples.has(own)) return [];
  return contenders.flatMap((contender) => {
    const { implementation } = contender;
    if (unable.has(contender)) return [];
    if (outOfMemory.has(contender)) return [{ implementation }];
    const ms = samples.get(contender);
    if (!ms) return [];
    const peakBytes = peaks.get(contender);
    const figures = { ms: median(ms), msMin: Math.min(...ms), runs: ms.length };
    return [{ implementation, figures, ...(peakBytes === undefined ? {} : { peakBytes }) }];
  });
}

/** The code of an error that says that a contender has no kernel for the problem. */
export const unsupported = "unsupported";

/** Of as many runs as are timed together where they take such times. */
async function timesTogether(
  runMany: NonNullable<Contender["runMany"]>,
  known: readonly number[],
): Promise<readonly number[]> {
  const ms = median(known);
  const count = Math.min(mostTogether, Math.max(1, Math.round(togetherMs / ms)));
  const lead = ms < leadMs ? 1 : 0;
  return (await runMany(lead + count)).slice(lead);
}

/** In the order that the time decides: where processes measure together, it is the same on all of them. */
function shuffled<T>(items: readonly T[], now: number): T[] {
  const lot = (at: number) => createHash("sha256").update(`${now} ${at}`).digest("hex");
  return items
    .map((item, at) => ({ item, lot: lot(at) }))
    .sort((a, b) => (a.lot < b.lot ? -1 : 1))
    .map(({ item }) => item);
}

/** Rejects at once where it is aborted, with the signal's reason. */
export async function unlessAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  signal.throwIfAborted();
  let onAbort = () => {};
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => reject(signal.reason);
    signal.addEventListener("abort", onAbort, { once: true });
  });
  try {
    return await Promise.race([work, aborted]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
