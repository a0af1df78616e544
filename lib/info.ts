import { createRequire } from "node:module";
import { native } from "./native.ts";

/** A GPU of this machine. */
export interface Gpu {
  /** "NVIDIA H100 80GB HBM3" */
  name: string;
  /** 8.0 for an A100, 9.0 for an H100. */
  computeCapability: number;
  multiprocessors: number;
  memoryBytes: number;
  /**
   * The most bytes that the bits of one mask take there: `LONGSEQ_MASK_BUDGET`, else a sixteenth of its memory. Those
   * of a larger mask are copied to it in each call, piece by piece beside the work.
   */
  maskBudget: number;
  /** Which kernels attention runs there, unless `implementation` says otherwise. */
  attentionKernels: Record<"bfloat16" | "float16" | "float32", "sm90" | "sm80">;
}

/** What runs here: the package, its binary, and the processor as it is used. */
export interface Info {
  /** The package's. */
  version: string;
  /** How the binary was built: "compiled by 12.2.0, CPU only". */
  build: string;
  cuda: {
    /** Whether the binary holds a CUDA engine. */
    compiled: boolean;
    /** The GPUs that it can use, in the order of "cuda:0", "cuda:1". */
    gpus: Gpu[];
  };
  cpu: {
    /** The processor's own name: "AMD EPYC". */
    model: string;
    /** "base", "avx2", "avx512" or "avx512bf16"; `LONGSEQ_ISA` lowers it. */
    instructionSet: string;
    /** Threads of the pool. */
    threads: number;
    /** Where that number comes from, in words: `LONGSEQ_THREADS`, or the cores this process may use. */
    threadsFrom: string;
    /** Bytes that may be allocated in all: `LONGSEQ_MEMORY_LIMIT`, the machine's or the cgroup's. */
    memoryLimit: number;
  };
}

/**
 * What `longseq doctor` prints of this process: read once, when the addon loads.
 *
 * @example
 * console.log(info().cpu.instructionSet);
 */
export function info(): Info {
  const { version } = createRequire(import.meta.url)("../package.json") as { version: string };
  const { cpu, gpus, compiler } = native.info();
  const build = `compiled by ${compiler}, ${gpus ? "CPU and CUDA" : "CPU only"}`;
  return { version, build, cuda: { compiled: gpus !== null, gpus: gpus ?? [] }, cpu };
}

/** The library that GPUs of several processes exchange tensors through. */
export interface NcclLibrary {
  /** "2.27.3" */
  version: string;
  /** The file that was opened. */
  path: string;
}

/**
 * NCCL as `Communicator.nccl` uses it: opened now, if it was not yet, where `LONGSEQ_NCCL` (a file, or the folder of
 * libnccl.so.2), the system or the CUDA toolkit has it. That needs no GPU.
 *
 * @throws `ERR_NO_NCCL` where there is none, or an older one than 2.14: what was tried, and how to get it.
 * @example
 * try {
 *   console.log(ncclLibrary().version);
 * } catch (error) {
 *   console.log((error as Error).message);
 * }
 */
export function ncclLibrary(): NcclLibrary {
  return native.ncclLibrary();
}
