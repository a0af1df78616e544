// Which hosts a job may use, from its scheduler's variables, a file, or none: this machine.
import { readFileSync } from "node:fs";
import { hostname } from "node:os";
import { failure } from "../errors.ts";
import { expandNodeList } from "./slurm.ts";

export interface Host {
  readonly name: string;
  /** How many processes it is meant for, where its file says. */
  readonly slots?: number;
}

export interface Hosts {
  readonly hosts: readonly Host[];
  readonly source: "hostfile" | "PBS" | "Cobalt" | "Slurm" | "this machine";
  /** The file they were read from, and whose way of writing slots it has: what has none is everybody's. */
  readonly file?: { readonly path: string; readonly format: "plain" | "Open MPI" | "MPICH" | "mixed" };
}

type Environment = Readonly<Record<string, string | undefined>>;

/** What `--hostfile` names, else the job's of PBS, Cobalt or Slurm, else this machine alone. */
export function findHosts(env: Environment, hostfile?: string): Hosts {
  if (hostfile !== undefined)
    return { ...readHostfile(hostfile, `--hostfile ${hostfile}`), source: "hostfile" };
  for (const [variable, source] of [
    ["PBS_NODEFILE", "PBS"],
    ["COBALT_NODEFILE", "Cobalt"],
  ] as const) {
    const path = env[variable];
    if (!path) continue;
    const { hosts, file } = readHostfile(path, `${variable} ${path}`);
    // Repeated by cores or by mpiprocs, as the site has it: no count of GPUs.
    return { hosts: hosts.map(({ name }) => ({ name })), source, file: { ...file, format: "plain" } };
  }
  const [variable, list] =
    env.SLURM_JOB_NODELIST !== undefined
      ? ["SLURM_JOB_NODELIST", env.SLURM_JOB_NODELIST]
      : ["SLURM_NODELIST", env.SLURM_NODELIST];
  if (!list) return { hosts: [{ name: hostname() }], source: "this machine" };
  const names = expandNodeList(list);
  if (names === undefined)
    throw failure("ERR_OPTION", `launch: ${variable} is "${list}", expected hosts as node[01-03,7],gpu1`);
  return { hosts: names.map((name) => ({ name })), source: "Slurm" };
}

/** Lines of "host", Open MPI's "host slots=N max_slots=M" and MPICH's "host:N"; a host again adds to its slots. */
function readHostfile(path: string, what: string): Required<Pick<Hosts, "hosts" | "file">> {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    throw failure("ERR_FILE", `launch: ${what} cannot be read: ${(error as Error).message}`);
  }
  const slots = new Map<string, { count: number; isGiven: boolean }>();
  const formats = new Set<"Open MPI" | "MPICH">();
  for (const [i, line] of text.split("\n").entries()) {
    const content = line.replace(/#.*/, "").trim();
    if (content === "") continue;
    const [, name, colon, equals] =
      /^([\w.-]+)(?::(\d{1,6}))?(?:\s+slots\s*=\s*(\d{1,6}))?(?:\s+\w+\s*=\s*\w+)*$/.exec(content) ?? [];
    const count = Number(colon ?? equals ?? 1);
    if (name === undefined || (colon !== undefined && equals !== undefined) || count < 1) {
      throw failure(
        "ERR_FILE",
        `launch: ${what}, line ${i + 1} is "${content}", expected host, host slots=N or host:N`,
      );
    }
    if (colon !== undefined) formats.add("MPICH");
    if (equals !== undefined) formats.add("Open MPI");
    const before = slots.get(name);
    const isGiven = before !== undefined || colon !== undefined || equals !== undefined;
    slots.set(name, { count: (before?.count ?? 0) + count, isGiven });
  }
  if (slots.size === 0) throw failure("ERR_FILE", `launch: ${what} has no hosts, expected one a line`);
  const [format = "plain"] = formats;
  return {
    hosts: [...slots].map(([name, { count, isGiven }]) => (isGiven ? { name, slots: count } : { name })),
    file: { path, format: formats.size > 1 ? "mixed" : format },
  };
}

/** Whether a host's name is this machine's, with its domain or without. */
export function isThisMachine(name: string): boolean {
  const short = (full: string) => full.split(".")[0]?.toLowerCase();
  return name === "localhost" || name.startsWith("127.") || short(name) === short(hostname());
}
