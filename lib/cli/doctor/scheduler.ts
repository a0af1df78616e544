// Which batch scheduler or launcher started this process, by the variables it leaves.

const marks: Readonly<Record<string, readonly string[]>> = {
  PBS: ["PBS_JOBID", "PBS_NODEFILE"],
  Slurm: ["SLURM_JOB_ID", "SLURM_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"],
  Cobalt: ["COBALT_JOBID", "COBALT_NODEFILE"],
  PALS: ["PALS_RANKID", "PALS_LOCAL_RANKID"],
  PMI: ["PMI_RANK", "PMI_SIZE", "PMI_LOCAL_RANK"],
  PMIx: ["PMIX_RANK", "PMIX_NAMESPACE"],
  "Open MPI": ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"],
  torchrun: ["RANK", "WORLD_SIZE", "LOCAL_RANK"],
};

export interface Scheduler {
  readonly name: string;
  readonly variables: Record<string, string>;
}

export function schedulers(environment: NodeJS.ProcessEnv): Scheduler[] {
  return Object.entries(marks).flatMap(([name, variables]) => {
    const set = variables.flatMap((variable) => {
      const value = environment[variable];
      return value === undefined ? [] : [[variable, value] as const];
    });
    // RANK alone could be anybody's.
    const isSure = name === "torchrun" ? set.length === variables.length : set.length > 0;
    return isSure ? [{ name, variables: Object.fromEntries(set) }] : [];
  });
}
