// `longseq launch`: starts a command once a rank, over the hosts of a job or on this machine.
import { hostname } from "node:os";
import { starts } from "../launch/starter.ts";
import { supervise } from "../launch/supervise.ts";
import type { Command } from "./arguments.ts";
import { planLaunch, shellText } from "./launch/plan.ts";

export const launch: Command = {
  usage: "[options] -- command arguments...",
  description: `Starts the command once a GPU, over the hosts of a PBS, Slurm or Cobalt job, of a file, or on this machine:
by mpiexec (Open MPI, MPICH or PALS, whichever it is), by srun within Slurm, or as processes of its own
where there is but one host. Each rank finds its number by rankFromEnvironment() and the others by
exchange(), whose address and token are passed on; Communicator.nccl joins their GPUs, while CPUs of
several processes have exchange() alone. Signals go to all ranks, a second one kills them; when a rank
fails all others are ended, and the exit code is that rank's.`,
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
    const plan = await planLaunch(given, process.env);
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
      graceMs: plan.graceMs,
      stdout: process.stdout,
      stderr: process.stderr,
      say: (message) => void process.stderr.write(`longseq launch: ${message}\n`),
    });
  },
};
