// `longseq bench --what layer` and `--what gpt`: the lines, the counts, and what becomes of what cannot be.
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";
import { parseArguments } from "../../lib/cli/arguments.ts";
import { type ModelShape, modelOperations, originalOperations } from "../../lib/cli/bench/flops.ts";
import { visibleShareOf } from "../../lib/cli/bench/model-program.ts";
import { type ModelSettings, modelSettings } from "../../lib/cli/bench/model-settings.ts";
import { type ModelMeasurement, modelSweep } from "../../lib/cli/bench/model-sweep.ts";
import { benchOptions, whatOf } from "../../lib/cli/bench/options.ts";
import { documentBoundaries } from "../../lib/cli/bench/problem.ts";
import { benchSettings } from "../../lib/cli/bench/settings.ts";
import { sweep } from "../../lib/cli/bench/sweep.ts";
import { openRanks, parallelTypes, rankDevice } from "../../lib/cli/ranks.ts";
import { renderModelReport } from "../../lib/cli/report/model-report.ts";
import { causalTeraflops, publishedTables } from "../../lib/cli/report/published.ts";
import { alone } from "../../lib/cli/world.ts";
import type { Device } from "../../lib/index.ts";
import { interrupted, jsonLines, longseq } from "../support/command-line.ts";
import { implementations, implementationsOf, kind } from "../support/devices.ts";
import { standInPeer } from "../support/peer.ts";

const [own] = implementations;
/** Of what the bench computes in where nobody says. */
const [best] = implementationsOf(kind === "cuda" ? "bfloat16" : "float32");
const folder = t.testdir({});
const small = ["--what", "layer", "--hidden", "32", "--heads", "4"];
const layer = ["bench", ...small, "--seconds", "0"];

async function measured(
  args: readonly string[],
  environment: NodeJS.ProcessEnv = {},
): Promise<ModelMeasurement[]> {
  const { code, stdout, stderr } = await longseq([...args, "--json", "-"], environment);
  t.equal(code, 0, stderr);
  return jsonLines<ModelMeasurement>(stdout);
}

function settingsOf(args: readonly string[]): ModelSettings {
  const given = parseArguments(args, benchOptions);
  const what = whatOf(given);
  if (what !== "layer" && what !== "gpt") throw new Error(`${what} is no model`);
  return modelSettings(given, what);
}

const quietly = { peer: undefined, signal: new AbortController().signal, onProgress: () => {} };

/** In this process, which is quicker. */
async function swept(args: readonly string[]): Promise<ModelMeasurement[]> {
  const settings = settingsOf(["--seconds", "0", ...args]);
  using group = await openRanks(settings.parallel, settings.device, alone);
  const lines = [];
  for await (const line of modelSweep({ settings, group, dtype: "bfloat16", ...quietly })) {
    lines.push(...line);
  }
  return lines;
}

t.test("a layer: a line a length, with the contract's fields", async (t) => {
  const lines = await measured([...layer, "--seq-len", "96,64", "--batch", "2", "--dtype", "float32"]);
  t.same(
    lines.map(({ seqLen }) => seqLen),
    [64, 96],
  );
  for (const line of lines) {
    const { seqLen, ms = 0, msMin = 0, tflops = 0, tflopsOriginal = 0, tokensPerSecond = 0 } = line;
    t.match(line, {
      ...{ what: "layer", pass: "both", implementation: own, preset: null, dtype: "float32" },
      ...{ devices: 1, ranks: 1, sequenceParallel: "serial", recompute: "pointwise", batch: 2, causal: true },
      ...{ hidden: 32, heads: 4, kvHeads: 4, headDim: 8, feedForward: 128, layers: 1, mask: "none" },
      ...{ device: /^(cpu|cuda:0)$/, deviceName: /./, peakBytes: Number, communicationShare: 0 },
    });
    t.notOk("vocabulary" in line);
    t.ok(msMin > 0 && msMin <= ms);
    const near = (found: number, expected: number) => t.ok(Math.abs(found / expected - 1) < 1e-9);
    near((tflops * ms) / 1e3, (2 * 3 * (24 * seqLen * 32 ** 2 + 2 * seqLen ** 2 * 32)) / 1e12 / 1 / 1);
    near((tflopsOriginal * ms) / 1e3, (2 * 3 * (24 * seqLen * 32 ** 2 + 4 * seqLen ** 2 * 32)) / 1e12);
    near((tokensPerSecond * ms) / 1e3, 2 * seqLen);
  }
});

