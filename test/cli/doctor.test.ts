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
