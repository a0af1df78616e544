#!/usr/bin/env node
// Compiles the tests into build/ts, for machines without a compiler: scripts/test-gpu.mjs runs them. What they import of
// lib/ is dist/, so that both ways lead to the same modules.
import { spawnSync } from "node:child_process";
import { rmSync, symlinkSync } from "node:fs";
import { createRequire } from "node:module";
import { root } from "./build.mjs";

const out = `${root}build/ts`;
rmSync(out, { recursive: true, force: true });
const compiler = createRequire(import.meta.url).resolve("typescript/bin/tsc");
const flags = ["--noEmit", "false", "--outDir", out, "--declaration", "false", "--sourceMap", "false"];
const { status } = spawnSync(
  process.execPath,
  [compiler, "-p", "tsconfig.test.json", ...flags, "--inlineSources", "false"],
  { cwd: root, stdio: "inherit" },
);
rmSync(`${out}/lib`, { recursive: true, force: true });
symlinkSync("../../dist", `${out}/lib`);
process.exit(status);
