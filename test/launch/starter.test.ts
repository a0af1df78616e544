import { PassThrough, Readable, Writable } from "node:stream";
import { setImmediate } from "node:timers/promises";
import fc from "fast-check";
import t from "tap";
import { copyLines, Sink } from "../../lib/launch/lines.ts";
import { deathIn, relabelled } from "../../lib/launch/reports.ts";
import { kindOf } from "../../lib/launch/starter.ts";

t.test("which MPI an mpiexec is of", async (t) => {
  const cases: [version: string, path: string, kind: string | undefined][] = [
    [
      "mpiexec (OpenRTE) 4.1.4\n\nReport bugs to http://www.open-mpi.org/community/help/",
      "/usr/bin/orterun",
      "Open MPI",
    ],
    ["mpiexec (Open MPI) 5.0.3", "/usr/bin/prterun", "Open MPI"],
    [
      "HYDRA build details:\n    Version:                                 4.0.2",
      "/usr/bin/mpiexec.hydra",
      "MPICH",
    ],
    ["Intel(R) MPI Library for Linux* OS, Version 2021.11", "/opt/intel/mpiexec", "MPICH"],
    ["mpiexec version 1.3.4", "/opt/cray/pals/1.3.4/bin/mpiexec", "PALS"],
    ["mpiexec version 1.3.4", "/usr/bin/mpiexec", undefined],
    ["usage: mpiexec", "/home/me/crayons/mpiexec", undefined],
  ];
  for (const [version, path, kind] of cases) t.equal(kindOf(version, path), kind, version);
});

t.test("labels of all starters become ours", async (t) => {
  t.equal(relabelled("[1,3]<stdout>:  line", "Open MPI"), "[3]   line");
  t.equal(relabelled("[prterun-vm-41@1,12]<stderr>: line", "Open MPI"), "[12]  line");
  t.equal(relabelled("[3] line", "MPICH"), "[3] line");
  t.equal(relabelled("x3005c0s31b1n0.hsn.cm.polaris.alcf.anl.gov 1: line", "PALS"), "[1] line");
  t.equal(relabelled(" 3: a 4: line", "srun"), "[3] a 4: line");
  t.equal(
    relabelled("srun: error: nid001140: task 2: Exited", "srun"),
    "srun: error: nid001140: task 2: Exited",
  );
});

t.test("what starters say of a rank's end", async (t) => {
  const cases: [line: string, rank: number, host: string, how: string, code: number][] = [
    ["[2] longseq-rank-ended 2 7 node1", 2, "node1", "ended with exit code 7", 7],
    ["longseq-rank-ended 0 137 node1.example", 0, "node1.example", "ended with SIGKILL", 137],
    ["srun: error: nid001140: task 2: Exited with exit code 3", 2, "nid001140", "ended with exit code 3", 3],
    [
      "srun: error: nid001141: tasks 4-7: Segmentation fault (core dumped)",
      4,
      "nid001141",
      "ended with SIGSEGV",
      139,
    ],
    ["srun: error: nid001141: task 5: Out Of Memory", 5, "nid001141", "ended with SIGKILL", 137],
    ["x3006c0s1b0n0.hsn: rank 0 exited with code 2", 0, "x3006c0s1b0n0.hsn", "ended with exit code 2", 2],
    [
      "x3006c0s1b0n0: rank 1 died from signal 6 and dumped core",
      1,
      "x3006c0s1b0n0",
      "ended with SIGABRT",
      134,
    ],
  ];
  for (const [line, rank, host, how, code] of cases) t.match(deathIn(line), { rank, host, how, code }, line);
  for (const line of [
    "x3006c0s1b0n0: rank 1 died from signal 15",
    "srun: error: nid001140: task 3: Terminated",
    "x3006c0s1b0n0: rank 1 exited with code 0",
    "rank 1 exited with code 2",
    "said: longseq-rank-ended 2 7 node1",
    "",
  ]) {
    t.equal(deathIn(line), undefined, line);
  }
});

t.test("whole lines, whatever pieces they come in", async (t) => {
  const source = fc.array(fc.array(fc.string({ maxLength: 12 }), { maxLength: 6 }), {
    minLength: 1,
    maxLength: 4,
  });
  const holds = fc.assert(
    fc.asyncProperty(source, fc.integer({ min: 1, max: 9 }), async (ranks, size) => {
      const texts = ranks.map((lines) => lines.map((line) => line.replaceAll("\n", "é")));
      const out = new PassThrough({ highWaterMark: 16 });
      const got: Buffer[] = [];
      const read = (async () => {
        for await (const chunk of out) got.push(chunk as Buffer);
      })();
      const sink = new Sink(out);
      await Promise.all(
        texts.map((lines, rank) => {
          const bytes = Buffer.from(lines.join("\n"));
          const pieces = Array.from({ length: Math.ceil(bytes.length / size) }, (_, i) =>
            bytes.subarray(i * size, (i + 1) * size),
          );
          return copyLines(Readable.from(pieces, { objectMode: false }), sink, (line) => `${rank}:${line}`);
        }),
      );
      out.end();
      await read;
      const lines = Buffer.concat(got).toString().split("\n").slice(0, -1);
      return texts.every((expected, rank) => {
        // An empty last line is no line.
        const kept = expected.at(-1) === "" ? expected.slice(0, -1) : expected;
        const own = lines.filter((line) => line.startsWith(`${rank}:`)).map((line) => line.slice(2));
        return JSON.stringify(own) === JSON.stringify(kept);
      });
    }),
    { numRuns: 50 },
  );
  await t.resolves(holds);
});

t.test("output that nobody reads any more is dropped, and its writers go on", async (t) => {
  const gone = new Writable({ highWaterMark: 1, write: () => undefined });
  gone.on("error", () => undefined);
  const sink = new Sink(gone);
  const source = () => Readable.from(Array.from({ length: 10 }, () => Buffer.from("line\n")));
  const waiting = [0, 1].map(() => copyLines(source(), sink, (line) => line));
  await setImmediate();
  gone.destroy(Object.assign(new Error("write EPIPE"), { code: "EPIPE" }));
  await t.resolves(Promise.all(waiting));
  await t.resolves(copyLines(source(), sink, (line) => line));
});

t.test("a line without an end does not fill the memory", async (t) => {
  const out = new PassThrough();
  let longest = 0;
  out.on("data", (chunk: Buffer) => {
    longest = Math.max(longest, chunk.length);
  });
  const endless = Readable.from(Array.from({ length: 100 }, () => Buffer.alloc(10_000, "x")));
  await copyLines(endless, new Sink(out), (line) => line);
  t.ok(longest > 0 && longest < 80_000);
});
