// How many ranks, on which hosts.
import { spawnSync } from "node:child_process";
import { failure } from "../errors.ts";
import type { Host, Hosts } from "./hosts.ts";
import { mostRanks } from "./meeting.ts";
import { slurmCounts } from "./slurm.ts";

export interface Wanted {
  readonly ranks?: number | undefined;
  readonly nodes?: number | undefined;
  readonly ranksPerNode?: number | undefined;
}

export interface Topology {
  readonly ranks: number;
  /** Those that are used, in the order of their ranks. */
  readonly hosts: readonly Host[];
  /** undefined where hosts have different slots and each is filled. */
  readonly ranksPerNode: number | undefined;
}

/** How many ranks a host is for, and what says so; undefined where nothing does. */
export interface Capacity {
  readonly count: number;
  readonly from: string;
}

type Environment = Readonly<Record<string, string | undefined>>;

/** Linux numbers so many processes, unless a system is told to have more. */
const mostOfHost = 2 ** 15;

/** GPUs of each host: the job's variables, else those that this machine has, which the others are taken to have too. */
export function gpusPerHost(env: Environment, source: Hosts["source"]): Capacity | undefined {
  for (const name of source === "Slurm" ? ["SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE"] : []) {
    // "4", or by type: "a100:4".
    const count = slurmCounts(env[name]?.split(":").at(-1) ?? "")?.[0];
    if (count !== undefined && count > 0) return { count, from: name };
  }
  const visible = env.CUDA_VISIBLE_DEVICES;
  const { status, stdout } = spawnSync("nvidia-smi", ["-L"], {
    env: { ...env },
    encoding: "utf8",
    timeout: 10_000,
  });
  const found = status === 0 ? stdout.split("\n").filter((line) => /^GPU \d+:/.test(line)).length : 0;
  const named = visible === undefined ? found : visible.split(",").filter((one) => one.trim() !== "").length;
  const count = Math.min(found, named);
  return count > 0 ? { count, from: named < found ? "CUDA_VISIBLE_DEVICES" : "nvidia-smi -L" } : undefined;
}

/**
 * Any of the three numbers gives the others; what is not given is all hosts, and on each as many as it has room for, or
 * one. Ranks alone fill as few hosts as hold them, evenly.
 */
export function arrange(hosts: readonly Host[], wanted: Wanted, gpus: Capacity | undefined): Topology {
  const slots = hosts.map((host) => host.slots);
  const isUneven = slots.some((count) => count !== slots[0]);
  if (isUneven && gpus === undefined && Object.values(wanted).every((value) => value === undefined)) {
    const ranks = slots.reduce<number>((sum, count) => sum + (count ?? 1), 0);
    checkCounts(Math.max(...slots.map((count) => count ?? 1)), ranks);
    return { ranks, hosts, ranksPerNode: undefined };
  }
  const least = Math.min(...slots.map((count) => count ?? Number.POSITIVE_INFINITY));
  const room = gpus ?? (Number.isFinite(least) ? { count: least, from: "slots" } : undefined);
  const { ranks, nodes = nodesFor(hosts.length, wanted, room) } = wanted;
  if (nodes > hosts.length)
    throw mismatch(
      `${wanted.nodes === undefined ? `${ranks} ranks need` : "--nodes is"} ${nodes}${wanted.nodes === undefined ? " hosts" : ""}, expected at most ${hosts.length} (the hosts there are)`,
    );
  const each = wanted.ranksPerNode ?? (ranks === undefined ? (room?.count ?? 1) : ranks / nodes);
  if (!Number.isInteger(each))
    throw mismatch(`--ranks is ${ranks}, expected a multiple of ${nodes} (the hosts)`);
  if (ranks !== undefined && ranks !== nodes * each)
    throw mismatch(`--ranks is ${ranks}, expected ${nodes * each} (${nodes} hosts with ${each} each)`);
  if (wanted.ranksPerNode === undefined && room !== undefined && each > room.count) {
    throw mismatch(
      `--ranks is ${ranks}, expected at most ${nodes * room.count} (${room.count} a host by ${room.from}); --ranks-per-node ${each} asks for more on each`,
    );
  }
  checkCounts(each, nodes * each);
  return { ranks: nodes * each, hosts: hosts.slice(0, nodes), ranksPerNode: each };
}

/** What no host can run, and ranks that could not meet. */
function checkCounts(each: number, ranks: number): void {
  if (each > mostOfHost) throw mismatch(`${each} ranks on a host, expected at most ${mostOfHost}`);
  if (ranks > mostRanks) throw mismatch(`${ranks} ranks in all, expected at most ${mostRanks}`);
}

function nodesFor(hosts: number, { ranks, ranksPerNode }: Wanted, room: Capacity | undefined): number {
  if (ranks === undefined) return hosts;
  if (ranksPerNode !== undefined) {
    if (ranks % ranksPerNode === 0) return ranks / ranksPerNode;
    throw mismatch(`--ranks is ${ranks}, expected a multiple of ${ranksPerNode} (--ranks-per-node)`);
  }
  return room === undefined ? Math.min(hosts, ranks) : Math.min(hosts, Math.ceil(ranks / room.count));
}

const mismatch = (what: string) => failure("ERR_OPTION", `launch: ${what}`);
