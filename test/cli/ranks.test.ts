// Ranks that are processes: they decide alike, rank 0 prints, and what fails in one is heard by all.
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import t from "tap";
import { parseArguments, UsageError } from "../../lib/cli/arguments.ts";
import { measure } from "../../lib/cli/bench/measure.ts";
import { benchModel } from "../../lib/cli/bench/model-bench.ts";
import { modelSettings } from "../../lib/cli/bench/model-settings.ts";
import type { ModelMeasurement } from "../../lib/cli/bench/model-sweep.ts";
import { benchOptions } from "../../lib/cli/bench/options.ts";
import { RankedContender, type RankProgram } from "../../lib/cli/bench/ranked-contender.ts";
import { commandLine } from "../../lib/cli/bench/run.ts";
import { benchSettings } from "../../lib/cli/bench/settings.ts";
import { type Measurement, sweep, sweepLengths } from "../../lib/cli/bench/sweep.ts";
import { type Output, openOutput, RemoteFailure } from "../../lib/cli/output.ts";
import type { Rank } from "../../lib/cli/rank-group.ts";
import { openRanks, parallelOf, parallelTypes } from "../../lib/cli/ranks.ts";
import { verify, verifyAs, verifySettings } from "../../lib/cli/verify.ts";
import { alone, LaunchedWorld, type World } from "../../lib/cli/world.ts";
import { loadSafetensors, saveSafetensors, Tensor } from "../../lib/index.ts";
import { jsonLines, longseq } from "../support/command-line.ts";
import { kind } from "../support/devices.ts";
import { standInWorlds } from "../support/worlds.ts";

const { signal } = new AbortController();
const folder = t.testdir({});
const vectors = "test/vectors";

interface Ended<T> {
  readonly value: T;
  /** What it wrote for people, and to its JSON file, where it has one. */
  readonly text: string;
  readonly json: string | undefined;
}

let files = 0;

/** What becomes of each of several processes. */
async function onEach<T>(
  size: number,
  run: (world: World, output: Output) => Promise<T>,
  worlds = standInWorlds(size),
): Promise<Ended<T>[]> {
  return await Promise.all(
    worlds.map(async (world) => {
      const path = join(folder, `${files++}.jsonl`);
      using opened = openOutput({ json: path }, world.rank);
      let text = "";
      const write = (more: string) => {
        text += more;
      };
      const output = { ...opened, stream: world.rank === 0 ? { write } : opened.stream };
      const value = await run(world, output);
      return { value, text, json: existsSync(path) ? await readFile(path, "utf8") : undefined };
    }),
  );
}

t.test("a model is measured by all together, and printed by rank 0", async (t) => {
  const shape = [
    "--what",
    "gpt",
    "--hidden",
    "32",
    "--heads",
    "4",
    "--vocabulary",
    "64",
    "--seq-len",
    "50,64",
  ];
  for (const type of parallelTypes) {
    const ranks = ["--seconds", "0.05", "--ranks", "3", "--sequence-parallel", type];
    const settings = modelSettings(parseArguments([...shape, ...ranks], benchOptions), "gpt");
    const [first, ...others] = await onEach(3, (world, output) =>
      benchModel(settings, { world, output, signal }),
    );
    t.equal(first?.value, 0);
    t.match(
      first?.text,
      new RegExp(`: .*${type} over 3 ranks\\n[\\s\\S]* 50 +both +\\d[\\s\\S]* 64 +both +\\d`),
    );
    for (const line of jsonLines<ModelMeasurement>(first?.json ?? "")) {
      const { ms = 0, runs = 0, communicationShare = -1, peakBytes = 0 } = line;
      t.match(line, { what: "gpt", ranks: 3, devices: 3, sequenceParallel: type });
      t.ok(ms > 0 && runs > 0 && peakBytes > 0, `${ms} ms, ${runs} runs, ${peakBytes} bytes`);
      t.ok(communicationShare >= 0 && communicationShare <= 1, `waiting: ${communicationShare}`);
    }
    t.strictSame(others, [
      { value: 0, text: "", json: undefined },
      { value: 0, text: "", json: undefined },
    ]);
  }
});

