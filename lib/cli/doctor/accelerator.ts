// NVIDIA driver, GPUs and libraries as the system shows them, without loading any.
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";

export interface Gpu {
  readonly index: number;
  readonly name: string;
  readonly memoryBytes: number;
  readonly computeCapability: string;
}

export interface Accelerator {
  /** The driver's version; null where there is none. */
  readonly driver: string | null;
  readonly gpus: readonly Gpu[];
  /** How the GPUs are linked, as nvidia-smi draws it. */
  readonly links: string | null;
  /** Paths; null where absent. */
  readonly cublasLt: string | null;
  readonly nccl: string | null;
}

export function accelerator(): Accelerator {
  const gpus = listGpus();
  return {
    driver: driverVersion(),
    gpus,
    links: gpus.length > 1 ? nvidiaSmi(["topo", "-m"]) : null,
    cublasLt: findLibrary("LONGSEQ_CUBLAS", ["libcublasLt.so.13", "libcublasLt.so.12"]),
    nccl: findLibrary("LONGSEQ_NCCL", ["libnccl.so.2"]),
  };
}

function driverVersion(): string | null {
  try {
    const text = readFileSync("/proc/driver/nvidia/version", "utf8");
    return /\s(\d+\.\d+(?:\.\d+)?)\s/.exec(text)?.[1] ?? null;
  } catch {
    // No kernel module. Under WSL the driver has no such file, but nvidia-smi.
    return nvidiaSmi(["--query-gpu=driver_version", "--format=csv,noheader"])?.split("\n")[0] ?? null;
  }
}

function listGpus(): Gpu[] {
  const fields = "index,name,memory.total,compute_cap";
  return parseGpus(nvidiaSmi([`--query-gpu=${fields}`, "--format=csv,noheader,nounits"]) ?? "");
}

export function parseGpus(csv: string): Gpu[] {
  return csv
    .split("\n")
    .map((line) => line.split(",").map((field) => field.trim()))
    .filter((fields) => fields.length === 4)
    .map(([index = "", name = "", mebibytes = "", computeCapability = ""]) => ({
      index: Number(index),
      name,
      memoryBytes: Number(mebibytes) * 2 ** 20,
      computeCapability,
    }));
}

function nvidiaSmi(args: readonly string[]): string | null {
  const { status, stdout } = spawnSync("nvidia-smi", args, { encoding: "utf8", timeout: 10_000 });
  return status === 0 ? stdout.trim() : null;
}

/**
 * Where cuda/core/library.cc finds it, near enough to say present or absent: `variable` names a file or a folder outright.
 */
export function findLibrary(variable: string, names: readonly string[]): string | null {
  const named = process.env[variable];
  if (named) {
    const isFolder = statSync(named, { throwIfNoEntry: false })?.isDirectory();
    const paths = isFolder ? names.map((name) => join(named, name)) : [named];
    return paths.find((path) => existsSync(path)) ?? null;
  }
  const folders = [
    ...(process.env.LD_LIBRARY_PATH ?? "").split(":").filter(Boolean),
    ...toolkitFolders(),
    ...[
      "/usr/lib/x86_64-linux-gnu",
      "/usr/lib/aarch64-linux-gnu",
      "/usr/lib64",
      "/usr/local/lib",
      "/usr/lib",
    ],
  ];
  for (const name of names) {
    const folder = folders.find((one) => existsSync(join(one, name)));
    if (folder) return join(folder, name);
  }
  return null;
}

function toolkitFolders(): string[] {
  const roots = [process.env.CUDA_HOME, process.env.CUDA_PATH].filter((root) => root !== undefined);
  const installed = existsSync("/usr/local")
    ? readdirSync("/usr/local").filter((name) => name.startsWith("cuda"))
    : [];
  return [...roots, ...installed.map((name) => join("/usr/local", name))].map((root) => join(root, "lib64"));
}
