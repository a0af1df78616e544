// PyTorch itself, where a Python has it: LONGSEQ_PYTHON, else python3.
import { spawn, spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import t from "tap";
import { operationNames } from "../../lib/cli/bench/operations.ts";
import type { Measurement } from "../../lib/cli/bench/sweep.ts";
import { jsonLines, longseq } from "../support/command-line.ts";
import { implementationsOf, kind, root } from "../support/devices.ts";

const python = process.env.LONGSEQ_PYTHON || "python3";
const hasTorch = spawnSync(python, ["-c", "import torch"]).status === 0;

t.test("the peer has every operation", async (t) => {
  const script = readFileSync(join(root, "bench/peer_torch.py"), "utf8");
  for (const name of operationNames) t.match(script, `    "${name}": ([`, name);
});

const [own] = implementationsOf("bfloat16");
const skip = !hasTorch && `${python} has no torch`;

t.test(
  "implementations are ready beside each other, and each is timed under its own name",
  { skip },
  async (t) => {
    const child = spawn(python, [join(root, "bench/peer_torch.py")], { stdio: ["pipe", "pipe", "inherit"] });
    const answers = createInterface(child.stdout)[Symbol.asyncIterator]();
    const ask = async (request: object) => {
      child.stdin.write(`${JSON.stringify(request)}\n`);
      return JSON.parse((await answers.next()).value) as { ms?: number; error?: string };
    };
    const problem = { what: "matmul", pass: "forward", dtype: "float32", headDim: 1 };
    await ask({ op: "hello", device: "cpu", threads: 1, what: "matmul", dtype: "float32", masked: false });
    await ask({ op: "prepare", implementation: "large", ...problem, rows: 512, width: 1024 });
    await ask({ op: "prepare", implementation: "small", ...problem, rows: 1, width: 8 });
    const times = async (implementation: string) => {
      const all = [];
      for (let i = 0; i < 5; i++) all.push((await ask({ op: "run", implementation })).ms ?? 0);
      return Math.min(...all);
    };
    const [large, small] = [await times("large"), await times("small")];
    t.ok(small > 0 && large > 10 * small, `${large} ms, ${small} ms`);
    await ask({ op: "dispose", implementation: "small" });
    t.match(await ask({ op: "run", implementation: "small" }), { error: /small/ });
    t.match(await ask({ op: "run", implementation: "large" }), { ms: Number });
    child.stdin.end();
  },
);

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
  t.test(`PyTorch beside ours: ${args.join(" ")}`, { skip }, async (t) => {
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
      t.equal(first, args.includes("float32") ? implementationsOf("float32")[0] : own);
      t.ok(others.length > 0 && others.every((name) => peers?.includes(name)), `${pass}: ${others}`);
    }
    t.ok(lines.every(({ tflops = 0, ms = 0 }) => tflops > 0 && ms > 0));
  });
}

t.test("PyTorch's layer, and projection with its loss, beside ours, each pass", { skip }, async (t) => {
  const layer = ["--what", "layer", "--hidden", "32", "--heads", "4", "--kv-heads", "2"];
  const projection = ["--what", "linearCrossEntropy", "--width", "32", "--vocabulary", "40"];
  for (const args of [
    [...layer, "--pass", "forward"],
    [...layer, "--pass", "backward"],
    [...layer, "--recompute", "full"],
    [...projection, "--pass", "forward"],
    [...projection, "--pass", "backward"],
  ]) {
    const { code, stdout, stderr } = await longseq([
      ...["bench", ...args, "--seq-len", "64", "--seconds", "0", "--dtype", "bfloat16"],
      ...["--peer", "torch", "--json", "-"],
    ]);
    t.equal(code, 0, stderr);
    const [first, ...others] = jsonLines<Measurement>(stdout);
    t.equal(first?.implementation, args.includes("linearCrossEntropy") ? kind : own);
    t.ok(others.length > 0 && others.every(({ tflops = 0 }) => tflops > 0), stderr);
  }
});
