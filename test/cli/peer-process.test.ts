// What LONGSEQ_PYTHON names may be anything: no program keeps the bench waiting for good.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import t from "tap";
import { PeerError, PythonProcess } from "../../lib/cli/bench/peer-process.ts";
import { entry } from "../support/command-line.ts";

const folder = t.testdir({});
const hello = { device: "cpu", threads: 1, what: "attention", dtype: "float32", masked: false };

function program(name: string, script: string): string {
  const path = join(folder, name);
  writeFileSync(path, `#!/bin/sh\n${script}\n`);
  chmodSync(path, 0o755);
  return path;
}

/** Seconds that nobody else sleeps for: another run of this file may be under way. */
const mark = `98${process.pid}0`;
/** Whether a program with these arguments, which no other has, still runs a while after it was killed. */
async function outlives(seconds: string): Promise<boolean> {
  const isRunning = () =>
    readdirSync("/proc").some((pid) => {
      try {
        return /^\d+$/.test(pid) && readFileSync(`/proc/${pid}/cmdline`, "latin1").includes(seconds);
      } catch {
        return false;
      }
    });
  for (let i = 0; i < 100 && isRunning(); i++) await sleep(100);
  return isRunning();
}

t.test("programs that are no Python", async (t) => {
  const before = process.env.LONGSEQ_PYTHON;
  t.teardown(() => {
    if (before === undefined) delete process.env.LONGSEQ_PYTHON;
    else process.env.LONGSEQ_PYTHON = before;
  });
  const cases: [name: string, script: string, message: string][] = [
    ["garbage", "echo 'hello there'", 'it answered "hello there", expected what bench/peer_torch.py does'],
    ["number", `echo 17; sleep ${mark}1`, 'it answered "17", expected'],
    ["other", `echo '{"torch":2}'; sleep ${mark}2`, String.raw`it answered "{\"torch\":2}", expected`],
    ["endless", "exec cat /dev/zero", "its answer has no end"],
    ["closed", `exec >&-; sleep ${mark}3`, "it closed its output"],
    ["ended", "echo 'some words' >&2; exit 3", "some words"],
    ["silent", `sleep ${mark}4; sleep ${mark}5`, "it did not answer within 2 s"],
    // Out of reach, with our pipes in its hands.
    ["leaving", `setsid sleep 20 & sleep ${mark}6`, "it did not answer within 2 s"],
  ];
  for (const [name, script, message] of cases) {
    const path = program(name, script);
    process.env.LONGSEQ_PYTHON = path;
    const start = performance.now();
    const peer = new PythonProcess();
    const error = await peer.greet(hello, 2000).catch((error: unknown) => error);
    await peer.end();
    t.ok(error instanceof PeerError, name);
    t.match((error as Error).message, `${path}: ${message}`);
    t.ok(performance.now() - start < 15_000, `${name}: in time`);
  }
  t.notOk(await outlives(mark), "what they started has ended with them");
});

t.test("Ctrl-C while PyTorch is on its way", async (t) => {
  const started = join(folder, "started");
  const env = {
    ...process.env,
    NODE_OPTIONS: "",
    LONGSEQ_PYTHON: program("slow", `> ${started}; sleep ${mark}7`),
  };
  const args = ["bench", "--seq-len", "64", "--seconds", "0", "--peer", "torch"];
  const child = spawn(process.execPath, [entry, ...args], { env, stdio: ["ignore", "pipe", "inherit"] });
  let stdout = "";
  child.stdout.on("data", (chunk) => {
    stdout += chunk;
  });
  while (!existsSync(started)) await sleep(20);
  child.kill("SIGINT");
  t.strictSame(await once(child, "close"), [130, null]);
  t.equal(stdout, "\nInterrupted before anything was measured.\n");
  t.notOk(await outlives(`${mark}7`));
});