t.test("every way of sharing the sequence, a share of whose time is waiting", async (t) => {
  for (const [at, type] of parallelTypes.entries()) {
    const what = at % 2 === 0 ? "layer" : "gpt";
    const shape = ["--hidden", "32", "--heads", "4", ...(what === "gpt" ? ["--vocabulary", "64"] : [])];
    const shared = ["--ranks", "2", "--sequence-parallel", type, "--seq-len", "50"];
    const lines = await swept(["--what", what, ...shape, ...shared]);
    t.equal(lines.length, 1);
    const [{ ms = 0, communicationShare = -1, ...line } = {}] = lines as [Partial<ModelMeasurement>];
    t.match(line, { what, ranks: 2, sequenceParallel: type, layers: what === "gpt" ? 2 : 1 });
    t.ok(ms > 0 && communicationShare >= 0 && communicationShare <= 1, `${type}: ${communicationShare}`);
  }
  const [alone] = await swept([...small, "--seq-len", "50", "--sequence-parallel", "ring"]);
  t.match(alone, { ranks: 1, sequenceParallel: "ring" });
  const [many] = await swept([...small, "--seq-len", "50", "--ranks", "3"]);
  t.match(many, { ranks: 3, sequenceParallel: "zigzag" });
});

t.test("passes, masks, kinds and what is computed again", async (t) => {
  for (const args of [
    ["--pass", "forward", "--mask", "documents", "--window", "9"],
    ["--pass", "backward", "--kind", "llama", "--kv-heads", "2", "--ffn", "40", "--recompute", "attention"],
    ["--recompute", "full", "--mlp-tiles", "3", "--no-causal", "--deterministic", "--ranks", "2"],
  ]) {
    const [line, ...others] = await swept([...small, ...args, "--seq-len", "64"]);
    t.equal(others.length, 0);
    t.ok((line?.ms ?? 0) > 0 && (line?.tflops ?? 0) > 0, args.join(" "));
    t.equal(line?.pass, args[0] === "--pass" ? args[1] : "both");
  }
});

t.test("gradients in float32 take twice the memory of bfloat16 ones", async (t) => {
  const args = ["--what", "layer", "--hidden", "256", "--heads", "4", "--seq-len", "2"];
  const [[narrow], [wide]] = [await swept(args), await swept([...args, "--float32-gradients"])];
  t.notOk("float32Gradients" in (narrow ?? {}));
  t.equal(wide?.float32Gradients, true);
  // 12 h^2 of the products, with biases and norms: 2 bytes more for each. How many activations are there beside them
  // at the peak is a matter of which thread is ahead: of two rows they are less than the biases.
  const more = (wide?.peakBytes ?? 0) - (narrow?.peakBytes ?? 0);
  t.ok(more >= 2 * 12 * 256 ** 2, `${more} bytes`);
});

