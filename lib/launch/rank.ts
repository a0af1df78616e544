// Which rank this process is, from what its launcher left in the environment.
import { failure, wrongKind } from "../errors.ts";
import { slurmCounts } from "./slurm.ts";

/** Which of the processes of a job this is. */
export interface Rank {
  /** 0 for the first. */
  rank: number;
  /** How many there are. */
  size: number;
  /** Among those of the same host; also the number of its GPU, where each has one. */
  localRank: number;
  /** How many are on this host. */
  localSize: number;
  /** Whose variables said so; "none" where nothing did. */
  source: "longseq" | "torchrun" | "Open MPI" | "PALS" | "MPICH" | "PMI" | "PMIx" | "Slurm" | "none";
}

type Environment = Readonly<Record<string, string | undefined>>;

interface Launcher {
  readonly source: Rank["source"];
  isPresent(env: Environment): boolean;
  /** Names of variables, the first that is set counts. Two that name a rank must agree; a size may be the whole job's. */
  readonly rank: readonly string[];
  readonly size: readonly string[];
  readonly localRank: readonly string[];
  readonly localSize: readonly string[];
  /** Where it takes more than reading a number. */
  countHere?(env: Environment): number | undefined;
}

const isSet = (env: Environment, name: string) => env[name] !== undefined && env[name] !== "";

const torchrun: Launcher = {
  source: "torchrun",
  // RANK or WORLD_SIZE alone could be anybody's.
  isPresent: (env) => ["RANK", "WORLD_SIZE", "LOCAL_RANK"].every((name) => isSet(env, name)),
  rank: ["RANK"],
  size: ["WORLD_SIZE"],
  localRank: ["LOCAL_RANK"],
  localSize: ["LOCAL_WORLD_SIZE"],
};

/**
 * In the order in which one starts another, innermost first: mpiexec starts its daemons by srun, whose variables reach
 * the ranks too but count daemons; torchrun may stand on either. Our own come first, since a user may set them.
 */
const launchers: readonly Launcher[] = [
  {
    source: "longseq",
    isPresent: (env) => isSet(env, "LONGSEQ_RANK"),
    rank: ["LONGSEQ_RANK"],
    size: [],
    localRank: [],
    localSize: [],
  },
  { ...torchrun, isPresent: (env) => isSet(env, "TORCHELASTIC_RUN_ID") && torchrun.isPresent(env) },
  {
    source: "Open MPI",
    isPresent: (env) => isSet(env, "OMPI_COMM_WORLD_RANK"),
    rank: ["OMPI_COMM_WORLD_RANK"],
    size: ["OMPI_COMM_WORLD_SIZE"],
    localRank: ["OMPI_COMM_WORLD_LOCAL_RANK"],
    localSize: ["OMPI_COMM_WORLD_LOCAL_SIZE"],
  },
  {
    source: "MPICH",
    isPresent: (env) => isSet(env, "PMI_RANK") && isSet(env, "MPI_LOCALRANKID"),
    rank: ["PMI_RANK"],
    size: ["PMI_SIZE"],
    localRank: ["MPI_LOCALRANKID"],
    localSize: ["MPI_LOCALNRANKS"],
  },
  {
    source: "PALS",
    isPresent: (env) => isSet(env, "PALS_RANKID"),
    rank: ["PALS_RANKID", "PMI_RANK"],
    size: ["PMI_SIZE"],
    localRank: ["PALS_LOCAL_RANKID", "PMI_LOCAL_RANK"],
    localSize: ["PALS_LOCAL_SIZE", "PMI_LOCAL_SIZE"],
  },
  {
    source: "Slurm",
    isPresent: inSlurmStep,
    // The plugins of srun --mpi set the others too.
    rank: ["SLURM_PROCID", "PMI_RANK", "PMIX_RANK"],
    size: ["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"],
    localRank: ["SLURM_LOCALID"],
    localSize: [],
    countHere: (env) =>
      slurmCounts(env.SLURM_STEP_TASKS_PER_NODE ?? env.SLURM_TASKS_PER_NODE ?? "")?.[
        Number(env.SLURM_NODEID)
      ],
  },
  {
    source: "PMI",
    isPresent: (env) => isSet(env, "PMI_RANK"),
    rank: ["PMI_RANK"],
    size: ["PMI_SIZE"],
    localRank: ["PMI_LOCAL_RANK"],
    localSize: ["PMI_LOCAL_SIZE"],
  },
  {
    // As prrte starts it. PMIx keeps all but the rank for those who ask its server.
    source: "PMIx",
    isPresent: (env) => isSet(env, "PMIX_RANK"),
    rank: ["PMIX_RANK"],
    size: [],
    localRank: [],
    localSize: [],
  },
  // Without torchrun's own mark these may be what a shell has exported, for all ranks alike: believed last.
  torchrun,
];

