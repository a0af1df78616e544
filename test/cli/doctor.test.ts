import { readFile } from "node:fs/promises";
import t from "tap";
import { findLibrary, parseGpus } from "../../lib/cli/doctor/accelerator.ts";
import { schedulers } from "../../lib/cli/doctor/scheduler.ts";
import { jsonLines, longseq } from "../support/command-line.ts";

t.test("doctor describes this machine", async (t) => {
  const { code, stdout } = await longseq(["doctor"], {
    LONGSEQ_THREADS: "1",
    LONGSEQ_PYTHON: "no-such-python",
  });
  t.equal(code, 0);
  for (const part of ["version", "binary", "instructions", "driver", "cuBLASLt", "NCCL", "scheduler"])
    t.match(stdout, part);
  t.match(stdout, /threads +1 \(.*LONGSEQ_THREADS/);
  t.match(stdout, "no-such-python has no torch");
});

t.test("as JSON", async (t) => {
  const path = `${t.testdir({})}/doctor.json`;
  const environment = { SLURM_JOB_ID: "17" };
  const { code } = await longseq(["doctor", "--json", path], environment);
  t.equal(code, 0);
  const [line, ...others] = jsonLines(await readFile(path, "utf8"));
  t.same(others, []);
  t.match(line, { version: /^\d/, binary: { loads: true }, cpu: { threads: Number, instructionSet: /./ } });
  t.match(line, { schedulers: [{ name: "Slurm", variables: { SLURM_JOB_ID: "17" } }] });
});

t.test("the variables that are set", async (t) => {
  const environment = {
    LONGSEQ_THRAEDS: "1",
    LONGSEQ_TOKEN: "a secret",
    LONGSEQ_MASK_BUDGET: "4 GiB",
    LONGSEQ_CUDA: "0",
  };
  const { stdout } = await longseq(["doctor"], environment);
  t.match(stdout, /\n {2}LONGSEQ_CUDA +0\n +read when the addon is compiled/);
  t.match(stdout, /\n {2}LONGSEQ_MASK_BUDGET +"4 GiB"\n/);
  t.match(stdout, /\n {2}LONGSEQ_THRAEDS +1\n +unknown to longseq; did you mean LONGSEQ_THREADS\?\n/);
  t.match(stdout, /\n {2}LONGSEQ_TOKEN +\(hidden\)\n/);
  t.notMatch(stdout, "a secret");
  const json = await longseq(["doctor", "--json", "-"], environment);
  const [line] = jsonLines<{ environment: { name: string }[] }>(json.stdout);
  t.strictSame(
    line?.environment.filter(({ name }) => name in environment),
    [
      { name: "LONGSEQ_CUDA", value: "0", known: true },
      { name: "LONGSEQ_MASK_BUDGET", value: "4 GiB", known: true },
      { name: "LONGSEQ_THRAEDS", value: "1", known: false },
      { name: "LONGSEQ_TOKEN", value: null, known: true },
    ],
  );
});

t.test("a variable that is wrong is said, and the rest is still there", async (t) => {
  const environment = { LONGSEQ_THREADS: "many" };
  const wrong = 'LONGSEQ_THREADS: is "many", expected a whole number from 1 to 1024';
  const { code, stdout, stderr } = await longseq(["doctor"], environment);
  t.match({ code, stderr }, { code: 1, stderr: "" });
  t.match(stdout, "\n  binary           loads, but not with this LONGSEQ_THREADS\n");
  t.match(stdout, `\n  LONGSEQ_THREADS  many\n                   wrong: ${wrong}\n`);
  t.notMatch(stdout, "npm rebuild");
  for (const part of ["model", "driver", "scheduler", "LONGSEQ_THREADS  many"]) t.match(stdout, part);
  const json = await longseq(["doctor", "--json", "-"], environment);
  t.match(jsonLines(json.stdout)[0], { binary: { loads: true, error: wrong }, cpu: null });
  const [line] = jsonLines<{ environment: { name: string }[] }>(json.stdout);
  t.match(
    line?.environment.find(({ name }) => name === "LONGSEQ_THREADS"),
    { problem: wrong },
  );
  for (const args of [["bench"], ["bench", "--what", "layer"], ["verify", "test/vectors"]]) {
    const outcome = await longseq(args, environment);
    const name = `longseq ${args[0]}`;
    t.match(outcome, { code: 1, stdout: "", stderr: `${name}: ${wrong}\n` }, args.join(" "));
    t.equal(outcome.stderr.split("\n").length, 2, "one line");
  }
});

t.test("a variable that breaks only what comes later is said too", async (t) => {
  const cases: [name: string, value: string, problem: string][] = [
    ["LONGSEQ_DEVICE", "tpu", 'LONGSEQ_DEVICE: unknown device "tpu"'],
    ["LONGSEQ_DEVICE", "cuda:97", "device: "],
    ["LONGSEQ_RANK", "x", "rankFromEnvironment: LONGSEQ_RANK"],
    ["LONGSEQ_RANK", "0", "rankFromEnvironment: LONGSEQ_SIZE has no value"],
  ];
  for (const [name, value, problem] of cases) {
    const { code, stdout, stderr } = await longseq(["doctor"], { [name]: value });
    t.match({ code, stderr }, { code: 1, stderr: "" }, `${name}=${value}`);
    const [, said = ""] = stdout.split(new RegExp(`\n {2}${name} +${value}\n +wrong: `));
    t.match(said.split("\n")[0], problem);
    t.notMatch(stdout, "not with this");
  }
  const fits = { LONGSEQ_DEVICE: "cpu", LONGSEQ_RANK: "0", LONGSEQ_SIZE: "1" };
  const { code, stdout } = await longseq(["doctor"], fits);
  t.equal(code, 0);
  t.notMatch(stdout, "wrong: ");
});

t.test("a library's variable that leads nowhere", async (t) => {
  const folder = t.testdir({});
  const environment = { LONGSEQ_NCCL: "/no/such/path", LONGSEQ_CUBLAS: folder };
  const { stdout } = await longseq(["doctor"], environment);
  t.match(stdout, /\n {2}NCCL +absent\n +LONGSEQ_NCCL names \/no\/such\/path, which does not exist\n/);
  t.match(stdout, `LONGSEQ_CUBLAS names ${folder}, where there is no libcublasLt.so.13 or .12\n`);
});

t.test("what the system's files and tools say", async (t) => {
  t.same(parseGpus("0, NVIDIA H100 80GB HBM3, 81559, 9.0\n1, NVIDIA A100, 40960, 8.0\n"), [
    { index: 0, name: "NVIDIA H100 80GB HBM3", memoryBytes: 81559 * 2 ** 20, computeCapability: "9.0" },
    { index: 1, name: "NVIDIA A100", memoryBytes: 40960 * 2 ** 20, computeCapability: "8.0" },
  ]);
  t.same(parseGpus(""), []);
  t.same(schedulers({ RANK: "0" }), []);
  t.same(
    schedulers({ RANK: "0", WORLD_SIZE: "2", LOCAL_RANK: "0" }).map(({ name }) => name),
    ["torchrun"],
  );
});

t.test("a library is where its variable says, a file or a folder", async (t) => {
  const folder = t.testdir({ "libx.so.2": "", other: "" });
  const names = ["libx.so.3", "libx.so.2"];
  const found = (value: string) => {
    process.env.LONGSEQ_TEST_LIBRARY = value;
    return findLibrary("LONGSEQ_TEST_LIBRARY", names);
  };
  t.equal(found(folder), `${folder}/libx.so.2`);
  t.equal(found(`${folder}/other`), `${folder}/other`);
  t.equal(found(`${folder}/absent`), null);
  t.equal(findLibrary("LONGSEQ_TEST_NOTHING", names), null);
});
