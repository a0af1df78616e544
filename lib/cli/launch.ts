// `longseq launch`: starts a command once a rank, over the hosts of a job or on this machine.
import { randomBytes, randomInt } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:net";
import { hostname } from "node:os";
import { findHosts, type Hosts, isThisMachine } from "../launch/hosts.ts";
import { mpiKind, type Plan, type Start, type Starter, starts } from "../launch/starter.ts";
import { supervise } from "../launch/supervise.ts";
import { arrange, type Capacity, gpusPerHost, type Topology } from "../launch/topology.ts";
import { type Arguments, type Command, UsageError } from "./arguments.ts";

export const launch: Command = {
  usage: "[options] -- command arguments...",
  description: `Starts the command once a GPU, over the hosts of a PBS, Slurm or Cobalt job, of a file, or on this machine:
by mpiexec (Open MPI, MPICH or PALS, whichever it is), by srun within Slurm, or as processes of its own
where there is but one host. Each rank finds its number by rankFromEnvironment() and the others by
exchange(), whose address and token are passed on. Signals go to all ranks, a second one kills them;
when a rank fails all others are ended, and the exit code is that rank's.`,
  options: {
    ranks: { value: "N", help: "processes in all; default: as many as the hosts have room for" },
    nodes: { value: "N", help: "hosts to use, the first N; default: as many as the ranks need, else all" },
    "ranks-per-node": { value: "N", help: "processes on each host; default: one a GPU, else one" },
    "gpus-per-node": {
      value: "N",
      help: "default: the slots of --hostfile, the job's variables, nvidia-smi",
    },
    hostfile: { value: "FILE", help: "hosts, one a line: host, host slots=N or host:N; default: the job's" },
    launcher: { value: "NAME", help: "auto, local, mpiexec or srun" },
    mpiexec: { value: "PROGRAM", help: "which mpiexec; asks for MPI on one machine too" },
    "cpu-bind": { value: "HOW", help: "passed to mpiexec or srun, in its own words" },
    env: { value: "NAME[=VALUE]", help: "a variable for all ranks; may be given again", isMany: true },
    rendezvous: { value: "HOST:PORT", help: "where ranks meet; default: a port of rank 0's host" },
    "no-label": { help: "leave out the [rank] before each line" },
    grace: { value: "SECONDS", help: "between asking ranks to end and ending them; default 10" },
    "dry-run": { help: "print what would be run" },
  },
  async run(given) {
    const plan = await asUsage(() => planOf(given));
    const list = starts(plan, process.env);
    if (given.has("dry-run")) {
      process.stdout.write(shellText(list));
      return 0;
    }
    // Of a launch that this one stands in.
    const { LONGSEQ_RANK: _rank, LONGSEQ_LOCAL_RANK: _localRank, ...environment } = process.env;
    return await supervise(list, {
      starter: plan.starter,
      token: plan.token,
      host: hostname(),
      environment,
      isLabelled: plan.isLabelled,
      graceMs: 1000 * (given.amount("grace") ?? 10),
      stdout: process.stdout,
      stderr: process.stderr,
      say: (message) => void process.stderr.write(`longseq launch: ${message}\n`),
    });
  },
};

/** What is wrong with the hosts or numbers was asked wrongly. */
async function asUsage<T>(make: () => Promise<T>): Promise<T> {
  try {
    return await make();
  } catch (error) {
    const { code } = error as { code?: unknown };
    if (!(error instanceof Error) || (code !== "ERR_OPTION" && code !== "ERR_FILE")) throw error;
    throw new UsageError(error.message.replace(/^launch: /, ""));
  }
}

