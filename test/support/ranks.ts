// Several ranks in this thread.
import { Communicator, Device, info } from "longseq";

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

/** Over NCCL, a GPU each. */
export async function ncclRanks(size: number, timeoutMs = 60_000): Promise<Communicator[]> {
  const place = { size, token: "a token of these tests", timeoutMs };
  const rankAt = (rank: number, address: string) =>
    Communicator.nccl({ ...place, rank, address, device: new Device(`cuda:${rank}`) });
  let others: Promise<Communicator>[] = [];
  const first = await Communicator.nccl({
    ...place,
    rank: 0,
    address: "127.0.0.1:0",
    device: new Device("cuda:0"),
    onListening: (address) => {
      others = Array.from({ length: size - 1 }, (_, i) => rankAt(i + 1, address));
    },
  });
  return [first, ...(await Promise.all(others))];
}

/** Why there are none of so many; false where there are. */
export function lacksGpus(count: number): string | false {
  const { compiled, gpus } = info().cuda;
  if (process.env.LONGSEQ_DEVICE === "cpu") return "LONGSEQ_DEVICE=cpu";
  if (!compiled) return "this build has no CUDA";
  return gpus.length < count && `there are ${gpus.length} GPUs, expected ${count}`;
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