/** A batch script and salloc's shell also have a SLURM_PROCID, of 0. Their steps, if any, are numbered from here down. */
const firstSpecialStep = 0xfffffff0;

function inSlurmStep(env: Environment): boolean {
  const step = env.SLURM_STEP_ID ?? env.SLURM_STEPID;
  return isSet(env, "SLURM_PROCID") && /^\d+$/.test(step ?? "") && Number(step) < firstSpecialStep;
}

/**
 * Which rank this process is, of how many, in all and on its host, as the launcher that started it says: `longseq
 * launch`, torchrun, Open MPI, MPICH (Hydra), PALS (Cray), a step of Slurm, PMI or PMIx. Where several left variables
 * the innermost counts: mpiexec within srun, torchrun within either. A batch script of Slurm is no rank. Where nothing
 * is set this is rank 0 of 1.
 *
 * `LONGSEQ_RANK`, with `LONGSEQ_SIZE`, `LONGSEQ_LOCAL_RANK` and `LONGSEQ_LOCAL_SIZE`, goes before all others; without it
 * the other three fill in what a launcher does not tell.
 *
 * @param env variables as in `process.env`, which is the default.
 * @throws `ERR_OPTION`, naming the variable: no whole number, a rank that is not below its size, two variables of one
 * launcher that contradict each other, or one that is missing.
 * @example
 * rankFromEnvironment({ PMI_RANK: "5", PMI_SIZE: "8", MPI_LOCALRANKID: "1", MPI_LOCALNRANKS: "4" }).localRank; // 1
 * rankFromEnvironment({}).size; // 1
 */
export function rankFromEnvironment(env: Readonly<Record<string, string | undefined>> = process.env): Rank {
  if (typeof env !== "object" || env === null)
    throw wrongKind("rankFromEnvironment: env", "an object of variables", env);
  const found = launchers.find((launcher) => launcher.isPresent(env));
  if (found === undefined) return { rank: 0, size: 1, localRank: 0, localSize: 1, source: "none" };
  const [rank, rankName] = required(env, found, "rank", ["LONGSEQ_RANK"]);
  const [size, sizeName] = required(env, found, "size", ["LONGSEQ_SIZE"]);
  checkBelow(rank, rankName, size, sizeName);
  // One process is alone on its host, whether or not anybody says so.
  if (size === 1) return { rank, size, localRank: 0, localSize: 1, source: found.source };
  const [localRank, localRankName] = required(env, found, "localRank", ["LONGSEQ_LOCAL_RANK"]);
  const counted = found.countHere?.(env);
  const [localSize, localSizeName] =
    counted === undefined
      ? required(env, found, "localSize", ["LONGSEQ_LOCAL_SIZE"])
      : [counted, "the tasks of SLURM_TASKS_PER_NODE"];
  checkBelow(localRank, localRankName, localSize, localSizeName);
  if (localSize > size) {
    throw failure(
      "ERR_OPTION",
      `rankFromEnvironment: ${localSizeName} is ${localSize}, expected at most ${size} (${sizeName})`,
    );
  }
  return { rank, size, localRank, localSize, source: found.source };
}

type Place = "rank" | "size" | "localRank" | "localSize";

/** The value of the first of these variables that is set, with the variable's name. */
function required(
  env: Environment,
  launcher: Launcher,
  place: Place,
  ours: readonly string[],
): [value: number, name: string] {
  const own = launcher[place].filter((name) => isSet(env, name));
  const names = own.length > 0 ? own : ours.filter((name) => isSet(env, name));
  const [name] = names;
  if (name === undefined) {
    const [missing = ours[0]] = launcher[place];
    const instead = missing === ours[0] ? "" : ` (${ours[0]} is taken instead)`;
    throw failure(
      "ERR_OPTION",
      `rankFromEnvironment: ${missing} has no value, expected one beside ${launcher.rank[0]}${instead}`,
    );
  }
  const least = place === "size" || place === "localSize" ? 1 : 0;
  const value = whole(env, name, least);
  for (const other of least === 0 ? names : []) {
    const same = whole(env, other, least);
    if (same === value) continue;
    throw failure(
      "ERR_OPTION",
      `rankFromEnvironment: ${other} is ${same}, expected ${value} (that of ${name})`,
    );
  }
  return [value, name];
}

function whole(env: Environment, name: string, least: number): number {
  const text = env[name];
  const value = Number(text);
  if (typeof text !== "string" || !/^\d{1,9}$/.test(text) || value < least) {
    throw failure(
      "ERR_OPTION",
      `rankFromEnvironment: ${name} is "${text}", expected a whole number of at least ${least}`,
    );
  }
  return value;
}

function checkBelow(value: number, name: string, limit: number, limitName: string): void {
  if (value < limit) return;
  throw failure(
    "ERR_OPTION",
    `rankFromEnvironment: ${name} is ${value}, expected less than ${limit} (${limitName})`,
  );
}
