// PyTorch itself, where a Python has it: LONGSEQ_PYTHON, else python3.
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { operationNames } from "../../lib/cli/bench/operations.ts";
import type { Measurement } from "../../lib/cli/bench/sweep.ts";
import { jsonLines, longseq } from "../support/command-line.ts";
import { implementations, kind, root } from "../support/devices.ts";

const python = process.env.LONGSEQ_PYTHON || "python3";
const hasTorch = spawnSync(python, ["-c", "import torch"]).status === 0;

const [own] = implementations;

t.test("the peer has every operation", async (t) => {
  const script = readFileSync(join(root, "bench/peer_torch.py"), "utf8");
  for (const name of operationNames) t.match(script, `    "${name}": ([`, name);
});

const [plain, masked] =
  kind === "cuda"
    ? [
        ["torch-flash", "torch-cudnn"],
        ["torch-flex", "torch-efficient"],
      ]
    : [["torch-cpu"], ["torch-cpu"]];
// A peer that has no kernel for a problem is left out, so not all of these need be there.
for (const { args, peers } of [
  { args: ["--dtype", "float32"], peers: kind === "cuda" ? ["torch-efficient"] : plain },
  { args: ["--dtype", "bfloat16", "--no-causal", "--kv-heads", "1"], peers: plain },
  { args: ["--dtype", "bfloat16", "--mask", "documents"], peers: masked },
]) {
  t.test(
    `PyTorch beside ours: ${args.join(" ")}`,
    { skip: !hasTorch && `${python} has no torch` },
    async (t) => {
      const shape = ["--heads", "2", "--head-dim", "16", "--seq-len", "96", "--seconds", "0"];
      const { code, stdout, stderr } = await longseq([
        "bench",
        ...shape,
        ...args,
        "--peer",
        "torch",
        "--json",
        "-",
      ]);
      t.equal(code, 0, stderr);
      const lines = jsonLines<Measurement>(stdout);
      for (const pass of ["forward", "backward"]) {
        const [first, ...others] = lines
          .filter((line) => line.pass === pass)
          .map(({ implementation }) => implementation);
        t.equal(first, own);
        t.ok(others.length > 0 && others.every((name) => peers?.includes(name)), `${pass}: ${others}`);
      }
      t.ok(lines.every(({ tflops = 0, ms = 0 }) => tflops > 0 && ms > 0));
    },
  );
}
