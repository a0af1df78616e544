// Ranks that hear of each other: who fails, who leaves, whose process ends.
import { once } from "node:events";
import { connect } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import t from "tap";
import { writeFrame } from "../../lib/launch/frames.ts";
import { LivenessMember, LivenessRoot } from "../../lib/launch/liveness.ts";

const host = "127.0.0.1";

/** What a rank heard, and a way to wait for so much of it. */
function listener() {
  const heard: string[] = [];
  const news = {
    onFailure: (why: string) => void heard.push(`failed: ${why}`),
    onLeft: (rank: number, steps: number) => void heard.push(`rank ${rank} left after ${steps}`),
  };
  const hears = async (count: number) => {
    // Sockets that keep no process alive need one who does.
    for (let looks = 0; heard.length < count && looks < 500; looks++) await sleep(10);
    return heard;
  };
  return { news, hears };
}

async function job(size: number) {
  const ears = Array.from({ length: size }, listener) as ReturnType<typeof listener>[];
  const [rootEar, ...others] = ears as [ReturnType<typeof listener>];
  const root = new LivenessRoot(size, rootEar.news);
  const port = await root.listen(host);
  const members = others.map(({ news }, i) => new LivenessMember(i + 1, { host, port }, root.secret, news));
  await sleep(50);
  return { root, members, ears };
}

/** A rank as a process that says no more than hello. */
async function silent(port: number, rank: number, secret: Uint8Array) {
  const socket = connect({ host, port });
  await once(socket, "connect");
  const number = Buffer.alloc(4);
  number.writeUInt32BE(rank);
  writeFrame(socket, "hello", number, secret);
  await sleep(50);
  return socket;
}

t.test("a failure is everybody's, once", async (t) => {
  const { root, members, ears } = await job(4);
  members[1]?.fail("rank 2 has no memory left");
  for (const rank of [0, 1, 3]) {
    t.strictSame(await ears[rank]?.hears(1), ["failed: rank 2 has no memory left"], `rank ${rank}`);
  }
  root.fail("too late");
  members[0]?.fail("too late");
  await sleep(50);
  t.strictSame(
    await Promise.all(ears.map(async ({ hears }) => (await hears(0)).length)),
    [1, 1, 0, 1],
    "nobody hears of it twice, nor the one who said it",
  );
});

t.test("who leaves is named with its steps, and may end then", async (t) => {
  const { root, members, ears } = await job(3);
  members[0]?.leave(7);
  t.strictSame(await ears[0]?.hears(1), ["rank 1 left after 7"]);
  t.strictSame(await ears[2]?.hears(1), ["rank 1 left after 7"]);
  root.leave(8);
  t.strictSame(await ears[2]?.hears(2), ["rank 1 left after 7", "rank 0 left after 8"]);
  members[1]?.leave(8);
  t.strictSame(await ears[0]?.hears(2), ["rank 1 left after 7", "rank 2 left after 8"]);
  t.strictSame(await ears[1]?.hears(0), []);
});

t.test("a process that ends without a word is dead", async (t) => {
  const [first, second] = [listener(), listener()];
  const root = new LivenessRoot(3, first.news);
  const port = await root.listen(host);
  new LivenessMember(1, { host, port }, root.secret, second.news);
  (await silent(port, 2, root.secret)).destroy();
  for (const { hears } of [first, second])
    t.strictSame(await hears(1), ["failed: rank 2 is gone: its process has ended"]);
});

t.test("rank 0's death is the others' failure", async (t) => {
  const ear = listener();
  new LivenessMember(1, { host, port: 1 }, Buffer.alloc(32), ear.news);
  t.match(await ear.hears(1), [
    /^failed: rank 0 is gone: its process has ended, or cannot be reached \(.*REFUSED/,
  ]);
});

t.test("a stranger is turned away and harms nobody", async (t) => {
  const [ear, member] = [listener(), listener()];
  const root = new LivenessRoot(2, ear.news);
  const port = await root.listen(host);
  for (const [rank, secret] of [
    [1, Buffer.alloc(32)],
    [1, Buffer.alloc(3)],
    [0, root.secret],
    [2, root.secret],
  ] as const) {
    const socket = await silent(port, rank, secret);
    if (!socket.closed) await once(socket, "close");
    t.ok(socket.closed, `rank ${rank}`);
  }
  new LivenessMember(1, { host, port }, root.secret, member.news);
  await sleep(50);
  const late = connect({ host, port });
  await t.rejects(
    once(late, "connect"),
    { code: "ECONNREFUSED" },
    "all are here: nobody else is listened to",
  );
  root.fail("as agreed");
  t.strictSame(await member.hears(1), ["failed: as agreed"]);
  t.strictSame(await ear.hears(0), []);
});
