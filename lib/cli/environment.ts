// The variables that are longseq's own: all that its sources read, as README.md explains them.

/** Who reads them: whatever runs, the ranks of one launch, or the build. */
const readers: Readonly<Record<string, "run" | "launch" | "build">> = {
  LONGSEQ_CUBLAS: "run",
  LONGSEQ_CUDA: "build",
  LONGSEQ_CUDA_ARCHITECTURES: "build",
  LONGSEQ_CUDA_DEBUG: "run",
  LONGSEQ_DEVICE: "run",
  LONGSEQ_ISA: "run",
  LONGSEQ_LOCAL_RANK: "launch",
  LONGSEQ_LOCAL_SIZE: "launch",
  LONGSEQ_MASK_BUDGET: "run",
  LONGSEQ_MEMORY_LIMIT: "run",
  LONGSEQ_NCCL: "run",
  LONGSEQ_PYTHON: "run",
  LONGSEQ_RANK: "launch",
  LONGSEQ_RENDEZVOUS: "launch",
  LONGSEQ_SHARED_BYTES: "run",
  LONGSEQ_SIZE: "launch",
  LONGSEQ_THREADS: "run",
  LONGSEQ_TOKEN: "launch",
};

const secret = "LONGSEQ_TOKEN";

export const variableNames = Object.keys(readers);

/** Set by `longseq launch`, and worth nothing after it. */
export const isOfOneLaunch = (name: string) => readers[name] === "launch";
export const isOfBuilds = (name: string) => readers[name] === "build";

/** One that is set, whether or not anything reads it. */
export interface Variable {
  readonly name: string;
  /** Null where it is a secret. */
  readonly value: string | null;
  readonly known: boolean;
}

/** All that are named as ours, sorted. */
export function ownVariables(environment: NodeJS.ProcessEnv): Variable[] {
  const names = Object.keys(environment).filter((name) => /^longseq_/i.test(name));
  return names.sort().map((name) => ({
    name,
    value: name === secret ? null : (environment[name] ?? ""),
    known: Object.hasOwn(readers, name),
  }));
}
