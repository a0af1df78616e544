// What jobs of machines that are not at hand leave in the environment, after what those are known to set. Others are
// recorded: recorded-jobs.ts.
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type Environment, slurmRank6 } from "./recorded-jobs.ts";

/** Polaris: PBS, PALS, two nodes of four GPUs. Rank 5 is the second of the second node. */
export const palsRank5: Environment = {
  PBS_JOBID: "1923417.polaris-pbs-01.hsn.cm.polaris.alcf.anl.gov",
  PBS_NODEFILE: "/var/spool/pbs/aux/1923417.polaris-pbs-01.hsn.cm.polaris.alcf.anl.gov",
  PBS_NCPUS: "64",
  PALS_APID: "5a1e2b0e-9d45-4b6b-8b1d-1bd7f9a1a3c5",
  PALS_APNUM: "0",
  PALS_DEPTH: "1",
  PALS_RANKID: "5",
  PALS_NODEID: "1",
  PALS_LOCAL_RANKID: "1",
  PALS_LOCAL_SIZE: "4",
  PMI_RANK: "5",
  PMI_SIZE: "8",
  PMI_UNIVERSE_SIZE: "8",
  PMI_LOCAL_RANK: "1",
  PMI_LOCAL_SIZE: "4",
  PMI_CONTROL_PORT: "11931",
};

/** ThetaGPU: Cobalt's job, Open MPI's rank 9, the second of the second node of eight GPUs. */
export const openMpiRank9: Environment = {
  COBALT_JOBID: "10082734",
  COBALT_NODEFILE: "/var/tmp/cobalt.10082734",
  OMPI_COMM_WORLD_RANK: "9",
  OMPI_COMM_WORLD_SIZE: "16",
  OMPI_COMM_WORLD_LOCAL_RANK: "1",
  OMPI_COMM_WORLD_LOCAL_SIZE: "8",
  OMPI_COMM_WORLD_NODE_RANK: "1",
  OMPI_UNIVERSE_SIZE: "16",
  PMIX_RANK: "9",
  PMIX_NAMESPACE: "1876492289",
};

/** torchrun, one a node under srun. */
export const torchrunRank7: Environment = {
  ...slurmRank6,
  SLURM_STEP_NUM_TASKS: "2",
  SLURM_STEP_TASKS_PER_NODE: "1(x2)",
  SLURM_PROCID: "1",
  SLURM_LOCALID: "0",
  RANK: "7",
  WORLD_SIZE: "8",
  LOCAL_RANK: "3",
  LOCAL_WORLD_SIZE: "4",
  GROUP_RANK: "1",
  MASTER_ADDR: "nid001140",
  MASTER_PORT: "29500",
  TORCHELASTIC_RUN_ID: "28417733",
  TORCHELASTIC_USE_AGENT_STORE: "True",
};

/** A folder with the files of nodes that PBS and Cobalt write, and the variable that names each. */
export function nodeFiles(folder: string): { pbs: Environment; cobalt: Environment } {
  mkdirSync(folder, { recursive: true });
  const pbs = join(folder, "pbs");
  writeFileSync(
    pbs,
    "x3006c0s13b0n0.hsn.cm.polaris.alcf.anl.gov\nx3006c0s13b1n0.hsn.cm.polaris.alcf.anl.gov\n",
  );
  const cobalt = join(folder, "cobalt");
  writeFileSync(cobalt, "thetagpu06\nthetagpu17\n");
  return {
    pbs: { PBS_JOBID: "1923417.polaris-pbs-01", PBS_NODEFILE: pbs },
    cobalt: { COBALT_JOBID: "10082734", COBALT_NODEFILE: cobalt },
  };
}
