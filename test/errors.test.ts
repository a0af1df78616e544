// Failures from outside: no binary, no memory.
import { cpSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import t from "tap";
import type { OutOfMemory } from "./support/child/out-of-memory.ts";
import { answer } from "./support/child.ts";
import { kind, root } from "./support/devices.ts";

/** The package without its binary. */
function packageIn(folder: string): string {
  cpSync(join(root, "dist"), join(folder, "dist"), { recursive: true });
  cpSync(join(root, "package.json"), join(folder, "package.json"));
  symlinkSync(join(root, "node_modules"), join(folder, "node_modules"));
  return pathToFileURL(join(folder, "dist/index.js")).href;
}

t.test("no binary", async (t) => {
  const entry = packageIn(t.testdir({}));
  await t.rejects(import(entry), {
    code: "ERR_NO_BINARY",
    message: /no binary for this machine.*npm rebuild longseq/s,
  });
});

t.test("a binary that does not load", async (t) => {
  const folder = t.testdir({});
  const entry = packageIn(folder);
  mkdirSync(join(folder, "build/Release"), { recursive: true });
  writeFileSync(join(folder, "build/Release/longseq.node"), "not a library");
  await t.rejects(import(entry), { code: "ERR_NO_BINARY", message: /longseq\.node/ });
});

t.test("out of memory leaves the process usable", async (t) => {
  const report = await answer<OutOfMemory>("out-of-memory.ts", {
    environment: { LONGSEQ_MEMORY_LIMIT: "24m" },
  });
  t.equal(report.limit, 24 << 20);
  const message =
    /out of memory: asked for \d+ MiB.*, \d+ MiB are left.*, \d+ MiB are held by tensors and scratch/;
  // How much scratch attention takes is the engine's own affair; the CPU's packs the keys.
  for (const name of kind === "cpu" ? (["tensor", "scratch", "read"] as const) : (["tensor"] as const)) {
    t.match(report[name], ["ERR_OUT_OF_MEMORY", message], name);
  }
  t.same(
    report.later.map((value) => Math.round(value * 1e5) / 1e5),
    [1, 2, 3, 4, 5, 6, 7, 8],
  );
});