t.test("what is measured is the same everywhere, and so is where lengths end", async (t) => {
  const args = ["--heads", "1", "--head-dim", "8", "--seconds", "0.01", "--ranks", "2", "--pass", "forward"];
  const settings = benchSettings(parseArguments(args, benchOptions), "attention");
  let seconds = 0;
  // Only rank 0's time goes on, by 5 seconds with each look: 15 a length.
  const worlds = standInWorlds(2, (rank) => {
    if (rank > 0) return 0;
    seconds += 5;
    return 1000 * seconds;
  });
  const measured = async (world: World) => {
    using group = await openRanks(settings.parallel, kind, world);
    const [device] = group.devices;
    if (!device) throw new Error("no device");
    const rest = { peer: undefined, peakTeraflops: undefined, dtype: "float32" as const };
    const rows: Measurement[] = [];
    const options = { settings, device, group, ...rest, signal, onProgress: () => {} };
    for await (const row of sweep(options)) rows.push(...row);
    return rows;
  };
  const [first, second] = await onEach(2, measured, worlds);
  t.match(first?.value, [{ seqLen: 1024, ranks: 2, devices: 2 }, { seqLen: 2048 }]);
  t.equal(first?.value.length, 2);
  t.strictSame(second?.value, first?.value);
});

/** Two sums over the ranks, between which something may go wrong. */
class TwoSums implements RankProgram {
  readonly #x: Tensor;
  readonly #rank: Rank;
  readonly #between: () => void;

  constructor(rank: Rank, between: () => void) {
    this.#rank = rank;
    this.#between = between;
    this.#x = Tensor.zeros([64], { device: rank.device });
  }

