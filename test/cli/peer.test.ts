// PyTorch itself, where a Python has it: LONGSEQ_PYTHON, else python3.
import { spawnSync } from "node:child_process";
import t from "tap";
import type { Measurement } from "../../lib/cli/bench/sweep.ts";
import { jsonLines, longseq } from "../support/command-line.ts";

const python = process.env.LONGSEQ_PYTHON || "python3";
const hasTorch = spawnSync(python, ["-c", "import torch"]).status === 0;

for (const args of [
  ["--dtype", "float32"],
  ["--no-causal", "--kv-heads", "1"],
  ["--mask", "documents"],
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
      t.same(
        lines.map(({ pass, implementation }) => `${pass} ${implementation}`),
        ["forward cpu", "forward torch-cpu", "backward cpu", "backward torch-cpu"],
      );
      t.ok(lines.every(({ tflops = 0, ms = 0 }) => tflops > 0 && ms > 0));
    },
  );
}
