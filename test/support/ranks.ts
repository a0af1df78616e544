// Several ranks in this thread.
import { Communicator, Device } from "longseq";

/** So many communicators, on devices of their own of the default kind. */
export function localRanks(size: number, options: { timeoutMs?: number } = {}): Communicator[] {
  return Communicator.local(
    Array.from({ length: size }, () => new Device()),
    options,
  );
}
