// The command that starts the ranks: mpiexec's of each kind, srun's, or one process a rank on this machine.
import { spawnSync } from "node:child_process";
import { existsSync, realpathSync } from "node:fs";
import { join } from "node:path";
import { failure } from "../errors.ts";
import type { Hosts } from "./hosts.ts";
import type { Topology } from "./topology.ts";

export type Starter = "local" | "Open MPI" | "MPICH" | "PALS" | "srun";

type Mpi = Exclude<Starter, "local" | "srun">;

export interface Plan {
  readonly starter: Starter;
  /** The program of an MPI: its name or path. */
  readonly program: string;
  readonly topology: Topology;
  readonly hosts: Hosts;
  readonly command: readonly string[];
  /** What the ranks get beyond what this process has. */
  readonly variables: Readonly<Record<string, string>>;
  readonly cpuBind?: string | undefined;
  readonly isLabelled: boolean;
}

/** One process to be started here: of a rank, or of what starts the ranks. */
export interface Start {
  readonly argv: readonly string[];
  readonly variables: Readonly<Record<string, string>>;
  /** Where the process is a rank itself. */
  readonly rank?: number;
}

/** Which MPI a program is of, as it says itself, or by where it lies. */
export function mpiKind(program: string, env: NodeJS.ProcessEnv): Mpi {
  const { stdout, stderr, error } = spawnSync(program, ["--version"], { encoding: "utf8", timeout: 20_000 });
  if (error)
    throw failure(
      "ERR_OPTION",
      `launch: ${program} cannot be run, expected an MPI's mpiexec: ${error.message}`,
    );
  const said = `${stdout}\n${stderr}`;
  const folders = program.includes("/") ? [""] : (env.PATH ?? "").split(":").filter(Boolean);
  const path = folders.map((folder) => join(folder, program)).find((one) => existsSync(one));
  const kind = kindOf(said, path === undefined ? program : realpathSync(path));
  if (kind !== undefined) return kind;
  const first = said.trim().split("\n")[0] ?? "";
  throw failure(
    "ERR_OPTION",
    `launch: ${program} --version says "${first}", expected Open MPI, MPICH (Hydra) or PALS`,
  );
}

export function kindOf(version: string, path: string): Mpi | undefined {
  if (/open ?mpi|open ?rte|prrte/i.test(version)) return "Open MPI";
  // MPICH's own text, MVAPICH's and Intel MPI's have the name of its process manager.
  if (/hydra|intel\(r\) mpi/i.test(version)) return "MPICH";
  // PALS lies in /opt/cray/pals, whatever it says of itself.
  return /\bpals\b|\bcray\b/i.test(`${version} ${path}`) ? "PALS" : undefined;
}

/**
 * Open MPI and MPICH do not tell on which host which rank failed, and MPICH lets the others run on when one exits with an
 * error. A shell stays by each rank and says it; PALS and Slurm do so themselves.
 */
const watch = (rankVariable: string) =>
  `"$@"; code=$?; [ $code -eq 0 ] || echo "longseq-rank-ended $${rankVariable} $code $(hostname)" >&2; exit $code`;

/** Names of variables that Open MPI passes on only when told to; the others pass everything. */
const passed = /^(LONGSEQ_|NCCL_|CUDA_|OMP_|PATH$|LD_LIBRARY_PATH$|NODE_|https?_proxy$|no_proxy$)/;

export function starts(plan: Plan, env: NodeJS.ProcessEnv): Start[] {
  const { topology, variables, command, starter } = plan;
  if (starter !== "local") return [{ argv: [plan.program, ...argumentsOf(plan, env)], variables }];
  const { ranks } = topology;
  return Array.from({ length: ranks }, (_, rank) => ({
    argv: command,
    variables: {
      ...variables,
      LONGSEQ_RANK: String(rank),
      LONGSEQ_SIZE: String(ranks),
      LONGSEQ_LOCAL_RANK: String(rank),
      LONGSEQ_LOCAL_SIZE: String(ranks),
    },
    rank,
  }));
}

function argumentsOf(plan: Plan, env: NodeJS.ProcessEnv): string[] {
  const { starter, topology, command, cpuBind, isLabelled } = plan;
  const { ranks, ranksPerNode, hosts } = topology;
  const watched = (rankVariable: string) => ["sh", "-c", watch(rankVariable), "rank", ...command];
  switch (starter) {
    case "PALS":
      return [
        "--envall",
        ...hostArguments(plan, "plain", ["--hosts", hosts.map(({ name }) => name).join(",")]),
        ...["-n", String(ranks)],
        ...(ranksPerNode === undefined ? [] : ["--ppn", String(ranksPerNode)]),
        ...(cpuBind === undefined ? [] : ["--cpu-bind", cpuBind]),
        "--line-buffer",
        ...(isLabelled ? ["--label"] : []),
        ...command,
      ];
    case "MPICH":
      return [
        "-genvall",
        ...hostArguments(plan, "MPICH", ["-hosts", hostList(plan)]),
        ...["-n", String(ranks)],
        ...(ranksPerNode === undefined ? [] : ["-ppn", String(ranksPerNode)]),
        ...(cpuBind === undefined ? [] : ["-bind-to", cpuBind]),
        ...(isLabelled ? ["-prepend-rank"] : []),
        ...watched("PMI_RANK"),
      ];
    case "Open MPI": {
      const names = Object.keys({ ...env, ...plan.variables }).filter(
        (name) => passed.test(name) || name in plan.variables,
      );
      return [
        ...hostArguments(plan, "Open MPI", ["--host", hostList(plan)]),
        ...names.sort().flatMap((name) => ["-x", name]),
        ...["-n", String(ranks)],
        // A line of a file without slots counts one, or its cores; GPUs are what is counted here.
        ...["--map-by", ranksPerNode === undefined ? "slot" : `ppr:${ranksPerNode}:node:OVERSUBSCRIBE`],
        // It would bind each rank to one core, and the thread pool with it.
        ...["--bind-to", cpuBind ?? "none"],
        ...(isLabelled ? ["--tag-output"] : []),
        ...watched("OMPI_COMM_WORLD_RANK"),
      ];
    }
    default:
      return [
        ...["-N", String(hosts.length), "-n", String(ranks)],
        ...(ranksPerNode === undefined ? [] : [`--ntasks-per-node=${ranksPerNode}`]),
        ...(hosts.length < plan.hosts.hosts.length
          ? [`--nodelist=${hosts.map(({ name }) => name).join(",")}`]
          : []),
        ...(cpuBind === undefined ? [] : [`--cpu-bind=${cpuBind}`]),
        ...["--export=ALL", "--kill-on-bad-exit=1", "--quit-on-interrupt", "-u"],
        ...(isLabelled ? ["-l"] : []),
        ...command,
      ];
  }
}

/** The file as it is, where this MPI can read it; the hosts themselves where not; nothing within Slurm or on one machine. */
function hostArguments({ hosts }: Plan, format: "plain" | "Open MPI" | "MPICH", list: string[]): string[] {
  if (hosts.file === undefined) return [];
  const isReadable = hosts.file.format === "plain" || hosts.file.format === format;
  return isReadable ? ["--hostfile", hosts.file.path] : list;
}

const hostList = ({ topology: { hosts, ranksPerNode } }: Plan) =>
  hosts.map(({ name, slots }) => `${name}:${ranksPerNode ?? slots ?? 1}`).join(",");
