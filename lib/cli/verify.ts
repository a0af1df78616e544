// `longseq verify`: reference vectors through the public API, each result against its bound.
import { basename } from "node:path";
import { Device } from "../index.ts";
import { type Arguments, type Command, UsageError } from "./arguments.ts";
import { deviceName, floatTypes, implementations } from "./bench/settings.ts";
import { type Output, openOutput, Table } from "./output.ts";
import { counted } from "./quantity.ts";
import type { RankGroup } from "./rank-group.ts";
import { openRanks, type Parallel, parallelOf, parallelOptions, rankDevice } from "./ranks.ts";
import { attentionOperation } from "./verify/attention.ts";
import { transformerLayerOperation } from "./verify/layer.ts";
import { gptOperation } from "./verify/model.ts";
import { bounds, type Operation, type Run, relativeError } from "./verify/operation.ts";
import {
  adamWOperation,
  biasGeluErfOperation,
  biasGeluTanhOperation,
  ropeOperation,
  swigluOperation,
} from "./verify/pointwise.ts";
import { crossEntropyOperation, layerNormOperation, rmsNormOperation } from "./verify/rows.ts";
import { VectorFile, VectorFileError, vectorPaths } from "./verify/vector-file.ts";
import { openWorld, type World } from "./world.ts";

const operations: Readonly<Record<string, Operation>> = {
  attention: attentionOperation,
  layernorm: layerNormOperation,
  rmsnorm: rmsNormOperation,
  cross_entropy: crossEntropyOperation,
  rope: ropeOperation,
  bias_gelu_tanh: biasGeluTanhOperation,
  bias_gelu_erf: biasGeluErfOperation,
  swiglu: swigluOperation,
  adamw: adamWOperation,
  transformer_layer: transformerLayerOperation,
  gpt: gptOperation,
};

interface Check {
  readonly case: string;
  readonly op: string;
  /** Null where the case could not be run at all: `reason` says why. */
  readonly tensor: string | null;
  readonly error: number | null;
  readonly bound: number | null;
  readonly ok: boolean;
  readonly reason?: string;
}

export const verify: Command = {
  usage: "PATH... [options]",
  description: `Runs reference vectors (safetensors files, or folders of them) and prints the relative error of each
result against its bound. Under longseq launch every process does so on its GPU, with its part of what
ranks share, and rank 0 prints the largest error of all. Exit code 0: all hold; 1: one does not, or
asks for what this version does not know; 2: a file is not what it should be.`,
  options: {
    device: { value: "cpu|cuda|cuda:N", help: "where to run (default: the best there is)" },
    dtype: { value: "T", help: `what to compute in: ${floatTypes.join(", ")} (default: float32)` },
    implementation: {
      value: "NAME",
      help: `which kernel: ${implementations.join(", ")} (default: the device's best)`,
    },
    ...parallelOptions,
    json: { value: "FILE", help: "also write each result as a line of JSON; - is standard output" },
  },
  async run(given) {
    const settings = verifySettings(given);
    const world = openWorld();
    // What is wrong with one is said later, by all processes alike.
    const inputs = settings.paths.map((path) => vectorPaths([path]).catch(() => [path]));
    using output = openOutput(
      { json: given.text("json"), inputs: (await Promise.all(inputs)).flat() },
      world.rank,
    );
    return await verifyAs(settings, world, output);
  },
};

interface VerifySettings extends Pick<Run, "dtype" | "implementation"> {
  readonly paths: readonly string[];
  readonly parallel: Parallel;
  readonly device: string | undefined;
}

export function verifySettings(given: Arguments): VerifySettings {
  if (given.positionals.length === 0)
    throw new UsageError("no PATH given: name a safetensors file or a folder");
  return {
    paths: given.positionals,
    parallel: parallelOf(given),
    dtype: given.choice("dtype", floatTypes) ?? "float32",
    implementation: given.choice("implementation", implementations),
    device: deviceName(given),
  };
}

/** As one of the processes of a world. Resolves to the exit code, the same on all of them. */
export async function verifyAs(
  { paths: named, parallel, device, dtype, implementation }: VerifySettings,
  world: World,
  output: Output,
): Promise<number> {
  using group = await openRanks(parallel, rankDevice(device), world);
  const run: Run = { dtype, implementation, ranks: (length) => group.ranks(length) };
  // Rank 0's: a folder may not hold the same everywhere.
  const [paths = []] = await group.attempt(() => vectorPaths(named));
  const code = await verifyAll(paths, { run, group, parallel, output });
  // A launcher ends all others once one has failed, so none does before rank 0 has printed everything.
  await world.gather(null);
  return code;
}