  begin(): () => void {
    const { strategy } = this.#rank;
    return () => {
      strategy.sum(this.#x);
      this.#between();
      strategy.sum(this.#x);
    };
  }

  [Symbol.dispose](): void {
    this.#x.dispose();
  }
}

const failing = (code: string | undefined) =>
  Object.assign(new Error("this is what failed"), code === undefined ? {} : { code });

t.test("a rank without memory ends the row for all, and the next one is measured", async (t) => {
  for (const [where, failingRun] of [
    ["preparing", 0],
    ["warming up", 1],
    ["a timed run", 2],
  ] as const) {
    const ended = await onEach(3, async (world) => {
      using group = await openRanks({ size: 3, type: "ring" }, kind, world);
      const rows = [];
      for (const isLarge of [true, false]) {
        let runs = 0;
        const fail = (at: number) => {
          if (isLarge && world.rank === 1 && at === failingRun) throw failing("ERR_OUT_OF_MEMORY");
        };
        const prepare = (rank: Rank) => {
          fail(0);
          return new TwoSums(rank, () => fail(++runs));
        };
        const contender = new RankedContender({ implementation: "cpu", group, seqLen: 9, prepare });
        const effort = { seconds: 0, mostRuns: 5, now: () => world.now() };
        rows.push(await measure([contender], effort, signal, () => {}));
      }
      return rows;
    });
    const [first, ...others] = ended.map(({ value }) => value);
    t.match(first, [[{ implementation: "cpu", figures: undefined }], [{ figures: { runs: Number } }]], where);
    t.strictSame(others, [first, first], where);
  }
});

t.test("any other failure is everybody's, in the words of the rank that failed", async (t) => {
  for (const code of ["ERR_DEVICE", undefined]) {
    const ended = await onEach(3, async (world) => {
      using group = await openRanks({ size: 3, type: "zigzag" }, kind, world);
      const fail = () => {
        if (world.rank === 1) throw failing(code);
      };
      const prepare = (rank: Rank) => new TwoSums(rank, fail);
      const contender = new RankedContender({ implementation: "cpu", group, seqLen: 9, prepare });
      return await contender
        .prepare()
        .then(() => contender.run())
        .catch((error: unknown) => error);
    });
    const [first, own, third] = ended.map(({ value }) => value);
    t.match(own, { message: "this is what failed", code });
    for (const [error, isSilent] of [
      [first, false],
      [third, true],
    ] as const) {
      t.type(error, RemoteFailure);
      t.match(error, { message: "rank 1: this is what failed", code, isSilent });
    }
  }
});

t.test("a process without a device is heard of before the others connect", async (t) => {
  let connected = 0;
  const worlds = standInWorlds(2).map((world) => ({
    ...world,
    deviceNames: () => [world.rank === 0 ? kind : "cuda:99"],
    connect: async () => {
      connected++;
      return [];
    },
  }));
  const open = (world: World) =>
    openRanks({ size: 2, type: "ring" }, kind, world).catch((error: unknown) => error);
  const [first, second] = await onEach(2, open, worlds);
  t.match(first?.value, { message: /^rank 1: device/, isSilent: false });
  t.match(second?.value, { code: /^ERR_(NO_CUDA|DEVICE)$/ });
  t.equal(connected, 0);
});

t.test("several ranks hold a part each of the learned positions", async (t) => {
  const held = async (size: number, world: World) => {
    using group = await openRanks({ size, type: "ring" }, kind, world);
    return group.ranks(8).map(({ strategy }) => strategy.positions?.held(10));
  };
  const halves = [
    { begin: 0, end: 5 },
    { begin: 5, end: 10 },
  ];
  t.strictSame(await held(2, alone), halves);
  const ended = await onEach(2, (world) => held(2, world));
  t.strictSame(
    ended.flatMap(({ value }) => value),
    halves,
  );
  t.strictSame(await held(1, alone), [undefined]);
});

t.test("a report says how it was launched, and not the launch's secret", async (t) => {
  t.teardown(() => delete process.env.LONGSEQ_TOKEN);
  process.env.LONGSEQ_TOKEN = "a secret";
  const ended = await onEach(2, async (world, output) => commandLine({ world, output, signal }));
  for (const { value } of ended) {
    t.match(value, /npx longseq launch --ranks 2 -- npx longseq bench/);
    t.notMatch(value, /TOKEN|secret/);
  }
});

/** A copy of the layer's file with other options. */
async function changed(name: string, change: (metadata: Record<string, string>) => void): Promise<string> {
  const { tensors, metadata } = await loadSafetensors(join(vectors, "layer_gpt.safetensors"));
  change(metadata);
  const path = join(folder, `${name}.safetensors`);
  await saveSafetensors(path, tensors, metadata);
  return path;
}

t.test("vectors: each process has its part, and all end alike", async (t) => {
  const names = ["layer_gpt", "layer_llama_gqa", "gpt_tiny", "gpt_tiny_llama", "attention_plain_d64"];
  const paths = names.map((name) => join(vectors, `${name}.safetensors`));
  const run = (args: readonly string[], size: number) =>
    onEach(size, (world, output) => {
      const given = parseArguments([...args, "--ranks", String(size)], verify.options);
      return verifyAs(verifySettings(given), world, output);
    });
  for (const type of parallelTypes) {
    const [first, ...others] = await run([...paths, "--sequence-parallel", type], 2);
    const checks = jsonLines<{ ok: boolean }>(first?.json ?? "");
    t.equal(checks.length, 76);
    t.same(
      checks.filter(({ ok }) => !ok),
      [],
    );
    t.match(first, { value: 0, text: /layers and models: .*, 2 ranks\n[\s\S]*76 of 76 hold\n$/ });
    t.strictSame(others, [{ value: 0, text: "", json: undefined }]);
  }
  const wrong = await changed("wrong", (metadata) => {
    metadata.eps = "0.1";
  });
  const unfit = await changed("unfit", (metadata) => {
    metadata.heads = "3";
  });
  const [first, second] = await run([unfit, wrong, paths[0] as string], 2);
  t.match(first, { value: 1, text: /unfit .*FAILED: .*heads[\s\S]*wrong +y .*FAILED\n[\s\S]* ok\n/ });
  t.strictSame(second, { value: 1, text: "", json: undefined });
});

t.test("processes meet, and tell each other values", async (t) => {
  let others: Promise<unknown[][]> | undefined;
  const place = (rank: number) => ({ rank, size: 3, localRank: rank, localSize: 3 });
  const token = "a token of these tests";
  const address = await new Promise<string>((onListening) => {
    const first = new LaunchedWorld(place(0), { address: "127.0.0.1:0", token, onListening });
    others = first.gather({ runs: [1, 2] }).then((values) => [values]);
  });
  const members = [1, 2].map((rank) => new LaunchedWorld(place(rank), { address, token }));
  t.strictSame(
    members.map(({ host }) => host),
    ["127.0.0.1", "127.0.0.1"],
  );
  const gathered = await Promise.all(members.map((world) => world.gather({ rank: world.rank })));
  for (const values of [...gathered, ...((await others) ?? [])]) {
    t.strictSame(values, [{ runs: [1, 2] }, { rank: 1 }, { rank: 2 }]);
  }
});

t.test("who is interrupted waits for nobody", async (t) => {
  const interrupt = new AbortController();
  const place = { rank: 0, size: 2, localRank: 0, localSize: 2 };
  const meeting = { address: "127.0.0.1:0", onListening: () => interrupt.abort(), signal: interrupt.signal };
  const world = new LaunchedWorld(place, meeting);
  const rows = sweepLengths({ seqLens: undefined, seconds: 0, world }, [1], interrupt.signal, async () => []);
  t.match(await rows.next(), { done: true });
  await t.rejects(world.gather(1), { name: "AbortError" });
});

t.test("what processes cannot do", async (t) => {
  const launched = { size: 4, launcher: "Slurm" };
  const parallel = (...args: string[]) => parallelOf(parseArguments(args, benchOptions), launched);
  t.strictSame(parallel(), { size: 4, type: "zigzag" });
  t.strictSame(parallel("--ranks", "4", "--sequence-parallel", "ring"), { size: 4, type: "ring" });
  t.throws(() => parallel("--ranks", "3"), {
    constructor: UsageError,
    message: "--ranks is 3, expected 4: Slurm started 4 processes, each of them a rank",
  });
  const environment = {
    LONGSEQ_RANK: "1",
    LONGSEQ_SIZE: "4",
    LONGSEQ_LOCAL_RANK: "1",
    LONGSEQ_LOCAL_SIZE: "4",
  };
  const onCpu = /the device is cpu, expected cuda: NCCL joins the GPUs of 4 processes; on the CPU --ranks 4 /;
  const small = ["bench", "--seq-len", "64", "--device", "cpu"];
  const cases: [args: string[], message: RegExp][] = [
    [[...small, "--what", "layer"], onCpu],
    [small, onCpu],
    [["verify", vectors, "--device", "cpu"], onCpu],
    [
      [...small, "--peer", "torch"],
      /--peer has attention in one process, .*longseq launch started 4; --what layer/,
    ],
    [[...small, "--ranks", "2"], /--ranks is 2, expected 4: longseq launch started 4 processes/],
    [
      [...small, "--what", "copy"],
      /--what copy runs in one process, expected no more: longseq launch started 4/,
    ],
  ];
  for (const [args, message] of cases) {
    const { code, stdout, stderr } = await longseq(args, environment);
    t.equal(code, 2, args.join(" "));
    t.match(stderr, message);
    t.equal(stdout, "");
  }
});

t.test("the launcher's processes refuse the CPU", async (t) => {
  const bench = [process.execPath, "dist/cli/index.js", "bench", "--what", "gpt", "--device", "cpu"];
  const { code, stderr } = await longseq(["launch", "--ranks", "2", "--ranks-per-node", "2", "--", ...bench]);
  t.equal(code, 2);
  t.match(stderr, /\[[01]\] longseq bench: the device is cpu, expected cuda: NCCL joins the GPUs of 2/);
});
