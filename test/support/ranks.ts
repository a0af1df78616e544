// Several ranks in this thread.
import { Communicator, Device } from "longseq";

/** So many communicators, on devices of their own of the default kind. */
export function localRanks(size: number, options: { timeoutMs?: number } = {}): Communicator[] {
  return Communicator.local(
    Array.from({ length: size }, () => new Device()),
    options,
  );
}

let named = 0;

/** Those that know nothing of each other's memory, as ranks of several threads or processes do. */
export function apartRanks(size: number, options: { timeoutMs?: number } = {}): Communicator[] {
  const name = `apart ${named++}`;
  return Array.from({ length: size }, (_, rank) =>
    Communicator.join({ name, rank, size, device: new Device(), ...options }),
  );
}

/** The most bytes that each rank's program held at once, beyond the inputs that are made with it. */
export async function rankPeaks(
  size: number,
  prepare: (communicator: Communicator) => () => void,
): Promise<number[]> {
  const ranks = localRanks(size);
  const programs = ranks.map(prepare);
  const settled = () => Promise.all(ranks.map(({ device }) => device.synchronize()));
  await settled();
  const before = ranks.map(({ device }) => {
    device.resetPeak();
    return device.memory().liveBytes;
  });
  for (const program of programs) program();
  await settled();
  const peaks = ranks.map(({ device }, rank) => device.memory().peakBytes - (before[rank] ?? 0));
  for (const communicator of ranks) communicator.dispose();
  return peaks;
}
