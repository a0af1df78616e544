import { createRequire } from "node:module";
import { native } from "./native.ts";

/** What runs here: the package, its binary, and the processor as it is used. */
export interface Info {
  /** The package's. */
  version: string;
  /** How the binary was built: "compiled by 12.2.0, CPU only". */
  build: string;
  cuda: {
    /** Whether the binary holds a CUDA engine. */
    compiled: boolean;
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
  const { cpu, cuda, compiler } = native.info();
  const build = `compiled by ${compiler}, ${cuda ? "CPU and CUDA" : "CPU only"}`;
  return { version, build, cuda: { compiled: cuda }, cpu };
}
