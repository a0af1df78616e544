// `longseq doctor`: what this machine has, what will be used, what is missing and how to get it.
import os from "node:os";
import type { Info } from "../index.ts";
import { type Command, suggestion, UsageError } from "./arguments.ts";
import { type Accelerator, accelerator } from "./doctor/accelerator.ts";
import { type Binary, loadBinary } from "./doctor/binary.ts";
import { schedulers } from "./doctor/scheduler.ts";
import { type Peer, torchPeer } from "./doctor/torch.ts";
import { misled, wrongVariables } from "./doctor/wrong.ts";
import { isOfBuilds, ownVariables, variableNames } from "./environment.ts";
import { bold, openOutput } from "./output.ts";
import { formatBytes } from "./quantity.ts";
import { packageVersion } from "./version.ts";

/** The first driver of CUDA 13, whose runtime is in the binary. */
const oldestDriver = 580;
const oldestGpu = 8;

interface Fact {
  readonly name: string;
  readonly value: string;
  /** How to get what is missing. */
  readonly hint?: string;
}

export const doctor: Command = {
  usage: "[options]",
  description: `Shows what this machine has, what longseq will use, what is missing and how to get it.
Exit code 0: longseq runs here; 1: its binary does not load, or a variable says what it cannot do.`,
  options: { json: { value: "FILE", help: "also write it as one line of JSON; - is standard output" } },
  async run(given) {
    const [extra] = given.positionals;
    if (extra !== undefined) throw new UsageError(`unexpected "${extra}": doctor takes options only`);
    using output = openOutput({ json: given.text("json") }, 0);
    const { json, stream } = output;
    const binary = await loadBinary();
    const gpu = accelerator();
    const peer = torchPeer();
    const said = { binary: binary.error ?? null, device: binary.deviceError ?? null };
    const wrong = wrongVariables(process.env, said);
    for (const [title, facts] of Object.entries(sections(binary, gpu, peer, wrong))) {
      stream.write(`${bold(stream, title)}\n`);
      const width = Math.max(16, ...facts.map(({ name }) => name.length));
      for (const { name, value, hint } of facts) {
        stream.write(`  ${name.padEnd(width)} ${value}\n`);
        if (hint) stream.write(`  ${"".padEnd(width)} ${hint}\n`);
      }
      stream.write("\n");
    }
    json?.write({
      version: packageVersion(),
      node: process.version,
      system: `${os.type()} ${os.release()} ${os.arch()}`,
      binary: binary.info
        ? { loads: true, build: binary.info.build }
        : { loads: binary.loads, error: binary.error },
      cpu: binary.info?.cpu ?? null,
      memory: { totalBytes: os.totalmem(), freeBytes: os.freemem() },
      cuda: { ...gpu, ncclVersion: binary.nccl?.version ?? null, build: binary.info?.cuda ?? null },
      schedulers: schedulers(process.env),
      environment: ownVariables(process.env).map((variable) => {
        const problem = wrong.get(variable.name);
        return problem === undefined ? variable : { ...variable, problem };
      }),
      peer,
    });
    return binary.info && wrong.size === 0 ? 0 : 1;
  },
};

type Wrong = ReadonlyMap<string, string>;

function sections(binary: Binary, gpu: Accelerator, peer: Peer, wrong: Wrong): Record<string, Fact[]> {
  const { info } = binary;
  const unusable = [...wrong].find(([, message]) => message === binary.error)?.[0];
  return {
    longseq: [
      { name: "version", value: packageVersion() },
      info
        ? { name: "binary", value: info.build }
        : binary.loads
          ? {
              name: "binary",
              value: unusable ? `loads, but not with this ${unusable}` : `cannot be used: ${binary.error}`,
            }
          : {
              name: "binary",
              value: `does not load: ${binary.error}`,
              hint: "npm rebuild longseq compiles it here (needs CMake 3.22 or later and a C++20 compiler)",
            },
      { name: "Node.js", value: `${process.version} on ${os.type()} ${os.release()} ${os.arch()}` },
    ],
    processor: [
      { name: "model", value: info?.cpu.model ?? os.cpus()[0]?.model ?? "unknown" },
      ...(info ? [{ name: "instructions", value: info.cpu.instructionSet }] : []),
      ...(info ? [{ name: "threads", value: `${info.cpu.threads} (${info.cpu.threadsFrom})` }] : []),
      { name: "memory", value: memoryText(info?.cpu.memoryLimit) },
    ],
    CUDA: [...engineFacts(info?.cuda, gpu), ...cudaFacts(gpu, binary)],
    surroundings: [
      { name: "scheduler", value: schedulerText() },
      peer.torch
        ? { name: "bench's peer", value: `PyTorch ${peer.torch} (${peer.python})` }
        : {
            name: "bench's peer",
            value: `${peer.python} has no torch`,
            hint: "for bench --peer torch: LONGSEQ_PYTHON names a Python that has it",
          },
    ],
    environment: variableFacts(wrong),
  };
}