t.test("attention alone is shared too", async (t) => {
  const shape = ["--heads", "4", "--kv-heads", "2", "--head-dim", "8", "--seconds", "0"];
  for (const [ranks, type, ...args] of [
    ["3", "zigzag", "--mask", "documents", "--batch", "2"],
    ["2", "megatron", "--mask", "blocks"],
  ] as const) {
    const shared = ["--ranks", ranks, "--sequence-parallel", type, "--seq-len", "96"];
    const settings = benchSettings(parseArguments([...shape, ...args, ...shared], benchOptions), "attention");
    using group = await openRanks(settings.parallel, rankDevice(undefined), alone);
    const [device] = group.devices as [Device];
    const given = { settings, device, group, dtype: "bfloat16" as const };
    const measurements = [];
    for await (const row of sweep({ ...given, ...quietly, peakTeraflops: undefined }))
      measurements.push(...row);
    t.same(
      measurements.map(({ pass, what }) => [pass, what]),
      [
        ["forward", "attention"],
        ["backward", "attention"],
      ],
    );
    for (const line of measurements) {
      t.match(line, { ranks: Number(ranks), sequenceParallel: type, devices: 1, implementation: best });
      const { tflops = 0, ms = 0, communicationShare = -1, tokensPerSecond = 0, batch } = line;
      t.ok(tflops > 0 && communicationShare >= 0 && communicationShare <= 1);
      t.ok(Math.abs((tokensPerSecond * ms) / (1000 * 96 * batch) - 1) < 1e-9);
    }
  }
  const report = join(folder, "shared.md");
  const args = [
    "bench",
    ...shape,
    "--seq-len",
    "64",
    "--ranks",
    "2",
    "--pass",
    "forward",
    "--report",
    report,
  ];
  const { stdout } = await longseq(args);
  t.match(stdout, /attention: .*zigzag over 2 ranks\n\n.* memory +waiting\n +64 +forward .* \d+%\n/);
  t.match(await readFile(report, "utf8"), /memory \| waiting \|\n[\s\S]*\| 64 \| forward \|.*% \|\n/);
});

const gpt25B: ModelShape = settingsOf(["--what", "gpt", "--preset", "GPT25B"]).shape;

t.test("the count of the published tables", async (t) => {
  // 105.0 TFLOP/s on each of 32 GPUs at 128,000 tokens were 39.6 s an iteration, 81.77 at 420,000 were 462 s.
  const seconds = (seqLen: number, teraflops: number) =>
    originalOperations(gpt25B, { batch: 1, seqLen }, "both", true) / (32e12 * teraflops);
  t.equal(seconds(128_000, 105.014).toFixed(1), "39.6");
  t.equal(seconds(420_000, 81.77).toFixed(0), "462");
  const shape = { hidden: 2, layers: 3, vocabulary: 96 };
  const count = (pass: "forward" | "backward" | "both", again: boolean) =>
    originalOperations(shape, { batch: 5, seqLen: 12 }, pass, again);
  // 1 + 12 / 12 + 96 / 96 is 3.
  t.equal(count("both", false), 24 * 3 * 5 * 12 * 3 * 4 * 3);
  t.equal(count("both", true), (count("both", false) / 3) * 4);
  t.equal(count("backward", true), count("both", false));
  t.equal(count("forward", true), count("both", false) / 3);
});

t.test("causal model operations", async (t) => {
  const at = (args: readonly string[], seqLen: number, pass: "forward" | "backward" | "both" = "both") => {
    const settings = settingsOf(args);
    return modelOperations(settings.shape, { batch: 1, seqLen }, visibleShareOf(settings, seqLen), pass);
  };
  const wide = ["--what", "layer", "--hidden", "5120", "--heads", "40"];
  const [s, h] = [4096, 5120];
  t.equal(at(wide, s), 3 * (24 * s * h ** 2 + 2 * s ** 2 * h));
  t.equal(at(wide, s, "forward"), at(wide, s) / 3);
  t.equal(at(wide, s, "backward"), (2 * at(wide, s)) / 3);
  t.equal(at([...wide, "--no-causal"], s), 3 * (24 * s * h ** 2 + 4 * s ** 2 * h));
  t.equal(at([...wide, "--recompute", "full"], s), at(wide, s), "what is recomputed is not counted");
  // Two products of h by all query columns and two by all key columns, three of the MLP.
  const grouped = ["--what", "layer", "--kind", "llama", "--hidden", "64", "--heads", "8", "--kv-heads", "2"];
  const parameters = 2 * 64 * (64 + 16) + 3 * 64 * 100;
  t.equal(at([...grouped, "--ffn", "100"], 32, "forward"), 2 * 32 * parameters + 2 * 32 ** 2 * 64);
  const model = ["--what", "gpt", "--hidden", "64", "--heads", "8", "--layers", "3", "--vocabulary", "50"];
  const layers = 3 * (24 * 32 * 64 ** 2 + 2 * 32 ** 2 * 64);
  t.equal(at(model, 32, "forward"), layers + 2 * 32 * 64 * 50);
  // Each of the last queries of a window of 9 sees 10 keys.
  const windowed = visibleShareOf(settingsOf([...wide, "--window", "9"]), 100);
  t.equal(windowed, (10 * 100 - 45) / 100 ** 2);
  const boundaries = documentBoundaries(100);
  const pairs = boundaries.slice(1).map((end, i) => {
    const length = end - (boundaries[i] ?? 0);
    return (length * (length + 1)) / 2;
  });
  const documents = visibleShareOf(settingsOf([...wide, "--mask", "documents"]), 100);
  t.equal(documents, pairs.reduce((a, b) => a + b) / 100 ** 2);
});

