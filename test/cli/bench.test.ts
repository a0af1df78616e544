import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import t from "tap";
import { parseArguments } from "../../lib/cli/arguments.ts";
import type { Contender } from "../../lib/cli/bench/contender.ts";
import { measure, unsupported } from "../../lib/cli/bench/measure.ts";
import type { OperationMeasurement } from "../../lib/cli/bench/operation-sweep.ts";
import { benchOptions, whatOf } from "../../lib/cli/bench/options.ts";
import {
  documentBoundaries,
  floatingPointOperations,
  type Problem,
  visibleShare,
  wholeMask,
} from "../../lib/cli/bench/problem.ts";
import { benchSettings } from "../../lib/cli/bench/settings.ts";
import type { Measurement } from "../../lib/cli/bench/sweep.ts";
import { alone } from "../../lib/cli/world.ts";
import { entry, interrupted, jsonLines, longseq } from "../support/command-line.ts";
import { implementationsOf, kind } from "../support/devices.ts";
import { standInPeer } from "../support/peer.ts";

/** Of what the bench computes in where nobody says. */
const [own] = implementationsOf(kind === "cuda" ? "bfloat16" : "float32");
const folder = t.testdir({});
const tiny = ["--heads", "2", "--head-dim", "16", "--seconds", "0"];

async function measured(
  args: readonly string[],
  environment: NodeJS.ProcessEnv = {},
): Promise<Measurement[]> {
  const { code, stdout, stderr } = await longseq(["bench", ...tiny, ...args, "--json", "-"], environment);
  t.equal(code, 0, stderr);
  return jsonLines<Measurement>(stdout);
}

t.test("a line a pass and length, with the contract's fields", async (t) => {
  const lines = await measured([
    "--seq-len",
    "128,64",
    "--batch",
    "2",
    "--kv-heads",
    "1",
    "--dtype",
    "bfloat16",
  ]);
  t.same(
    lines.map(({ seqLen, pass }) => [seqLen, pass]),
    [
      [64, "forward"],
      [64, "backward"],
      [128, "forward"],
      [128, "backward"],
    ],
  );
  for (const line of lines) {
    t.match(line, {
      what: "attention",
      implementation: own,
      device: kind,
      deviceName: /./,
      dtype: "bfloat16",
      batch: 2,
      heads: 2,
      kvHeads: 1,
      headDim: 16,
      causal: true,
      mask: "none",
      peakShare: Number,
    });
    const { seqLen, pass, ms = 0, msMin = 0, tflops = 0, tokensPerSecond = 0, peakBytes = 0 } = line;
    const operations = 4 * 2 * 2 * seqLen ** 2 * 16 * 0.5 * (pass === "backward" ? 2.5 : 1);
    t.ok(msMin > 0 && msMin <= ms);
    t.ok(Math.abs(tflops / (operations / ms / 1e9) - 1) < 1e-9);
    t.ok(Math.abs(tokensPerSecond / ((2000 * seqLen) / ms) - 1) < 1e-9);
    t.ok(peakBytes >= 2 * 2 * seqLen * 16 * (2 + 1 + 1), "inputs are counted");
  }
});

t.test("full, windows and masks count what is visible", async (t) => {
  const problem: Problem = {
    ...{ dtype: "float32", batch: 1, heads: 2, kvHeads: 2, headDim: 16, seqLen: 256 },
    ...{ causal: true, window: undefined, mask: "none" },
  };
  const share = (changes: Partial<Problem>) => visibleShare({ ...problem, ...changes });
  t.equal(share({}), 0.5);
  t.equal(share({ causal: false }), 1);
  t.equal(share({ window: 16 }), (256 * 17 - 136) / 256 ** 2);
  t.equal(share({ window: 16, causal: false }), (256 * 33 - 2 * 136) / 256 ** 2);
  const documents = share({ mask: "documents" });
  t.ok(documents > 1 / 34 && documents < 1 / 16, `documents ${documents}`);
  const blocks = share({ mask: "blocks" });
  t.ok(blocks > 1 / 16 && blocks < 1 / 4, `blocks ${blocks}`);
  using mask = wholeMask({ ...problem, mask: "blocks", seqLen: 4096 });
  t.equal(mask?.kind, "blocks");
  t.equal(floatingPointOperations(problem, "forward", 0.5), 4 * 2 * 256 ** 2 * 16 * 0.5);
  t.equal(floatingPointOperations(problem, "backward", 1), 2.5 * 4 * 2 * 256 ** 2 * 16);
  for (const seqLen of [1, 2, 7, 16, 100, 4096]) {
    const boundaries = documentBoundaries(seqLen);
    t.same([boundaries[0], boundaries.at(-1)], [0, seqLen]);
    t.ok(boundaries.every((end, i) => i === 0 || end > (boundaries[i - 1] ?? end)));
  }
});

