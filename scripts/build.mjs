#!/usr/bin/env node
// Compiles the addon into build/Release/longseq.node: the one door for `npm install`, `npm run build:native` and
// prebuildify, which starts it in node-gyp's place (its arguments, of node-gyp's kind, say nothing that we need).
import { spawnSync } from "node:child_process";
import { realpathSync } from "node:fs";
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import { fileURLToPath } from "node:url";

export const root = fileURLToPath(new URL("..", import.meta.url));

const runs = (command) => spawnSync(command, ["--version"], { stdio: "ignore" }).status === 0;

/** What compiling needs and this machine lacks, in words. */
export function missingTools() {
  const compilers = process.env.CXX ? [process.env.CXX.split(" ")[0]] : ["c++", "g++", "clang++"];
  const missing = [];
  if (!runs("cmake")) missing.push("cmake (3.22 or later)");
  if (!compilers.some(runs)) missing.push("a C++20 compiler (g++ 11 or later)");
  if (!["ninja", "make"].some(runs)) missing.push("ninja or make");
  return missing;
}

/** How to get all that compiling needs. */
export const howToGetTools = `Compiling needs cmake, a C++20 compiler, and ninja or make:
  Debian, Ubuntu:       apt-get install cmake g++ ninja-build
  Red Hat, Fedora:      dnf install cmake gcc-c++ ninja-build`;

/** Configures and compiles; what is up to date stays. Returns whether it succeeded. */
export function build() {
  const cmakeJs = createRequire(import.meta.url).resolve("cmake-js/bin/cmake-js");
  const options = [
    "--out",
    "build/cmake",
    "--parallel",
    String(availableParallelism()),
    "--log-level",
    "warn",
  ];
  return ["configure", "build"].every(
    (command) =>
      spawnSync(process.execPath, [cmakeJs, command, ...options], { cwd: root, stdio: "inherit" }).status ===
      0,
  );
}

if (realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const missing = missingTools();
  if (missing.length > 0) console.error(`longseq: missing here: ${missing.join(", ")}.\n${howToGetTools}`);
  process.exit(missing.length === 0 && build() ? 0 : 1);
}