t.test("published figures as what this bench counts", async (t) => {
  t.same(
    publishedTables.map(({ runs }) => [runs[0]?.seqLen, runs.at(-1)?.seqLen]),
    [
      [2048, 8192],
      [2048, 262_144],
      [128_000, 420_000],
    ],
  );
  const causal = (seqLen: number, teraflops: number) =>
    causalTeraflops({ seqLen, teraflops: [teraflops] }, teraflops).toFixed(1);
  t.equal(causal(128_000, 105.014), "48.3");
  t.equal(causal(192_000, 115.8), "50.5");
  t.equal(causal(420_000, 81.77), "33.2");
});

t.test("out of memory is a line, and the sweep goes on, with ranks that wait for each other", async (t) => {
  // On a GPU each run finds an empty cache, which takes 256 MiB.
  const [limit, long] = kind === "cuda" ? ["400m", 2 ** 20] : ["6m", 2 ** 16];
  const lengths = ["--seq-len", `64,${long},128`];
  const args = [...layer, ...lengths, "--ranks", "3", "--sequence-parallel", "ulysses"];
  const lines = await measured(args, { LONGSEQ_MEMORY_LIMIT: limit });
  t.same(
    lines.map(({ seqLen, oom = false }) => [seqLen, oom]),
    [
      [64, false],
      [128, false],
      [long, true],
    ],
  );
  t.equal(lines[2]?.tflops, undefined);
});

t.test("table, JSON file and report, with the published tables beside", async (t) => {
  const path = join(folder, "report.html");
  const { code, stdout, stderr } = await longseq([
    ...layer,
    ...["--seq-len", "64", "--ranks", "2", "--report", path],
  ]);
  t.equal(code, 0, stderr);
  t.match(stdout, /layer: .*width 32, 4 heads of 8, zigzag over 2 ranks\n/);
  t.match(
    stdout,
    /tokens +pass +ms +[GT]FLOP\/s +original +tokens\/s +memory +waiting\n +64 +both +\d.* \d+%\n/,
  );
  const page = await readFile(path, "utf8");
  t.match(page, "npx longseq bench --what layer --hidden 32");
  t.match(page, "32 A100s of 40 GB");
  t.match(page, "<td>105, 107</td>");
  const [line] = await swept([...small, "--seq-len", "64"]);
  const measurements = [
    { ...(line as ModelMeasurement), tflops: 400, tflopsOriginal: 500 },
    { ...(line as ModelMeasurement), seqLen: 128_000, tflops: 300, tflopsOriginal: 450 },
  ];
  const report = { facts: [], command: "npx longseq bench", date: new Date(0) };
  const text = renderModelReport(".md", { ...report, measurements }, "layer: x");
  t.match(text, "At 128,000 tokens: 300 TFLOP/s a device, 450 as published tables count.");
  t.match(text, "| 128,000 |  |  | 105, 107 | 49.1 | 450 | 300 |\n");
  t.match(text, "| 8k | no memory | 86.0 |  | 58.8 |  |  |\n");
  const chart = renderModelReport(".svg", { ...report, measurements }, "layer: x");
  t.equal(chart.match(/<circle[^>]*r="4"><title>/g)?.length, 2 + 2 + 8 + 5, "ours by two counts, and theirs");
  const nothing = renderModelReport(".svg", { ...report, measurements: [] }, "layer: x");
  for (const one of [page, text, chart, nothing]) t.notMatch(one, /NaN|Infinity|undefined/);
});

