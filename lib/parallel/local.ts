// Ranks of one process: how they name their group.
import { type Device, deviceOrDefault, handleOfDevice } from "../device.ts";
import { checkOptions, failure, shown, wrongKind } from "../errors.ts";
import { type CommunicatorHandle, native } from "../native.ts";

/** Of a group of ranks of this process. */
export interface LocalOptions {
  /** How long a rank waits for the others at each step; default 600,000. */
  timeoutMs?: number;
}

/** A place in a group that ranks of several threads name. */
export type LocalPlace = { name: string; rank: number; size: number; device: Device } & LocalOptions;

export function joinLocal(place: LocalPlace): { handle: CommunicatorHandle; device: Device } {
  checkOptions("Communicator.join", place, {
    name: true,
    rank: true,
    size: true,
    device: true,
    timeoutMs: true,
  });
  const { name, rank, size } = place;
  if (typeof name !== "string") throw wrongKind("Communicator.join: name", "a string", name);
  for (const [what, value] of [
    ["rank", rank],
    ["size", size],
  ] as const) {
    if (!Number.isSafeInteger(value))
      throw failure("ERR_OPTION", `Communicator.join: ${what} is ${shown(value)}, expected an integer`);
  }
  const device = deviceOrDefault("Communicator.join", place.device);
  const handle = native.communicatorJoinLocal(
    name,
    rank,
    size,
    handleOfDevice(device),
    checkedTimeout(place),
  );
  return { handle, device };
}

export function timeoutOf(options: LocalOptions): number {
  checkOptions("Communicator.local", options, { timeoutMs: true });
  return checkedTimeout(options);
}

function checkedTimeout({ timeoutMs = 600_000 }: LocalOptions): number {
  if (typeof timeoutMs !== "number" || !(timeoutMs > 0) || timeoutMs > 2 ** 40)
    throw failure("ERR_OPTION", `Communicator: timeoutMs is ${shown(timeoutMs)}, expected a number above 0`);
  return timeoutMs;
}