interface Verification {
  readonly run: Run;
  readonly group: RankGroup;
  readonly parallel: Parallel;
  readonly output: Output;
}

async function verifyAll(
  paths: readonly string[],
  { run, group, parallel, output }: Verification,
): Promise<number> {
  const { json, stream, progress } = output;
  using device = new Device(group.devices[0]?.name);
  const table = new Table(stream, [
    { title: "case", width: 40, align: "left" },
    { title: "tensor", width: 28, align: "left" },
    { title: "error", width: 9 },
    { title: "bound", width: 7 },
    { title: "", width: 4, align: "left" },
  ]);
  const ranks =
    parallel.type === "serial"
      ? ""
      : `; layers and models: ${parallel.type}, ${counted(parallel.size, "rank")}`;
  stream.write(
    `${run.dtype}, ${run.implementation ?? "default"} implementation on ${device.description}${ranks}\n\n`,
  );
  table.head();
  let total = 0;
  let failed = 0;
  let damaged = 0;
  for (const path of paths) {
    progress.show(path);
    try {
      const checks = await verifyFile(path, device, group, run);
      progress.clear();
      for (const check of checks) {
        total++;
        if (!check.ok) failed++;
        json?.write({ ...check, dtype: run.dtype, device: device.name });
        table.row(cells(check));
      }
    } catch (error) {
      if ((error as { code?: unknown }).code !== "ERR_FILE") throw error;
      damaged++;
      progress.clear();
      if (group.world.rank === 0) process.stderr.write(`longseq verify: ${(error as Error).message}\n`);
    }
  }
  const files = damaged > 0 ? `, ${damaged} of ${paths.length} files could not be used` : "";
  stream.write(`\n${total - failed} of ${total} hold${files}\n`);
  return damaged > 0 ? 2 : failed > 0 ? 1 : 0;
}

async function verifyFile(path: string, device: Device, group: RankGroup, run: Run): Promise<Check[]> {
  const subject = { case: basename(path, ".safetensors"), op: "" };
  const failure = (reason: string): Check[] => [
    { ...subject, tensor: null, error: null, bound: null, ok: false, reason },
  ];
  await group.join();
  try {
    const all = await group.attempt(async () => {
      using file = await VectorFile.load(path, device);
      subject.op = file.op;
      const operation = Object.hasOwn(operations, file.op) ? operations[file.op] : undefined;
      if (!operation) return failure(`unknown op ${file.op}`);
      const option = [...file.options.keys()].find((name) => !operation.options.includes(name));
      if (option !== undefined) return failure(`unknown option ${option}`);
      const tensor = Object.keys(file.tensors).find((name) => !operation.tensors.includes(name));
      if (tensor !== undefined) return failure(`unknown tensor ${tensor}`);
      return await checksOf(file, operation, run);
    });
    return largest(all);
  } catch (error) {
    const { code, message } = error as { code?: string; message: string };
    if (code === undefined || code === "ERR_FILE") throw error;
    return failure(message);
  }
}

async function checksOf(file: VectorFile, operation: Operation, run: Run): Promise<Check[]> {
  const results = await operation.run(file, run);
  if (results.length === 0) throw new VectorFileError(`${file.path}: there is no result to check`);
  return await Promise.all(
    results.map(async ({ name, kind, value, expected }) => {
      using computed = value;
      const error = relativeError(await computed.data(), await expected.data());
      const bound = bounds[run.dtype][kind];
      // NaN is no JSON, and below no bound.
      return {
        case: file.name,
        op: file.op,
        tensor: name,
        error: Number.isNaN(error) ? null : error,
        bound,
        ok: error < bound,
      };
    }),
  );
}

/** Of every process's checks of a file, each with the largest error that one of them found. */
function largest(all: readonly (readonly Check[])[]): Check[] {
  const [first = [], ...others] = all;

  // None at all is NaN.
  const size = ({ error }: Check) => error ?? Number.POSITIVE_INFINITY;
  return first.map((check, at) =>
    others.reduce((worst, { [at]: other = worst }) => (size(other) > size(worst) ? other : worst), check),
  );
}

function cells({ case: name, op, tensor, error, bound, ok, reason }: Check): string[] {
  if (tensor === null) return [name, op, "", "", `FAILED: ${reason}`];
  return [
    name,
    tensor,
    error?.toExponential(2) ?? "NaN",
    bound?.toExponential(0) ?? "",
    ok ? "ok" : "FAILED",
  ];
}