async function planOf(given: Arguments): Promise<Plan & { token: string }> {
  const command = given.afterDashes;
  const extra = given.positionals.slice(0, given.positionals.length - command.length);
  if (extra.length > 0) throw new UsageError(`unexpected "${extra[0]}": the command stands after --`);
  if (command.length === 0) throw new UsageError("no command given: it stands after --");
  given.amount("grace");
  const hosts = findHosts(process.env, given.text("hostfile"));
  const topology = arrange(
    hosts.hosts,
    {
      ranks: given.integer("ranks", 1),
      nodes: given.integer("nodes", 1),
      ranksPerNode: given.integer("ranks-per-node", 1),
    },
    capacity(given, hosts),
  );
  const starter = starterOf(given, hosts, topology);
  const cpuBind = given.text("cpu-bind");
  if (starter === "local" && cpuBind !== undefined)
    throw new UsageError("--cpu-bind is mpiexec's and srun's, expected none where ranks are started here");
  const { ranks, ranksPerNode } = topology;
  const token = randomBytes(32).toString("hex");
  return {
    token,
    starter,
    program: starter === "srun" ? "srun" : (given.text("mpiexec") ?? "mpiexec"),
    topology,
    hosts,
    command,
    variables: {
      ...passedOn(given.texts("env")),
      LONGSEQ_RENDEZVOUS: given.text("rendezvous") ?? (await meetingPlace(topology)),
      LONGSEQ_TOKEN: token,
      // For launchers that tell a rank only its number.
      LONGSEQ_SIZE: String(ranks),
      ...(ranksPerNode !== undefined && { LONGSEQ_LOCAL_SIZE: String(ranksPerNode) }),
    },
    cpuBind,
    isLabelled: !given.has("no-label"),
  };
}

/** What a user says goes before what a file says, and that before what is found. */
function capacity(given: Arguments, { hosts, source }: Hosts): Capacity | undefined {
  const count = given.integer("gpus-per-node", 1);
  if (count !== undefined) return { count, from: "--gpus-per-node" };
  const isSaid = hosts.some((host) => host.slots !== undefined) || given.has("ranks-per-node");
  return isSaid ? undefined : gpusPerHost(process.env, source);
}

function starterOf(given: Arguments, hosts: Hosts, topology: Topology): Starter {
  const asked = given.choice("launcher", ["auto", "local", "mpiexec", "srun"]) ?? "auto";
  const [first] = topology.hosts;
  const isHere = topology.hosts.length === 1 && first !== undefined && isThisMachine(first.name);
  const mpi = () => mpiKind(given.text("mpiexec") ?? "mpiexec", process.env);
  if (asked === "srun") return "srun";
  if (asked === "mpiexec" || (asked === "auto" && given.has("mpiexec"))) return mpi();
  if (asked === "local") {
    if (isHere) return "local";
    const names = topology.hosts.map(({ name }) => name).join(", ");
    throw new UsageError(`--launcher local starts ranks on this machine, expected no other host (${names})`);
  }
  if (hosts.source === "Slurm") return "srun";
  return isHere ? "local" : mpi();
}

function passedOn(given: readonly string[]): Record<string, string> {
  const pairs = given.map((entry) => {
    const [, name = "", value] = /^([A-Za-z_]\w*)(?:=(.*))?$/s.exec(entry) ?? [];
    if (name === "") throw new UsageError(`--env is "${entry}", expected NAME or NAME=VALUE`);
    const passed = value ?? process.env[name];
    if (passed === undefined) throw new UsageError(`--env ${name} has no value here, expected ${name}=VALUE`);
    return [name, passed] as const;
  });
  return Object.fromEntries(pairs);
}

/** Rank 0's host, and a port below those that systems give out by themselves; here, one that is free now. */
async function meetingPlace({ hosts }: Topology): Promise<string> {
  const [first] = hosts;
  const host =
    first === undefined || (hosts.length === 1 && isThisMachine(first.name)) ? "127.0.0.1" : first.name;
  for (let tries = 0; tries < 20; tries++) {
    const port = randomInt(20_000, 32_000);
    const server = createServer();
    try {
      await once(server.listen(port), "listening");
      await once(server.close(), "close");
      return `${host}:${port}`;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EADDRINUSE") throw error;
    }
  }
  throw new UsageError("no free port found from 20000 to 32000, expected --rendezvous HOST:PORT");
}

/** What a shell would run: ranks of this machine side by side. */
function shellText(list: readonly Start[]): string {
  const quote = (word: string) =>
    /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
  const lines = list.map(({ argv, variables, rank }) => {
    const pairs = Object.entries(variables).map(([name, value]) => `${name}=${quote(value)}`);
    return `${[...pairs, ...argv.map(quote)].join(" ")}${rank === undefined ? "" : " &"}\n`;
  });
  return `${lines.join("")}${list.some(({ rank }) => rank !== undefined) ? "wait\n" : ""}`;
}