t.test("documents in a batch, and every type and implementation", async (t) => {
  for (const args of [
    ["--mask", "documents", "--batch", "3", "--dtype", "float16"],
    ["--deterministic", "--dtype", "bfloat16"],
    ["--implementation", "reference", "--dtype", "float32", "--mask", "blocks"],
    ["--seq-len", "1", "--mask", "blocks"],
  ]) {
    const lines = await measured(args.includes("--seq-len") ? args : [...args, "--seq-len", "64"]);
    t.equal(lines.length, 2, args.join(" "));
    t.ok(lines.every(({ ms = 0 }) => ms > 0));
    const isDeterministic = args.includes("--deterministic");
    t.ok(lines.every(({ deterministic = false }) => deterministic === isDeterministic));
  }
});

t.test("operations by rows: bytes over time, and the share of a copy's", async (t) => {
  for (const [what, bytes] of [
    ["copy", 4],
    ["cast", 6],
  ] as const) {
    const args = [
      "bench",
      ...tiny,
      "--what",
      what,
      "--dtype",
      "bfloat16",
      "--seq-len",
      "64,256",
      "--batch",
      "2",
    ];
    const { code, stdout, stderr } = await longseq([...args, "--json", "-"]);
    t.equal(code, 0, stderr);
    const lines = jsonLines<OperationMeasurement>(stdout);
    t.same(
      lines.map(({ rows, width, pass }) => [rows, width, pass]),
      [
        [128, 32, "forward"],
        [512, 32, "forward"],
      ],
    );
    for (const { rows, ms = 0, gigabytesPerSecond = 0, peakShare = 0, peakBytes = 0 } of lines) {
      t.ok(Math.abs((gigabytesPerSecond * ms) / ((rows * 32 * bytes) / 1e6) - 1) < 1e-9);
      t.ok(peakShare > 0 && peakBytes >= rows * 32 * bytes);
    }
    t.match(stderr, /rows +pass +ms +GB\/s +of copy +memory\n +128 +forward +\d/);
  }
});

t.test("a projection with its loss: a product forward, three with its gradients", async (t) => {
  const args = ["--what", "linearCrossEntropy", "--width", "32", "--seq-len", "24", "--dtype", "float32"];
  const lines = async (...more: string[]) => {
    const { code, stdout, stderr } = await longseq(["bench", ...tiny, ...args, ...more, "--json", "-"]);
    t.equal(code, 0, stderr);
    return jsonLines<OperationMeasurement>(stdout);
  };
  const both = await lines("--vocabulary", "40");
  t.same(
    both.map(({ pass, rows, width, vocabulary, tflops = 0, ms = 0 }) => [
      ...[pass, rows, width, vocabulary],
      Math.round(tflops * ms * 1e9),
    ]),
    [
      ["forward", 24, 32, 40, 2 * 24 * 32 * 40],
      ["both", 24, 32, 40, 3 * 2 * 24 * 32 * 40],
    ],
  );
  const [alone, ...others] = await lines("--pass", "forward");
  t.match(alone, { pass: "forward", vocabulary: 4096 });
  t.equal(others.length, 0);
});

t.test("runs that are timed together, and contenders that cannot", async (t) => {
  const calls: number[] = [];
  const contender = (implementation: string, more: Partial<Contender>): Contender => ({
    implementation,
    prepare: async () => {},
    run: async () => 5,
    runMany: undefined,
    resetPeak: async () => {},
    peakBytes: async () => undefined,
    dispose: async () => {},
    ...more,
  });
  const fails = (code: string) => async () => {
    throw Object.assign(new Error(code), { code });
  };
  const timings = await measure(
    [
      contender("together", {
        runMany: async (count) => {
          calls.push(count);
          return Array.from({ length: count }, () => 2);
        },
      }),
      contender("alone", {}),
      contender("too large", { run: fails("ERR_OUT_OF_MEMORY") }),
      contender("unable", { prepare: fails(unsupported) }),
    ],
    { seconds: 60, mostRuns: 20, now: alone.now },
    new AbortController().signal,
    () => {},
  );
  t.same(
    calls,
    [5, 11, 11],
    "20 ms together, of 5 ms each at first, of 2 ms as measured then, and one before them",
  );
  t.same(timings, [
    { implementation: "together", figures: { ms: 2, msMin: 2, runs: 24 } },
    { implementation: "alone", figures: { ms: 5, msMin: 5, runs: 3 } },
    { implementation: "too large" },
  ]);
});

