#!/usr/bin/env node
// Prints what each CUDA kernel needs: registers of a thread, shared memory of a block as declared (what a launch adds is not
// seen here), local memory for spilled registers and for arrays, by asking ptxas (-v). Needs nvcc and a configured build.
// usage: npm run resources -- [--arch 80,90] [WORD..]   only files whose path holds every WORD; default: --arch 90
import { spawn, spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { relative } from "node:path";
import { parseArgs } from "node:util";
import { root } from "./build.mjs";

const { values, positionals: words } = parseArgs({
  options: { arch: { type: "string", default: "90" } },
  allowPositionals: true,
});

/** The compiler and its arguments for a file, for one architecture alone, of which nothing is kept. */
function compilation({ command, file }, arch) {
  const [compiler, ...given] = command.split(" ");
  const from = given.indexOf("-x");
  const flags = given
    .slice(0, from)
    .filter((flag) => !/^(--generate-code|-Xptxas|-Xfatbin|-forward-unknown)/.test(flag));
  // Kernels for 9.0a alone have no other architecture.
  const isOwn = command.includes("sm_90a");
  const target = isOwn ? "90a" : arch;
  const code = `--generate-code=arch=compute_${target},code=sm_${target}`;
  return [compiler, [...flags, code, "-Xptxas=-v", "-c", file, "-o", "/dev/null"]];
}

function run(compiler, args) {
  const child = spawn(compiler, args, { stdio: ["ignore", "pipe", "pipe"] });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.on("data", (chunk) => {
      output += chunk;
    });
  }
  return new Promise((done) => child.once("close", (status) => done({ status, output })));
}

/** The kernels that ptxas tells of. */
function parse(output) {
  const kernels = [];
  for (const block of output.split("Compiling entry function '").slice(1)) {
    const number = (pattern) => Number(pattern.exec(block)?.[1] ?? 0);
    kernels.push({
      name: block.slice(0, block.indexOf("'")),
      arch: /for '(\w+)'/.exec(block)?.[1],
      registers: number(/Used (\d+) registers/),
      shared: number(/(\d+) bytes smem/),
      spilled: number(/(\d+) bytes spill stores/) + number(/(\d+) bytes spill loads/),
      stack: number(/(\d+) bytes stack frame/),
    });
  }
  return kernels;
}

/** As in the source, without the namespaces and the arguments. */
function readable(names) {
  const { stdout, status } = spawnSync("c++filt", [], { input: names.join("\n"), encoding: "utf8" });
  if (status !== 0) return names;
  return stdout.split("\n").map((name) =>
    name
      .replace(/^void /, "")
      .replaceAll("(anonymous namespace)::", "")
      .replaceAll(/longseq::/g, "")
      .replace(/\((?:[^()]|\([^()]*\))*\)$/, ""),
  );
}

async function main() {
  let commands;
  try {
    commands = JSON.parse(readFileSync(`${root}build/cmake/compile_commands.json`, "utf8"));
  } catch {
    console.error("resources: there is no configured build: run `npm run build:native`");
    return 0;
  }
  const sources = commands.filter(
    ({ file }) => file.endsWith(".cu") && words.every((word) => relative(root, file).includes(word)),
  );
  if (sources.length === 0) console.log("No CUDA file in this build.");
  const queue = sources.flatMap((source) => values.arch.split(",").map((arch) => ({ source, arch })));
  const work = async () => {
    for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
      const path = relative(root, next.source.file);
      const { status, output } = await run(...compilation(next.source, next.arch));
      const kernels = parse(output);
      console.log(`${path}, sm_${next.arch}${status === 0 ? "" : `: does not compile\n${output}`}`);
      const names = readable(kernels.map(({ name }) => name));
      const rows = kernels
        .map((kernel, i) => ({ ...kernel, name: names[i] }))
        .sort((a, b) => a.name.localeCompare(b.name));
      for (const { name, registers, shared, spilled, stack } of rows) {
        const cells = [registers, shared, spilled, stack].map((value) => String(value).padStart(9));
        console.log(`${cells.join(" ")}  ${name}${spilled > 0 ? "   <- spills" : ""}`);
      }
    }
  };
  console.log(
    `${["registers", "shared", "spilled", "stack"].map((title) => title.padStart(9)).join(" ")}  kernel`,
  );
  await Promise.all(Array.from({ length: Math.min(4, availableParallelism()) }, work));
  return 0;
}

process.exit(await main());
