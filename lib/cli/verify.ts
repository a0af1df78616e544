// `longseq verify`: reference vectors through the public API, each result against its bound.
import { Device } from "../index.ts";
import { type Command, UsageError } from "./arguments.ts";
import { deviceName, floatTypes, implementations } from "./bench/settings.ts";
import { JsonLines, Progress, Table, textStream } from "./output.ts";
import { type Parallel, parallelOf, parallelOptions, RankGroup } from "./ranks.ts";
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
result against its bound. Exit code 0: all hold; 1: one does not, or asks for what this version does
not know; 2: a file is not what it should be.`,
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
    if (given.positionals.length === 0)
      throw new UsageError("no PATH given: name a safetensors file or a folder");
    const parallel = parallelOf(given);
    const name = deviceName(given) ?? Device.default.name;
    using device = new Device(name);
    using group = new RankGroup(parallel, name);
    const run: Run = {
      dtype: given.choice("dtype", floatTypes) ?? "float32",
      implementation: given.choice("implementation", implementations),
      ranks: (length) => group.ranks(length),
    };
    const paths = await vectorPaths(given.positionals);
    using json = given.has("json") ? new JsonLines(given.text("json") ?? "-") : undefined;
    return await verifyAll(paths, device, run, parallel, json, textStream(given.text("json")));
  },
};

async function verifyAll(
  paths: readonly string[],
  device: Device,
  run: Run,
  parallel: Parallel,
  json: JsonLines | undefined,
  stream: NodeJS.WriteStream,
): Promise<number> {
  const progress = new Progress();
  const table = new Table(stream, [
    { title: "case", width: 40, align: "left" },
    { title: "tensor", width: 28, align: "left" },
    { title: "error", width: 9 },
    { title: "bound", width: 7 },
    { title: "", width: 4, align: "left" },
  ]);
  const ranks =
    parallel.type === "serial" ? "" : `; layers and models: ${parallel.type}, ${parallel.size} ranks`;
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
      const checks = await verifyFile(path, device, run);
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
      process.stderr.write(`longseq verify: ${(error as Error).message}\n`);
    }
  }
  const files = damaged > 0 ? `, ${damaged} of ${paths.length} files could not be used` : "";
  stream.write(`\n${total - failed} of ${total} hold${files}\n`);
  return damaged > 0 ? 2 : failed > 0 ? 1 : 0;
}

async function verifyFile(path: string, device: Device, run: Run): Promise<Check[]> {
  using file = await VectorFile.load(path, device);
  const failure = (reason: string): Check[] => [
    { case: file.name, op: file.op, tensor: null, error: null, bound: null, ok: false, reason },
  ];
  const operation = Object.hasOwn(operations, file.op) ? operations[file.op] : undefined;
  if (!operation) return failure(`unknown op ${file.op}`);
  const option = [...file.options.keys()].find((name) => !operation.options.includes(name));
  if (option !== undefined) return failure(`unknown option ${option}`);
  const tensor = Object.keys(file.tensors).find((name) => !operation.tensors.includes(name));
  if (tensor !== undefined) return failure(`unknown tensor ${tensor}`);
  try {
    const results = await operation.run(file, run);
    if (results.length === 0) throw new VectorFileError(`${path}: there is no result to check`);
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
  } catch (error) {
    const { code, message } = error as { code?: string; message: string };
    if (code === undefined || code === "ERR_FILE") throw error;
    return failure(message);
  }
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
