// Processes that run a command together, in this one: each has its rank alone, on a device of its own.

import type { World } from "../../lib/cli/world.ts";
import { Communicator, type Device } from "../../lib/index.ts";
import { kind } from "./devices.ts";

interface Meeting {
  readonly values: unknown[];
  readonly all: Promise<unknown[]>;
  readonly come: (values: unknown[]) => void;
}

let count = 0;

/** So many worlds, by default with clocks that are far apart. */
export function standInWorlds(
  size: number,
  clock = (rank: number) => performance.now() + rank * 1e9,
): World[] {
  const name = `world ${count++}`;
  const meetings = new Map<number, Meeting>();
  const meet = async (at: number, rank: number, value: unknown): Promise<unknown[]> => {
    let meeting = meetings.get(at);
    if (!meeting) {
      let come: Meeting["come"] = () => {};
      const all = new Promise<unknown[]>((resolve) => {
        come = resolve;
      });
      meeting = { values: [], all, come };
      meetings.set(at, meeting);
    }
    meeting.values[rank] = value;
    if (Object.keys(meeting.values).length === size) meeting.come(meeting.values);
    return await meeting.all;
  };
  return Array.from({ length: size }, (_, rank) => {
    let gathered = 0;
    let connected = 0;
    const gather = async <T>(value: T): Promise<T[]> =>
      (await meet(gathered++, rank, JSON.parse(JSON.stringify(value ?? null)))) as T[];
    return {
      rank,
      size,
      host: "127.0.0.1",
      gather,
      now: async () => (await gather(clock(rank)))[0] ?? 0,
      deviceNames: () => [kind],
      connect: async ([device]: readonly Device[]) => [
        Communicator.join({ name: `${name} ${connected++}`, rank, size, device: device as Device }),
      ],
    };
  });
}
