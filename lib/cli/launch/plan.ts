// What `longseq launch` will run, from its options and the environment.
import { randomBytes, randomInt } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:net";
import { findHosts, type Hosts, isThisMachine } from "../../launch/hosts.ts";
import { parseAddress } from "../../launch/meeting.ts";
import { slurmCounts } from "../../launch/slurm.ts";
import { mpiKind, type Plan, type Start, type Starter } from "../../launch/starter.ts";
import { arrange, type Capacity, gpusPerHost, type Topology } from "../../launch/topology.ts";
import { type Arguments, UsageError } from "../arguments.ts";
import { quoted } from "../shell.ts";

type Environment = NodeJS.ProcessEnv;

/** In seconds. A timer of 2^31 ms and more would end at once. */
const longestGrace = 2_147_483;

/** With the token, which is also among its variables, and the time between asking ranks to end and ending them. */
type LaunchPlan = Plan & { token: string; graceMs: number };

export async function planLaunch(given: Arguments, env: Environment): Promise<LaunchPlan> {
  try {
    return await planOf(given, env);
  } catch (error) {
    // What is wrong with hosts or numbers was asked wrongly.
    const { code } = error as { code?: unknown };
    if (!(error instanceof Error) || (code !== "ERR_OPTION" && code !== "ERR_FILE")) throw error;
    throw new UsageError(error.message.replace(/^launch: /, ""));
  }
}

async function planOf(given: Arguments, env: Environment): Promise<LaunchPlan> {
  const command = given.afterDashes;
  const extra = given.positionals.slice(0, given.positionals.length - command.length);
  if (extra.length > 0) throw new UsageError(`unexpected "${extra[0]}": the command stands after --`);
  if (command.length === 0) throw new UsageError("no command given: it stands after --");
  if (command[0] === "") throw new UsageError('the command is "", expected a program');
  const grace = given.amount("grace") ?? 10;
  if (grace > longestGrace) throw new UsageError(`--grace is ${grace}, expected at most ${longestGrace}`);
  const hosts = findHosts(env, given.text("hostfile"));
  const topology = arrange(
    hosts.hosts,
    {
      ranks: given.integer("ranks", 1),
      nodes: given.integer("nodes", 1),
      ranksPerNode: given.integer("ranks-per-node", 1),
    },
    capacity(given, env, hosts),
  );
  const starter = starterOf(given, env, hosts, topology);
  const cpuBind = given.text("cpu-bind");
  if (starter === "local" && cpuBind !== undefined)
    throw new UsageError("--cpu-bind is mpiexec's and srun's, expected none where ranks are started here");
  if (starter === "srun") checkCpus(topology, env);
  const { ranks, ranksPerNode } = topology;
  const token = randomBytes(32).toString("hex");
  return {
    token,
    graceMs: 1000 * grace,
    starter,
    program: starter === "srun" ? "srun" : (given.text("mpiexec") ?? "mpiexec"),
    topology,
    hosts,
    command,
    variables: {
      ...passedOn(given.texts("env"), env),
      LONGSEQ_RENDEZVOUS: givenAddress(given) ?? (await meetingPlace(topology)),
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
function capacity(given: Arguments, env: Environment, { hosts, source }: Hosts): Capacity | undefined {
  const count = given.integer("gpus-per-node", 1);
  if (count !== undefined) return { count, from: "--gpus-per-node" };
  const isSaid = hosts.some((host) => host.slots !== undefined) || given.has("ranks-per-node");
  return isSaid ? undefined : gpusPerHost(env, source);
}

function starterOf(given: Arguments, env: Environment, hosts: Hosts, topology: Topology): Starter {
  const asked = given.choice("launcher", ["auto", "local", "mpiexec", "srun"]) ?? "auto";
  const [first] = topology.hosts;
  const isHere = topology.hosts.length === 1 && first !== undefined && isThisMachine(first.name);
  const mpi = () => mpiKind(given.text("mpiexec") ?? "mpiexec", env);
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

/** srun gives each rank a CPU, and of a job that asked for GPUs alone there is one a host. */
function checkCpus(
  { ranksPerNode = 1 }: Topology,
  { SLURM_JOB_CPUS_PER_NODE: said = "" }: Environment,
): void {
  const least = Math.min(...(slurmCounts(said) ?? []));
  if (ranksPerNode <= least) return;
  throw new UsageError(
    `${ranksPerNode} ranks a host, expected at most ${least} (the job's CPUs there by SLURM_JOB_CPUS_PER_NODE): ask Slurm for more by --exclusive, --ntasks-per-node or --cpus-per-task`,
  );
}

function passedOn(given: readonly string[], env: Environment): Record<string, string> {
  const pairs = given.map((entry) => {
    const [, name = "", value] = /^([A-Za-z_]\w*)(?:=(.*))?$/s.exec(entry) ?? [];
    if (name === "") throw new UsageError(`--env is "${entry}", expected NAME or NAME=VALUE`);
    const passed = value ?? env[name];
    if (passed === undefined) throw new UsageError(`--env ${name} has no value here, expected ${name}=VALUE`);
    return [name, passed] as const;
  });
  return Object.fromEntries(pairs);
}

function givenAddress(given: Arguments): string | undefined {
  const address = given.text("rendezvous");
  if (address === undefined || parseAddress(address)?.port) return address;
  throw new UsageError(`--rendezvous is "${address}", expected HOST:PORT with a port from 1 to 65535`);
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
export function shellText(list: readonly Start[]): string {
  const lines = list.map(({ argv, variables, rank }) => {
    const pairs = Object.entries(variables).map(([name, value]) => `${name}=${quoted(value)}`);
    return `${[...pairs, ...argv.map(quoted)].join(" ")}${rank === undefined ? "" : " &"}\n`;
  });
  return `${lines.join("")}${list.some(({ rank }) => rank !== undefined) ? "wait\n" : ""}`;
}
