#!/usr/bin/env node
// Runs the compiled tests (scripts/build-tests.mjs) on a GPU, with nothing but Node: the machine needs no npm, no compiler
// and no network. LONGSEQ_DEVICE chooses another device than "cuda".
// usage: node scripts/test-gpu.mjs [--jobs N] [--timeout SECONDS] [WORD..]   only files whose path holds a WORD
import { spawn } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const root = fileURLToPath(new URL("..", import.meta.url));
const folder = join(root, "build/ts/test");

const { values, positionals: words } = parseArgs({
  options: { jobs: { type: "string" }, timeout: { type: "string" } },
  allowPositionals: true,
});
const isNamed = (name) => words.length === 0 || words.some((word) => name.includes(word));
const timeoutMs = 1000 * Number(values.timeout ?? 240);
const jobs = Number(values.jobs ?? Math.max(1, Math.min(8, Math.floor(availableParallelism() / 2))));

/** What a file printed as TAP: its counts, and each failing assertion with what tap says of it. */
function parse(tap) {
  const footer = /^# \{ (total: .*) \}$/m.exec(tap)?.[1];
  const counts = Object.fromEntries((footer ?? "").split(", ").map((entry) => entry.split(": ")));
  const failures = [];
  const lines = tap.split("\n");
  for (const [at, line] of lines.entries()) {
    // A group of assertions, which has a time, fails with one of its own.
    if (!/^\s*not ok (?!.*# (SKIP|TODO|time=))/.test(line)) continue;
    const indent = " ".repeat(line.search(/\S/) + 2);
    if (lines[at + 1] !== `${indent}---`) continue;
    const end = lines.indexOf(`${indent}...`, at);
    failures.push([line.trim(), ...lines.slice(at + 2, end).map((text) => text.slice(indent.length))]);
  }
  return {
    passed: Number(counts.pass ?? 0),
    failed: Number(counts.fail ?? 0),
    skipped: Number(counts.skip ?? 0) + Number(counts.todo ?? 0),
    isWholeSkip: /^1\.\.0 # (SKIP|not on)/im.test(tap),
    reasons: [...tap.matchAll(/(?:# SKIP|^1\.\.0 #) (.*)/gim)].map(([, reason]) => reason),
    isComplete: footer !== undefined,
    failures,
  };
}

function runFile(path, environment) {
  const child = spawn(process.execPath, [join(folder, path)], {
    cwd: root,
    env: { ...process.env, TAP_TIMEOUT: String(timeoutMs / 1000), ...environment },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let stdout = "";
  let stderr = "";
  let isLate = false;
  const timer = setTimeout(() => {
    isLate = true;
    child.kill("SIGKILL");
  }, timeoutMs);
  child.stdout.on("data", (chunk) => {
    stdout += chunk;
  });
  child.stderr.on("data", (chunk) => {
    stderr = (stderr + chunk).slice(-4000);
  });
  const start = performance.now();
  return new Promise((done) => {
    child.once("close", (code, signal) => {
      clearTimeout(timer);
      const found = parse(stdout);
      if (found.isWholeSkip) found.skipped++;
      const isBad = code !== 0 || !(found.isComplete || found.isWholeSkip);
      if (isBad && found.failures.length === 0) {
        const how = isLate ? `took longer than ${timeoutMs / 1000} s` : `ended with ${signal ?? code}`;
        found.failures.push([`the file ${how}`, ...stdout.trimEnd().split("\n").slice(-8), stderr.trimEnd()]);
      }
      if (isBad || found.failures.length > 0) found.failed = Math.max(1, found.failed);
      done({ path, seconds: (performance.now() - start) / 1000, ...found });
    });
  });
}

async function main() {
  if (!existsSync(folder)) {
    console.error("test-gpu: the tests are not compiled: run `npm run build:tests` where there is npm");
    return 2;
  }
  const { info } = await import("../dist/index.js");
  const { cuda } = info();
  const device = process.env.LONGSEQ_DEVICE || "cuda";
  if (device.startsWith("cuda") && cuda.gpus.length === 0) {
    const why = cuda.compiled ? "no GPU that this process can use" : "a build without CUDA";
    console.log(`Skipped: there is ${why}.\n\n0 passed, 0 failed, 1 skipped`);
    return 0;
  }
  const files = readdirSync(folder, { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".test.js") && isNamed(name))
    .sort();
  const results = [];
  const work = async (queue) => {
    for (let path = queue.shift(); path !== undefined; path = queue.shift()) {
      const result = await runFile(path, { LONGSEQ_DEVICE: device });
      results.push(result);
      const { passed, failed, skipped, seconds } = result;
      const skips = skipped > 0 ? `, ${skipped} skipped` : "";
      console.log(`${path}: ${passed} passed, ${failed} failed${skips} (${seconds.toFixed(1)} s)`);
      for (const reason of new Set(result.reasons)) console.log(`  skipped: ${reason}`);
      for (const [title, ...lines] of result.failures) {
        console.log(`  ${title}\n${lines.map((line) => `    ${line}`).join("\n")}`);
      }
    }
  };
  // They fill the GPU's memory, time what it does, or look who is on it: alone, after all others.
  const isGreedy = (name) => /(^|\/)(cuda|large-tensors|mask-panels|nccl-failures)\.test\.js$/.test(name);
  const together = files.filter((name) => !isGreedy(name));
  await Promise.all(Array.from({ length: jobs }, () => work(together)));
  await work(files.filter(isGreedy));
  const sum = (name) => results.reduce((total, result) => total + result[name], 0);
  const bad = results.filter(({ failed }) => failed > 0).map(({ path }) => path);
  if (bad.length > 0) console.log(`\nFailed: ${bad.join(" ")}`);
  const gpu = device.startsWith("cuda") ? cuda.gpus[0].name : "";
  console.log(`\non ${device} ${gpu}`.trimEnd());
  console.log(`${sum("passed")} passed, ${sum("failed")} failed, ${sum("skipped")} skipped`);
  return bad.length > 0 ? 1 : 0;
}

process.exit(await main());
