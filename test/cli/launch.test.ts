import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { chmodSync, readFileSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import t, { type Test } from "tap";
import { parseArguments, UsageError } from "../../lib/cli/arguments.ts";
import { planLaunch, shellText } from "../../lib/cli/launch/plan.ts";
import { launch as command } from "../../lib/cli/launch.ts";
import { starts } from "../../lib/launch/starter.ts";
import type { Place } from "../support/child/place.ts";
import { compiled } from "../support/child.ts";
import { entry, longseq } from "../support/command-line.ts";
import { nodeFiles } from "../support/jobs.ts";
import { slurmBatch } from "../support/recorded-jobs.ts";

// Open MPI refuses root, as which containers run, without both.
const asRoot = { OMPI_ALLOW_RUN_AS_ROOT: "1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: "1" };

const launch = (args: string[], environment: NodeJS.ProcessEnv = {}) =>
  longseq(["launch", ...args], { ...asRoot, ...environment });

/** What would be run, without what is another each time and what Open MPI is told of this machine's variables. */
async function dryRun(args: string[], env: NodeJS.ProcessEnv = {}): Promise<string> {
  const given = parseArguments([...args, "--", "node", "train.js", "a b"], command.options);
  return shellText(starts(await planLaunch(given, env), env)).replaceAll(
    /LONGSEQ_RENDEZVOUS=(\S+):\d{5} LONGSEQ_TOKEN=[\da-f]{64} /g,
    "MEET=$1 ",
  );
}

/** The lines of a rank, without its label. */
const linesOf = (rank: number, output: string) =>
  output
    .split("\n")
    .flatMap((line) => (line.startsWith(`[${rank}] `) ? [line.slice(`[${rank}] `.length)] : []));

t.test("what would be run in each kind of job", async (t) => {
  const answers = (text: string) => `#!/bin/sh\necho '${text}'\n`;
  const folder = t.testdir({
    pals: { mpiexec: answers("mpiexec version 1.3.4") },
    openmpi: answers("mpiexec (OpenRTE) 4.1.4"),
    mpich: answers("HYDRA build details:"),
    unknown: answers("mpiexec of another kind"),
    slots: "alpha slots=4\nbeta slots=4\n",
  });
  const program = (name: string) => {
    chmodSync(join(folder, name), 0o755);
    return join(folder, name);
  };
  const [pals, openMpi, mpich, unknown] = ["pals/mpiexec", "openmpi", "mpich", "unknown"].map(program);
  const nodes = nodeFiles(join(folder, "nodes"));
  const four = "LONGSEQ_SIZE=8 LONGSEQ_LOCAL_SIZE=4";
  const watch = (variable: string) =>
    `sh -c '"$@"; code=$?; [ $code -eq 0 ] || echo "longseq-rank-ended $${variable} $code $(hostname)" >&2; exit $code' rank`;
  const passed = "-x LONGSEQ_LOCAL_SIZE -x LONGSEQ_RENDEZVOUS -x LONGSEQ_SIZE -x LONGSEQ_TOKEN";
  const cases: [what: string, args: string[], env: NodeJS.ProcessEnv, expected: string][] = [
    [
      "Polaris",
      ["--gpus-per-node", "4", "--mpiexec", `${pals}`, "--cpu-bind", "depth"],
      nodes.pbs,
      `MEET=x3006c0s13b0n0.hsn.cm.polaris.alcf.anl.gov ${four} ${pals} --envall --hostfile ${nodes.pbs.PBS_NODEFILE} -n 8 --ppn 4 --cpu-bind depth --line-buffer --label node train.js 'a b'\n`,
    ],
    [
      "Perlmutter",
      [],
      slurmBatch,
      `MEET=nid001140 ${four} srun -N 2 -n 8 --ntasks-per-node=4 --export=ALL --kill-on-bad-exit=1 --quit-on-interrupt -u -l node train.js 'a b'\n`,
    ],
    [
      "one node of Perlmutter's two",
      ["--nodes", "1", "--no-label"],
      slurmBatch,
      "MEET=nid001140 LONGSEQ_SIZE=4 LONGSEQ_LOCAL_SIZE=4 srun -N 1 -n 4 --ntasks-per-node=4 --nodelist=nid001140 --export=ALL --kill-on-bad-exit=1 --quit-on-interrupt -u node train.js 'a b'\n",
    ],
    [
      "ThetaGPU",
      ["--gpus-per-node", "8", "--mpiexec", `${openMpi}`],
      nodes.cobalt,
      `MEET=thetagpu06 LONGSEQ_SIZE=16 LONGSEQ_LOCAL_SIZE=8 ${openMpi} --hostfile ${nodes.cobalt.COBALT_NODEFILE} ${passed} -n 16 --map-by ppr:8:node:OVERSUBSCRIBE --bind-to none --tag-output ${watch("OMPI_COMM_WORLD_RANK")} node train.js 'a b'\n`,
    ],
    [
      "a file of hosts in Open MPI's way, for MPICH",
      ["--hostfile", join(folder, "slots"), "--mpiexec", `${mpich}`, "--env", "NAME=it's"],
      {},
      `NAME='it'\\''s' MEET=alpha ${four} ${mpich} -genvall -hosts alpha:4,beta:4 -n 8 -ppn 4 -prepend-rank ${watch("PMI_RANK")} node train.js 'a b'\n`,
    ],
    [
      "this machine",
      ["--ranks", "2", "--ranks-per-node", "2", "--env", "NAME"],
      { NAME: "here" },
      `${[0, 1].map((rank) => `NAME=here MEET=127.0.0.1 LONGSEQ_SIZE=2 LONGSEQ_LOCAL_SIZE=2 LONGSEQ_RANK=${rank} LONGSEQ_LOCAL_RANK=${rank} node train.js 'a b' &\n`).join("")}wait\n`,
    ],
  ];
  const got = await Promise.all(cases.map(([, args, env]) => dryRun(args, env)));
  for (const [i, [what, , , expected]] of cases.entries()) t.equal(got[i], expected, what);

  const refused: [args: string[], message: RegExp, env?: NodeJS.ProcessEnv][] = [
    [["--ranks", "2"], /no command given: it stands after --/],
    [["--ranks", "2", "node", "x.js"], /unexpected "node": the command stands after --/],
    [["--ranks", "3", "--ranks-per-node", "2", "--", "true"], /^--ranks is 3, expected a multiple of 2/],
    [["--nodes", "2", "--", "true"], /--nodes is 2, expected at most 1/],
    [["--env", "1=2", "--", "true"], /--env is "1=2", expected NAME or NAME=VALUE/],
    [["--env", "LONGSEQ_TEST_ABSENT", "--", "true"], /has no value here/],
    [["--cpu-bind", "core", "--", "true"], /--cpu-bind is mpiexec's and srun's/],
    [["--hostfile", "/absent", "--", "true"], /^--hostfile \/absent cannot be read: ENOENT/],
    [
      ["--", "true"],
      /^4 ranks a host, expected at most 1 \(the job's CPUs there by SLURM_JOB_CPUS_PER_NODE\): ask Slurm/,
      { ...slurmBatch, SLURM_JOB_CPUS_PER_NODE: "8,1" },
    ],
    [["--launcher", "local", "--", "true"], /expected no other host \(nid001140, nid001141\)/, slurmBatch],
    [["--launcher", "ssh", "--", "true"], /--launcher is "ssh"/],
    [["--mpiexec", `${unknown}`, "--", "true"], /says "mpiexec of another kind", expected Open MPI/],
    [["--mpiexec", "/absent", "--", "true"], /\/absent cannot be run/],
    [["--grace", "soon", "--", "true"], /--grace is "soon"/],
    [["--grace", "3000000", "--", "true"], /--grace is 3000000, expected at most 2147483/],
    [
      ["--ranks", "9007199254740991", "--ranks-per-node", "9007199254740991", "--", "true"],
      /^9007199254740991 ranks on a host, expected at most 32768$/,
    ],
    [["--gpus-per-node", "40000", "--", "true"], /^40000 ranks on a host/],
    [["--", ""], /^the command is "", expected a program$/],
    [
      ["--rendezvous", "here:99999", "--", "true"],
      /^--rendezvous is "here:99999", expected HOST:PORT with a port/,
    ],
    [["--rendezvous", "here:0", "--", "true"], /^--rendezvous is "here:0"/],
    [["--rendezvous", "here", "--", "true"], /^--rendezvous is "here"/],
  ];
  for (const [args, message, env = {}] of refused) {
    const plan = async () => planLaunch(parseArguments(args, command.options), env);
    await t.rejects(plan(), { constructor: UsageError, message }, args.join(" "));
  }
});

t.test("dry runs and what is asked wrongly, on the command line", async (t) => {
  const [dry, wrong] = await Promise.all([
    launch(["--launcher", "srun", "--dry-run", "--", "hostname", "--help"]),
    launch(["--nodes", "2", "--launcher", "local", "--", "true"]),
  ]);
  t.match(dry, { code: 0, stdout: / srun -N 1 .* -l hostname --help\n$/, stderr: "" });
  t.match(wrong, { code: 2, stdout: "", stderr: /^longseq launch: --nodes is 2, expected at most 1/ });
});

/** Four processes meet, and each knows its place. */
async function fourMeet(t: Test, args: string[], source: string): Promise<void> {
  const command = [
    "--ranks",
    "4",
    "--ranks-per-node",
    "4",
    ...args,
    "--",
    process.execPath,
    compiled("place.ts"),
  ];
  const { code, stdout, stderr } = await launch(command);
  t.equal(code, 0, stderr);
  const places = [0, 1, 2, 3].map((rank) => JSON.parse(linesOf(rank, stdout).join("")) as Place);
  for (const [rank, place] of places.entries()) {
    t.match(place, { rank, size: 4, localRank: rank, localSize: 4, source });
    t.strictSame(place.processes, places[0]?.processes);
    t.strictSame(
      place.id,
      Array.from({ length: 128 }, (_, i) => 255 - i),
    );
  }
  t.equal(new Set(places[0]?.processes).size, 4, "four processes");
}

const allEnds: [end: string, code: number, how: string][] = [
  ["exit 7", 7, "exit code 7"],
  ["kill -9 $$", 137, "SIGKILL"],
];

/** Rank 2 fails, and the others would run on for a minute. */
async function rankFails(t: Test, args: string[], rank: string, ends = allEnds): Promise<void> {
  const script = (end: string) => `[ "$${rank}" = 2 ] && { echo "last words"; ${end}; }; sleep 60`;
  for (const [end, code, how] of ends) {
    const command = ["--ranks", "3", "--ranks-per-node", "3", ...args, "--", "sh", "-c", script(end)];
    const outcome = await launch(command);
    t.equal(outcome.code, code, outcome.stderr);
    t.match(outcome.stderr, `longseq launch: rank 2 on ${hostname()} ended with ${how}; ending the others\n`);
    t.strictSame(linesOf(2, outcome.stdout), ["last words"]);
  }
}

t.test("four processes of this machine meet", (t) => fourMeet(t, [], "longseq"));

t.test("a rank that fails ends all", (t) => rankFails(t, [], "LONGSEQ_RANK"));

for (const [program, source, rank] of [
  ["mpiexec.openmpi", "Open MPI", "OMPI_COMM_WORLD_RANK"],
  ["mpiexec.mpich", "MPICH", "PMI_RANK"],
] as const) {
  const isAbsent = spawnSync(program, ["--version"]).error !== undefined;
  const options = isAbsent ? { skip: `${program} is not installed` } : {};
  t.test(`${program}: four processes meet, and one that fails ends all`, options, async (t) => {
    await fourMeet(t, ["--mpiexec", program], source);
    await rankFails(t, ["--mpiexec", program], rank, allEnds.slice(0, 1));
  });
}

t.test("output keeps its stream, its bytes and its lines", async (t) => {
  const script = "printf 'o\\377ut\\nno end'; printf 'err\\n' >&2; cat";
  const { code, stdout, stderr } = await launch([
    "--ranks",
    "2",
    "--ranks-per-node",
    "2",
    "--",
    "sh",
    "-c",
    script,
  ]);
  t.equal(code, 0);
  t.strictSame(stdout.split("\n").sort(), ["", "[0] no end", "[0] o\ufffdut", "[1] no end", "[1] o\ufffdut"]);
  t.strictSame(stderr.split("\n").sort(), ["", "[0] err", "[1] err"]);
  const plain = await launch([
    "--ranks",
    "2",
    "--ranks-per-node",
    "2",
    "--no-label",
    "--",
    "echo",
    "x",
    "--help",
  ]);
  t.match(plain, { code: 0, stdout: "x --help\nx --help\n", stderr: "" });
  const absent = await launch(["--ranks", "2", "--ranks-per-node", "2", "--", "/absent/program"]);
  t.match(absent, { code: 127, stderr: /rank \d on .* cannot be started: spawn \/absent\/program ENOENT/ });
});

/** A launch that is under way: every rank has said "ready". */
async function started(
  script: string,
  args: string[] = [],
): Promise<{ child: ChildProcess; output: () => string }> {
  const command = ["launch", "--ranks", "2", "--ranks-per-node", "2", ...args, "--", "sh", "-c", script];
  const env = { ...process.env, NODE_OPTIONS: "" };
  const child = spawn(process.execPath, [entry, ...command], { env, stdio: ["ignore", "pipe", "pipe"] });
  let output = "";
  child.stderr.on("data", (chunk) => {
    output += chunk;
  });
  await new Promise<void>((ready) => {
    child.stdout.on("data", (chunk) => {
      output += chunk;
      if (output.split("ready").length > 2) ready();
    });
  });
  return { child, output: () => output };
}

/** Whether a process runs: one that has ended may wait for its parent to look. */
const isAlive = (pid: number) => {
  try {
    return !/\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, "latin1"));
  } catch {
    return false;
  }
};
/** Of processes that a rank named with "pid N". */
const named = (output: string) => [...output.matchAll(/pid (\d+)/g)].map(([, pid]) => Number(pid));

t.test("signals reach all ranks, and what they started", async (t) => {
  const signals = [
    ["SIGINT", 130],
    ["SIGTERM", 143],
    ["SIGHUP", 129],
  ] as const;
  const test = async ([signal, code]: (typeof signals)[number]) => {
    const word = signal.slice(3);
    const script = `trap 'echo got ${word}; exit 0' ${word}; sleep 60 & echo pid $!; echo ready; wait`;
    const { child, output } = await started(script);
    child.kill(signal);
    t.strictSame(await once(child, "close"), [code, null], signal);
    for (const rank of [0, 1]) t.ok(linesOf(rank, output()).includes(`got ${word}`));
    t.equal(named(output()).length, 2);
    t.notOk(named(output()).some(isAlive), "nothing is left");
  };
  await Promise.all(signals.map(test));
});

t.test("a second signal ends ranks that will not", async (t) => {
  const { child, output } = await started("trap '' TERM; echo pid $$; echo ready; sleep 60; sleep 60");
  child.kill("SIGTERM");
  while (!output().includes("a second one ends all")) await once(child.stderr ?? child, "data");
  child.kill("SIGTERM");
  t.strictSame(await once(child, "close"), [143, null]);
  t.notOk(named(output()).some(isAlive));
});

t.test("ranks that do not end when another has failed are ended after the grace", async (t) => {
  const script = `echo pid $$; echo ready
if [ $LONGSEQ_RANK = 0 ]; then trap '' TERM; setsid sleep 60 & echo pid $!; sleep 60; sleep 60; fi; sleep 0.5; exit 3`;
  const { child, output } = await started(script, ["--grace", "0.5"]);
  t.strictSame(await once(child, "close"), [3, null]);
  t.match(output(), /rank 1 on .* ended with exit code 3; ending the others/);
  t.equal(named(output()).length, 3);
  t.notOk(named(output()).some(isAlive), "not even one in a session of its own");
});

t.test("a process that has left everything does not hold the launch", async (t) => {
  const stray = "env -i setsid sh -c 'echo pid $$; exec sleep 60' &";
  const { child, output } = await started(`${stray} sleep 0.5; echo ready`);
  t.strictSame(await once(child, "close"), [0, null]);
  t.equal(named(output()).length, 2);
  for (const pid of named(output())) process.kill(pid, "SIGKILL");
});

t.test("more ranks than files that may be open", async (t) => {
  const words = ["-c", 'ulimit -n 48; exec "$@"', "sh", process.execPath, entry, "launch", "--ranks", "30"];
  const options = { env: { ...process.env, NODE_OPTIONS: "" }, encoding: "utf8" } as const;
  const { status, stderr } = spawnSync(
    "sh",
    [...words, "--ranks-per-node", "30", "--", "sleep", "60"],
    options,
  );
  t.equal(status, 126);
  t.match(
    stderr,
    /^longseq launch: rank \d+ on \S+ cannot be started: spawn sleep EMFILE; ending the others\n$/,
  );
});

t.test("a reader that has seen enough ends the launch", async (t) => {
  const { child, output } = await started("echo pid $$; echo ready; while :; do echo more; done");
  child.stdout?.destroy();
  await once(child, "exit");
  const until = performance.now() + 5000;
  while (named(output()).some(isAlive) && performance.now() < until)
    await new Promise((done) => setTimeout(done, 20));
  t.notOk(named(output()).some(isAlive));
});