t.test("out of memory is a line, and the sweep goes on", async (t) => {
  // On a GPU the bench writes 256 MiB before each run, to empty the cache.
  const limit = kind === "cuda" ? "260m" : "4m";
  const lines = await measured(["--seq-len", "64,64k,128", "--pass", "forward"], {
    LONGSEQ_MEMORY_LIMIT: limit,
  });
  t.same(
    lines.map(({ seqLen, oom = false }) => [seqLen, oom]),
    [
      [64, false],
      [128, false],
      [65536, true],
    ],
  );
  t.equal(lines[2]?.tflops, undefined);
});

t.test("table, JSON file and report", async (t) => {
  for (const kind of ["html", "svg", "md"]) {
    const report = join(folder, `report.${kind}`);
    const json = join(folder, `${kind}.jsonl`);
    const args = [
      "bench",
      ...tiny,
      "--seq-len",
      "64",
      "--pass",
      "forward",
      "--report",
      report,
      "--json",
      json,
    ];
    const { code, stdout, stderr } = await longseq(args);
    t.equal(code, 0, stderr);
    t.match(stdout, /tokens +pass +ms +[GT]FLOP\/s +of peak +tokens\/s +memory\n +64 +forward +\d/);
    t.equal(jsonLines(await readFile(json, "utf8")).length, 1);
    t.match(
      await readFile(report, "utf8"),
      "npx longseq bench --heads 2 --head-dim 16 --seconds 0 --seq-len 64",
    );
  }
});

