#!/usr/bin/env node
// Runs the kernels' cases on a GPU under NVIDIA's compute-sanitizer: the reference vectors, every kernel of attention on
// shapes that fill no tile, and masks in panels. Like scripts/test-gpu.mjs it needs nothing but Node, and the CUDA toolkit's
// compute-sanitizer.
// usage: node scripts/sanitize-gpu.mjs [--tool memcheck,racecheck] [--jobs N] [--timeout SECONDS] [WORD..]
//        only programs whose name holds every WORD: "kernels float32"
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const root = fileURLToPath(new URL("..", import.meta.url));
const { values, positionals: words } = parseArgs({
  options: {
    tool: { type: "string", default: "memcheck,racecheck" },
    jobs: { type: "string" },
    timeout: { type: "string", default: "300" },
  },
  allowPositionals: true,
});
const jobs = Number(values.jobs ?? Math.max(1, Math.min(8, Math.floor(availableParallelism() / 2))));
const folder = mkdtempSync(join(tmpdir(), "longseq-sanitize-"));
const dtypes = ["float32", "bfloat16", "float16"];

const programs = [
  ...dtypes.flatMap((dtype) =>
    [[8, 64, 80], [96, 128], [256]].map((sizes) => ({
      name: `kernels ${dtype} D ${sizes}`,
      args: ["build/ts/test/attention/kernels.test.js"],
      environment: { TAP_GREP: `/^${dtype}, D (${sizes.join("|")})$/`, TAP_TIMEOUT: values.timeout },
      // racecheck takes no account of barrier.arrive, nor of copies that an mbarrier tells of: kernels of 16 bits use both.
      ...(dtype === "float32" ? {} : { tools: ["memcheck"] }),
    })),
  ),
  ...dtypes.map((dtype) => ({
    name: `vectors ${dtype}`,
    args: ["dist/cli/index.js", "verify", "test/vectors", "--device", "cuda", "--dtype", dtype],
    ...(dtype === "float32" ? {} : { tools: ["memcheck"] }),
  })),
  {
    name: "panels",
    args: ["build/ts/test/support/child/mask-panels.js", join(folder, "results")],
    environment: { LONGSEQ_MASK_BUDGET: "96k" },
    // Its kernels are the ones above, at sizes that take racecheck minutes.
    tools: ["memcheck"],
  },
].filter(({ name }) => words.every((word) => name.includes(word)));

function findSanitizer() {
  const { CUDA_HOME = "/usr/local/cuda" } = process.env;
  const names = ["compute-sanitizer", join(CUDA_HOME, "bin/compute-sanitizer")];
  return names.find((name) => spawnSync(name, ["--version"]).status === 0);
}

function run(sanitizer, tool, { name, args, environment }) {
  const log = join(folder, `${tool} ${name}`);
  const flags = ["--tool", tool, "--target-processes", "all", "--error-exitcode", "86", "--log-file", log];
  const child = spawn(sanitizer, [...flags, process.execPath, ...args], {
    cwd: root,
    env: { ...process.env, LONGSEQ_DEVICE: "cuda", ...environment },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.on("data", (chunk) => {
      output += chunk;
    });
  }
  let isLate = false;
  const timer = setTimeout(() => {
    isLate = true;
    child.kill("SIGKILL");
  }, 1000 * Number(values.timeout));
  const start = performance.now();
  return new Promise((done) => {
    child.once("close", (code) => {
      clearTimeout(timer);
      const found = existsSync(log) ? readFileSync(log, "utf8") : "";
      const summary = /SUMMARY: (.*)/.exec(found)?.[1] ?? (isLate ? "not done in time" : "no summary");
      const isClean = code === 0 && /^0 (errors|hazards)/.test(summary);
      const seconds = ((performance.now() - start) / 1000).toFixed(1);
      console.log(`${tool}, ${name}: ${summary}${code === 0 ? "" : `, exit code ${code}`} (${seconds} s)`);
      if (!isClean) {
        const complaints = output.split("\n").filter((line) => /^\s*not ok|FAILED|Error/.test(line));
        console.log([...found.split("\n").slice(0, 60), ...complaints.slice(0, 20)].join("\n"));
      }
      done(isClean);
    });
  });
}

async function main() {
  const { info } = await import("../dist/index.js");
  if (info().cuda.gpus.length === 0) {
    console.log("Skipped: there is no GPU that this process can use.");
    return 0;
  }
  const sanitizer = findSanitizer();
  if (sanitizer === undefined) {
    console.error(
      "sanitize-gpu: no compute-sanitizer: it is in the CUDA toolkit; CUDA_HOME names its folder",
    );
    return 2;
  }
  const queue = values.tool
    .split(",")
    .flatMap((tool) =>
      programs.filter(({ tools }) => tools?.includes(tool) ?? true).map((program) => ({ tool, program })),
    );
  const results = [];
  const work = async () => {
    for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
      results.push(await run(sanitizer, next.tool, next.program));
    }
  };
  await Promise.all(Array.from({ length: jobs }, work));
  const clean = results.filter(Boolean).length;
  console.log(`\n${clean} of ${results.length} clean`);
  return clean === results.length ? 0 : 1;
}

try {
  process.exitCode = await main();
} finally {
  rmSync(folder, { recursive: true, force: true });
}