function variableFacts(wrong: Wrong): Fact[] {
  const facts = ownVariables(process.env).map(({ name, value, known }): Fact => {
    // What cannot be seen is what is wrong with it.
    const shown = value === null ? "(hidden)" : /^[\x21-\x7e]+$/.test(value) ? value : JSON.stringify(value);
    const problem = wrong.get(name);
    if (problem !== undefined) return { name, value: shown, hint: `wrong: ${problem}` };
    if (isOfBuilds(name))
      return { name, value: shown, hint: "read when the addon is compiled, and not when it runs" };
    const near = suggestion(name.toUpperCase(), variableNames, "LONGSEQ_");
    return { name, value: shown, ...(!known && { hint: `unknown to longseq${near}` }) };
  });
  return facts.length > 0 ? facts : [{ name: "LONGSEQ_*", value: "none" }];
}

function memoryText(limit: number | undefined): string {
  const machine = `${formatBytes(os.totalmem())}, ${formatBytes(os.freemem())} free`;
  return limit === undefined ? machine : `${machine}, longseq uses up to ${formatBytes(limit)}`;
}

/** What our own binary makes of the GPUs, which is what counts. */
function engineFacts(cuda: Info["cuda"] | undefined, system: Accelerator): Fact[] {
  if (cuda === undefined) return system.gpus.map(systemGpu);
  if (!cuda.compiled) {
    return [
      { name: "engine", value: "not in this binary: it computes on the CPU" },
      ...system.gpus.map(systemGpu),
    ];
  }
  if (cuda.gpus.length === 0) {
    const found = system.gpus.map(systemGpu);
    const hint = `it needs NVIDIA's driver ${oldestDriver} or later; CUDA_VISIBLE_DEVICES may hide a GPU`;
    return [
      {
        name: "engine",
        value: "in this binary, finds no GPU: it computes on the CPU",
        ...(driverMatters(system) && { hint }),
      },
      ...found,
    ];
  }
  return [
    { name: "engine", value: "in this binary" },
    ...cuda.gpus.map(
      ({ name, memoryBytes, maskBudget, computeCapability, multiprocessors, ...gpu }, i): Fact => {
        const capability = computeCapability.toFixed(1);
        const value = `${name}, ${formatBytes(memoryBytes)} (${formatBytes(maskBudget)} for a mask), ${multiprocessors} multiprocessors, compute capability ${capability}, attention by ${kernelsText(gpu.attentionKernels)}`;
        const fact = { name: `cuda:${i}`, value };
        return computeCapability >= oldestGpu
          ? fact
          : { ...fact, hint: "too old: the kernels need 8.0 (Ampere)" };
      },
    ),
  ];
}

/** "sm90 (bfloat16, float16), sm80 (float32)", or what all of them are. */
function kernelsText(kernels: Info["cuda"]["gpus"][number]["attentionKernels"]): string {
  const entries = Object.entries(kernels);
  const names = [...new Set(entries.map(([, name]) => name))];
  if (names.length === 1) return names.join();
  const typesOf = (name: string) => entries.flatMap(([dtype, of]) => (of === name ? [dtype] : []));
  return names.map((name) => `${name} (${typesOf(name).join(", ")})`).join(", ");
}

/** Where there is neither driver nor GPU, nothing is wrong. */
const driverMatters = ({ driver, gpus }: Accelerator) => driver !== null || gpus.length > 0;

const systemGpu = ({ index, name, memoryBytes, computeCapability }: Accelerator["gpus"][number]): Fact => ({
  name: `GPU ${index}`,
  value: `${name}, ${formatBytes(memoryBytes)}, compute capability ${computeCapability}`,
});

function cudaFacts({ driver, links, cublasLt, nccl }: Accelerator, binary: Binary): Fact[] {
  const absent = (name: string, hint: string): Fact => ({ name, value: "absent", hint });
  return [
    driver
      ? Number.parseInt(driver, 10) >= oldestDriver
        ? { name: "driver", value: driver }
        : { name: "driver", value: driver, hint: `too old: install ${oldestDriver} or later` }
      : absent(
          "driver",
          `install NVIDIA's driver (${oldestDriver} or later) where there is a GPU; the CPU needs none`,
        ),
    ...(links ? [{ name: "links", value: links.replaceAll("\n", `\n  ${"".padEnd(16)} `) }] : []),
    cublasLt
      ? { name: "cuBLASLt", value: cublasLt }
      : absent(
          "cuBLASLt",
          misled(process.env, "LONGSEQ_CUBLAS", "libcublasLt.so.13 or .12") ??
            "in the CUDA toolkit 12 or 13, or pip's nvidia-cublas; LONGSEQ_CUBLAS names its file or folder",
        ),
    ncclFact(nccl, binary),
  ];
}

/** What opens counts; where something is there and does not open, doctor says why. */
function ncclFact(found: string | null, { nccl, ncclError }: Binary): Fact {
  if (nccl) return { name: "NCCL", value: `${nccl.version} (${nccl.path})` };
  if (found) return { name: "NCCL", value: found, ...(ncclError && { hint: ncclError }) };
  const hint =
    misled(process.env, "LONGSEQ_NCCL", "libnccl.so.2") ??
    "2.14 or later: package libnccl2, or pip's nvidia-nccl; LONGSEQ_NCCL names its file or folder";
  return { name: "NCCL", value: "absent", hint };
}

function schedulerText(): string {
  const found = schedulers(process.env).map(({ name, variables }) => {
    const pairs = Object.entries(variables).map(([variable, value]) => `${variable}=${value}`);
    return `${name} (${pairs.join(", ")})`;
  });
  return found.length > 0 ? found.join("; ") : "none";
}