t.test("what is asked wrongly is refused, exit code 2", async (t) => {
  const wrong: [args: string[], message: RegExp][] = [
    [["--what", "layer", "--preset", "GPT25"], /--preset is "GPT25".*did you mean GPT25B/],
    [["--what", "layer", "--preset", "GPT25B", "--heads", "8"], /--preset and --heads exclude each other/],
    [["--what", "layer", "--layers", "2"], /--layers goes with --what gpt, not with layer/],
    [["--what", "gpt", "--width", "2"], /--width goes with an operation by rows, not with gpt/],
    [["--what", "layer", "--mask", "blocks"], /--mask is "blocks", expected none or documents/],
    [["--what", "layer", "--hidden", "100", "--heads", "8"], /--hidden 100 over --heads 8 is 12.5/],
    [
      ["--what", "layer", "--heads", "8", "--kv-heads", "3"],
      /--kv-heads is 3, expected a divisor of --heads \(8\)/,
    ],
    [
      ["--what", "layer", "--recompute", "all"],
      /--recompute is "all", expected none, pointwise, attention, full/,
    ],
    [["--what", "layer", "--mlp-tiles", "0"], /--mlp-tiles is "0"/],
    [["--what", "layer", "--ranks", "0"], /--ranks is "0"/],
    [["--what", "layer", "--sequence-parallel", "zig"], /--sequence-parallel is "zig"/],
    [
      ["--what", "layer", "--ranks", "2", "--sequence-parallel", "megatron", "--mlp-tiles", "2"],
      /--mlp-tiles is 2, expected 1: megatron/,
    ],
    [["--what", "gpt", "--peer", "torch"], /--peer goes with --what layer, not with gpt/],
    [["--what", "layer", "--kind", "llama", "--peer", "torch"], /--peer has layers of the kind gpt alone/],
    [["--what", "layer", "--window", "4", "--peer", "torch"], /--peer has no layers with --mask, --window/],
    [
      ["--what", "gpt", "--float32-gradients", "--pass", "forward"],
      /goes with gradients, not with --pass forward/,
    ],
    [["--float32-gradients"], /--float32-gradients goes with --what layer or gpt, not with attention/],
  ];
  for (const [args, message] of wrong) t.throws(() => settingsOf(args), { message }, args.join(" "));
  const { code, stderr } = await longseq(["bench", "--what", "layer", "--preset", "GPT25"]);
  t.equal(code, 2);
  t.match(stderr, /longseq bench: --preset is "GPT25".*\nSee longseq bench --help/);
});

t.test("Ctrl-C stops with what was measured", async (t) => {
  const args = [...layer, "--seq-len", "64,1m", "--ranks", "2"];
  const { code, signal, stdout, ms } = await interrupted(args, /64 +both/);
  t.strictSame([code, signal], [130, null]);
  t.match(stdout, /64 +both[\s\S]*Interrupted/);
  t.ok(ms < 30_000, "without waiting for the run of 1m");
});

t.test("PyTorch's layer runs in turn with ours", async (t) => {
  const { python, asked } = await standInPeer(folder);
  const args = [...layer, "--seq-len", "64", "--peer", "torch", "--ranks", "2", "--kv-heads", "2"];
  const lines = await measured(args, { LONGSEQ_PYTHON: python });
  t.same(
    lines.map(({ implementation, ranks, sequenceParallel }) => [implementation, ranks, sequenceParallel]),
    [
      [best, 2, "zigzag"],
      ["torch-cpu", 1, "serial"],
    ],
  );
  const operations = 3 * (2 * 64 * (2 * 32 * (32 + 16) + 8 * 32 ** 2) + 2 * 64 ** 2 * 32);
  t.match(lines[1], { ms: 1, peakBytes: 4096, tflops: operations / 1e9, seqLen: 64 });
  t.equal(lines[1]?.communicationShare, undefined);
  const [hello, prepare] = await asked();
  t.match(hello, { op: "hello", what: "layer", masked: false });
  t.match(prepare, {
    ...{ op: "prepare", what: "layer", pass: "both", seqLen: 64, hidden: 32, heads: 4, kvHeads: 2 },
    ...{ headDim: 8, feedForward: 128, bias: true, causal: true, batch: 1, recompute: "none" },
  });
});
