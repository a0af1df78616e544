// Ranks over NCCL, a process a GPU: one is killed, stands still, or never comes. The others end by themselves and say why,
// the launcher says who was first, and nothing is left on the GPUs.
import { spawnSync } from "node:child_process";
import { hostname } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { info } from "longseq";
import t, { type Test } from "tap";
import type { Trial } from "../support/child/nccl-failures.ts";
import { compiled } from "../support/child.ts";
import { longseq } from "../support/command-line.ts";

const { gpus } = info().cuda;
const skip =
  process.env.LONGSEQ_DEVICE === "cpu"
    ? "LONGSEQ_DEVICE=cpu"
    : gpus.length < 2
      ? `there are ${gpus.length} GPUs, expected 2`
      : spawnSync("nvidia-smi", ["-L"]).status !== 0 && "there is no nvidia-smi";

/** Far less than a process takes for being there. */
const slackMebibytes = 64;
const patienceMs = 20_000;

function queried(what: string): number[] {
  const { stdout } = spawnSync("nvidia-smi", [`--query-${what}`, "--format=csv,noheader,nounits"], {
    encoding: "utf8",
  });
  return stdout.trim().split("\n").filter(Boolean).map(Number);
}

const used = () => queried("gpu=memory.used");
const processes = () => queried("compute-apps=pid");

async function eventually(isSo: () => boolean): Promise<boolean> {
  const until = performance.now() + patienceMs;
  while (!isSo() && performance.now() < until) await sleep(200);
  return isSo();
}

/** What became of two ranks: the launcher's exit code and words, and each rank's last line. */
async function launched(t: Test, how: Trial) {
  const before = { used: used(), processes: processes().length };
  const start = performance.now();
  const options = ["--ranks", "2", "--ranks-per-node", "2", "--grace", "10"];
  const rank = [process.execPath, compiled("nccl-failures.ts"), how];
  const { code, stdout, stderr } = await longseq(["launch", ...options, "--", ...rank]);
  const lines = stdout.trim().split("\n");
  const pids = lines.flatMap((line) => (/pid (\d+)/.exec(line) ?? []).slice(1)).map(Number);
  t.equal(pids.length, 2, `${stdout}${stderr}`);
  for (const pid of pids) t.throws(() => process.kill(pid, 0), { code: "ESRCH" }, "nobody is left");
  const isFreed = () => used().every((now, at) => now <= (before.used[at] ?? 0) + slackMebibytes);
  t.ok(await eventually(isFreed), `the memory is back: ${before.used} MiB, now ${used()}`);
  // Where GPUs name processes as another namespace does, their count still tells.
  const isAlone = () =>
    processes().length <= before.processes && !processes().some((pid) => pids.includes(pid));
  t.ok(await eventually(isAlone), "no process of ours is on a GPU");
  const last = (rank: number) => lines.findLast((line) => line.startsWith(`[${rank}] `))?.slice(4);
  return { code, stderr, last: [last(0), last(1)], seconds: (performance.now() - start) / 1000 };
}

const first = (rank: number, how: string) =>
  `longseq launch: rank ${rank} on ${hostname()} ended with ${how}; ending the others\n`;

t.test("one is killed", { skip }, async (t) => {
  const { code, stderr, last } = await launched(t, "SIGKILL");
  t.equal(code, 137);
  t.match(stderr, first(1, "SIGKILL"));
  t.match(last[0], /^ERR_COMM: communicator: (rank 1 is gone|step \d+ with rank 1)/);
});

t.test("one stands still", { skip }, async (t) => {
  const { code, stderr, last } = await launched(t, "SIGSTOP");
  t.equal(code, 3);
  t.match(stderr, first(0, "exit code 3"));
  t.match(last[0], /^ERR_COMM: communicator: step \d+ with rank 1 did not end within 5 s/);
});

t.test("one never comes", { skip }, async (t) => {
  const { code, stderr, last } = await launched(t, "absent");
  t.equal(code, 3);
  t.match(stderr, /longseq launch: rank [01] on .* ended with exit code 3/);
  for (const words of last)
    t.match(words, /^ERR_COMM: Communicator\.nccl: rank 2 of 3 did not come within [\d.]+ s$/);
});

t.test("the GPUs work as before", { skip }, async (t) => {
  const { code, stderr, last } = await launched(t, "none");
  t.strictSame([code, stderr, ...last], [0, "", "done", "done"]);
});