t.test("what is asked wrongly is refused", async (t) => {
  const wrong: [args: string[], message: RegExp][] = [
    [["--what", "copy", "--ranks", "4"], /--ranks goes with attention, a layer or gpt, not with copy/],
    [["--sequence-parallel", "rings"], /--sequence-parallel is "rings".*did you mean ring\?/],
    [["--preset", "GPT25B"], /--preset goes with --what layer or gpt, not with attention/],
    [["--what", "linear", "--vocabulary", "8"], /--vocabulary goes with --what gpt or linearCrossEntropy/],
    [["--what", "add", "--report", "x.svg"], /--report is attention's, a layer's or a model's/],
    [["--device", "tpu"], /--device is "tpu"/],
    [["--implementation", "refrence"], /did you mean reference\?/],
    [["--dtype", "int32"], /--dtype is "int32"/],
    [["--heads", "8", "--kv-heads", "3"], /expected a divisor of --heads \(8\)/],
    [["--head-dim", "60"], /multiple of 8/],
    [["--seconds", "1e3"], /--seconds is "1e3"/],
    [["--seq-len", "10q"], /sequence length "10q"/],
    [["--report", "x.pdf"], /ends in .html, .svg, .md/],
    ...["--implementation=cpu", "--kv-heads=1", "--causal", "--no-causal", "--window=8", "--mask=blocks"].map(
      (option): [string[], RegExp] => [
        ["--what", "add", option],
        new RegExp(`^${option.split("=")[0]} goes with attention, a layer or gpt, not with add$`),
      ],
    ),
    [["--what", "linear", "--deterministic"], /--deterministic goes with attention, a layer or gpt/],
    [["--width", "64"], /--width goes with an operation by rows, not with attention/],
    [["--peer", "jax"], /--peer is "jax", expected torch/],
  ];
  for (const [args, message] of wrong) {
    const settings = () => {
      const given = parseArguments(args, benchOptions);
      const what = whatOf(given);
      if (what !== "layer" && what !== "gpt") benchSettings(given, what);
    };
    t.throws(settings, { message }, args.join(" "));
  }
});

t.test("what this machine or an operation lacks is an error, before anything is measured", async (t) => {
  const lacking: [args: string[], code: number, message: RegExp][] = [
    [["--device", "cuda:99"], 1, /longseq bench: .*(CUDA|cuda:99)/],
    [["--implementation", "sm90", "--dtype", "float32"], 1, /longseq bench: .*sm90/],
    [["--json", "no/such/folder/x"], 2, /cannot be written/],
    [["--what", "copy", "--pass", "backward"], 2, /--pass is backward, expected forward with --what copy/],
  ];
  for (const [args, code, message] of lacking) {
    const outcome = await longseq(["bench", ...tiny, ...args]);
    t.equal(outcome.code, code, args.join(" "));
    t.match(outcome.stderr, message);
    t.notMatch(outcome.stdout, /forward/);
  }
});

t.test("Ctrl-C stops with what was measured", async (t) => {
  const report = join(folder, "interrupted.md");
  const args = ["bench", ...tiny, "--seq-len", "64,4m", "--report", report];
  const { code, signal, stdout, ms } = await interrupted(args, /64 +backward/);
  t.strictSame([code, signal], [130, null]);
  t.match(stdout, /64 +backward[\s\S]*Interrupted/);
  t.match(await readFile(report, "utf8"), /\| 64 \| backward/);
  t.ok(ms < 30_000, "without waiting for the run of 4m");
});

t.test("Ctrl-C stops an operation too, with what was measured and no figures that are none", async (t) => {
  const args = ["bench", "--what", "copy", "--seconds", "1"];
  const { code, stdout, ms } = await interrupted(
    [...args, "--seq-len", "64,4m", "--width", "1024"],
    /64 +forward/,
  );
  t.equal(code, 130);
  t.match(stdout, /64 +forward[\s\S]*\nInterrupted: this is what was measured\.\n$/);
  t.ok(ms < 30_000);
  // The first thing that takes time is what a copy reaches, once files are open.
  const json = join(folder, "interrupted.jsonl");
  const child = spawn(process.execPath, [entry, ...args, "--seq-len", "64", "--json", json], {
    env: { ...process.env, NODE_OPTIONS: "" },
    stdio: ["ignore", "pipe", "inherit"],
  });
  let text = "";
  child.stdout.on("data", (chunk) => {
    text += chunk;
  });
  while (!existsSync(json)) await sleep(5);
  await sleep(100);
  child.kill("SIGINT");
  t.strictSame(await once(child, "close"), [130, null]);
  t.equal(text, "\nInterrupted before anything was measured.\n");
});

t.test("an operation on a machine that has no memory for the copy", async (t) => {
  const { code, stdout, stderr } = await longseq(
    ["bench", "--what", "add", "--seconds", "0", "--seq-len", "64", "--width", "64"],
    { LONGSEQ_MEMORY_LIMIT: kind === "cuda" ? "300m" : "4m" },
  );
  t.equal(code, 0, stderr);
  t.match(stdout, /; a copy has no memory\n\n[\s\S]*64 +forward +\d/);
  t.notMatch(stdout, "NaN");
});

t.test("a peer runs in turn with ours, and what it cannot is said", async (t) => {
  const { python, asked } = await standInPeer(folder);
  const environment = { LONGSEQ_PYTHON: python, LONGSEQ_THREADS: "1" };
  const lines = await measured(["--seq-len", "64,128", "--pass", "forward", "--peer", "torch"], environment);
  t.same(
    lines.map(({ seqLen, implementation, oom = false }) => [seqLen, implementation, oom]),
    [
      [64, own, false],
      [64, "torch-cpu", false],
      [128, own, false],
      [128, "torch-cpu", true],
    ],
  );
  t.match(lines[1], { ms: 1, peakBytes: 4096, tflops: (4 * 2 * 64 ** 2 * 16 * 0.5) / 1e9 });
  const [hello, ...others] = await asked();
  t.match(hello, { op: "hello", device: kind, threads: 1, what: "attention", masked: false });
  t.match(others[0], {
    op: "prepare",
    seqLen: 64,
    pass: "forward",
    causal: true,
    deterministic: false,
    maskFile: null,
  });
  t.ok(others.every(({ implementation }) => implementation === "torch-cpu"));
  const { stdout } = await longseq(
    ["bench", ...tiny, "--seq-len", "64", "--mask", "documents", "--peer", "torch"],
    environment,
  );
  t.match(stdout, /torch-cpu +ratio\n +64 +forward .* \d+\.\d\dx\n/);
  const absent = await longseq(["bench", ...tiny, "--seq-len", "64", "--peer", "torch-flash"], environment);
  t.match(absent.stderr, /no peer: torch-flash is not what PyTorch has for this: torch-cpu/);
});

t.test("without the peer our own figures are still there", async (t) => {
  const args = ["bench", ...tiny, "--seq-len", "64", "--pass", "forward", "--peer", "torch"];
  for (const [python, message] of [
    ["no-such-python", /no peer: no-such-python: .*ENOENT/],
    ["false", /no peer: false: it ended without a word/],
    ["echo", /no peer: echo: it answered ".*peer_torch.py", expected what bench\/peer_torch.py does\n/],
  ] as const) {
    const { code, stdout, stderr } = await longseq(args, { LONGSEQ_PYTHON: python });
    t.equal(code, 0);
    t.match(stderr, message);
    t.match(stdout, /64 +forward +\d/);
  }
});
