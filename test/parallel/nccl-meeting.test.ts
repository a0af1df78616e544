// How ranks meet for NCCL, and what they tell each other, on any machine: a group of this process stands in for NCCL's.
import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";
import t from "tap";
import { Device } from "../../lib/device.ts";
import type { CommunicatorHandle, Native } from "../../lib/native.ts";
import { meetOverNccl, type NcclMember, type NcclOptions } from "../../lib/parallel/nccl.ts";
import { root, skipFileOnGpu } from "../support/devices.ts";

skipFileOnGpu("there NCCL itself is tried");
const addon = (createRequire(import.meta.url)("node-gyp-build") as (folder: string) => Native)(root);
const real = { ...addon };

/** What was told to the communicators of this process, in order. */
let told: string[] = [];
/** By communicator: its rank, and why it has failed. */
let ranks = new Map<CommunicatorHandle, { rank: number; failure: string; steps: number }>();
let meetings = 0;

t.beforeEach(() => {
  told = [];
  ranks = new Map();
  const name = `meeting ${meetings++}`;
  const of = (handle: CommunicatorHandle) => ranks.get(handle) ?? { rank: -1, failure: "", steps: 0 };
  Object.assign(addon, {
    ncclLibrary: () => ({ version: "2.27.0", path: "nowhere" }),
    ncclId: () => Uint8Array.from({ length: 128 }, (_, i) => i),
    communicatorNccl: (...[device, id, rank, size, timeoutMs]: Parameters<Native["communicatorNccl"]>) => {
      told.push(`id ${[...id.subarray(0, 3)]} of ${id.length}`);
      const handle = real.communicatorJoinLocal(name, rank, size, device, timeoutMs);
      ranks.set(handle, { rank, failure: "", steps: 10 + rank });
      return handle;
    },
    communicatorFailure: (handle: CommunicatorHandle) => of(handle).failure,
    communicatorSteps: (handle: CommunicatorHandle) => of(handle).steps,
    communicatorEnd: (handle: CommunicatorHandle, why: string) =>
      void told.push(`to ${of(handle).rank}: ${why}`),
    communicatorLeft: (handle: CommunicatorHandle, rank: number, steps: number) =>
      void told.push(`to ${of(handle).rank}: ${rank} left after ${steps}`),
  });
});

/** The CPU, which says that it is a GPU. */
function gpu(): Device {
  return Object.defineProperty(new Device("cpu"), "kind", { value: "cuda" });
}

/** The ranks of a group that come, by default all, or what became of them. */
async function meet(size: number, options: NcclOptions = {}, coming = size) {
  const place = { size, token: "a token of these tests", timeoutMs: 20_000, ...options };
  const others: Promise<PromiseSettledResult<NcclMember>[]>[] = [];
  const outcome = await Promise.allSettled([
    meetOverNccl({
      ...place,
      device: gpu(),
      rank: 0,
      address: "127.0.0.1:0",
      onListening: (address) => {
        for (let rank = 1; rank < coming; rank++)
          others.push(Promise.allSettled([meetOverNccl({ ...place, device: gpu(), rank, address })]));
      },
    }),
  ]);
  return [outcome, ...(await Promise.all(others))].flat();
}

const members = (outcomes: readonly PromiseSettledResult<NcclMember>[]) =>
  outcomes.map((outcome) =>
    outcome.status === "fulfilled" ? outcome.value : t.fail(String(outcome.reason)),
  );
const reasons = (outcomes: readonly PromiseSettledResult<NcclMember>[]) =>
  outcomes.map((outcome) => outcome.status === "rejected" && outcome.reason);

async function untilTold(count: number): Promise<string[]> {
  for (let looks = 0; told.length < count && looks < 500; looks++) await sleep(10);
  return told.toSorted();
}

t.test("all get rank 0's id, and learn who leaves after how many steps", async (t) => {
  const all = members(await meet(3)) as NcclMember[];
  t.strictSame(
    all.map(({ rank, size }) => [rank, size]),
    [
      [0, 3],
      [1, 3],
      [2, 3],
    ],
  );
  t.strictSame(told, new Array(3).fill("id 0,1,2 of 128"));
  told = [];
  await sleep(50);
  all[2]?.leave();
  t.strictSame(await untilTold(2), ["to 0: 2 left after 12", "to 1: 2 left after 12"]);
  all[2]?.leave();
  all[0]?.leave();
  t.strictSame((await untilTold(3)).slice(1), ["to 1: 0 left after 10", "to 1: 2 left after 12"]);
  all[1]?.leave();
  t.equal((await untilTold(4))[0], "to 0: 1 left after 11");
});

t.test("one that fails tells all others", async (t) => {
  const all = members(await meet(3)) as NcclMember[];
  told = [];
  await sleep(50);
  const failed = ranks.get((all[1] as NcclMember).handle);
  if (failed) failed.failure = "communicator: step 3 with rank 0 did not end within 5 s";
  t.strictSame(await untilTold(2), [
    "to 0: step 3 with rank 0 did not end within 5 s",
    "to 2: step 3 with rank 0 did not end within 5 s",
  ]);
  await sleep(250);
  t.equal(told.length, 2, "once");
});

t.test("one that does not come is named to all others", async (t) => {
  for (const { code, message } of reasons(await meet(3, { timeoutMs: 2000 }, 2))) {
    t.equal(code, "ERR_COMM");
    t.match(message, /^Communicator\.nccl: rank 2 of 3 did not come within [\d.]+ s$/);
  }
  t.strictSame(told, []);
});

t.test("one without NCCL is named to all", async (t) => {
  let calls = 0;
  addon.ncclLibrary = () => {
    if (calls++ === 2) throw Object.assign(new Error("nccl: none here"), { code: "ERR_NO_NCCL" });
    return { version: "2.27.0", path: "nowhere" };
  };
  const found = reasons(await meet(3));
  t.equal(found.filter((reason) => reason?.code === "ERR_NO_NCCL").length, 1);
  const others = found.filter((reason) => reason?.code === "ERR_COMM");
  t.equal(others.length, 2);
  for (const { message } of others)
    t.match(message, /^Communicator\.nccl: rank [12] cannot: nccl: none here$/);
  t.strictSame(told, []);
});

t.test("a group of one needs no address", async (t) => {
  const member = await meetOverNccl({ device: gpu(), rank: 0, size: 1 });
  t.equal(member.size, 1);
  member.leave();
});

t.test("an interrupted meeting ends for all", async (t) => {
  const reason = new Error("enough");
  await t.rejects(
    meetOverNccl({
      device: gpu(),
      rank: 0,
      size: 2,
      address: "127.0.0.1:0",
      onListening: () => {},
      signal: AbortSignal.abort(reason),
    }),
    reason,
  );
});
