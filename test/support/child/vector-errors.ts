// Runs the attention vectors of a folder on this process's instruction set, by the implementations named behind it, and
// prints as JSON how far each result is off.
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import {
  AttentionMask,
  type AttentionOptions,
  attentionBackward,
  attentionForward,
  info,
  loadSafetensors,
  Scope,
  type Tensor,
} from "longseq";
import { bounds, type FloatType, floatTypes, relativeError } from "../compare.ts";
import { implementationsOf } from "../devices.ts";

type Implementation = NonNullable<AttentionOptions["implementation"]>;
type Tensors = Record<string, Tensor>;

export interface VectorReport {
  instructionSet: string;
  rows: { run: string; result: string; error: number | null; bound: number }[];
}

const [folder = "", ...implementations] = process.argv.slice(2);

function tensorOf(tensors: Tensors, name: string): Tensor {
  const tensor = tensors[name];
  if (tensor === undefined) throw new Error(`there is no tensor ${name}`);
  return tensor;
}

/** The options of a file's header, in the words of vectors/README.md. */
async function optionsOf(metadata: Record<string, string>, tensors: Tensors): Promise<AttentionOptions> {
  const options: AttentionOptions = {};
  for (const [name, text] of Object.entries(metadata)) {
    switch (name) {
      case "op":
        if (text !== "attention") throw new Error(`the op is ${text}`);
        break;
      case "scale":
      case "causal":
      case "window":
      case "softcap":
        Object.assign(options, { [name]: JSON.parse(text) });
        break;
      case "cu_seqlens":
        options.cuSeqlens = JSON.parse(text);
        break;
      case "alibi":
        options.alibiSlopes = tensorOf(tensors, "alibi_slopes").to("float32");
        break;
      case "random_mask": {
        const mask = tensorOf(tensors, "mask");
        const [queries = 0, keys = 0] = mask.shape;
        options.mask = AttentionMask.dense(Array.from(await mask.data(), Boolean), queries, keys);
        break;
      }
      default:
        throw new Error(`unknown option ${name}`);
    }
  }
  return options;
}

async function errorsOf(path: string, implementation: Implementation, dtype: FloatType) {
  const { tensors, metadata } = await loadSafetensors(path);
  const options = { ...(await optionsOf(metadata, tensors)), implementation };
  const input = (name: string) => tensorOf(tensors, name).to(dtype);
  const [q, k, v, dout] = [input("q"), input("k"), input("v"), input("dout")];
  const { out, logSumExp } = attentionForward(q, k, v, options);
  const results = { out, lse: logSumExp, ...attentionBackward({ q, k, v, out, logSumExp, dout }, options) };
  return Promise.all(
    Object.entries(results).map(async ([result, tensor]) => ({
      result,
      error: relativeError(await tensor.data(), await tensorOf(tensors, result).data()),
      bound: bounds[dtype][result.startsWith("d") ? "gradient" : "result"],
    })),
  );
}

const report: VectorReport = { instructionSet: info().cpu.instructionSet, rows: [] };
for (const file of (await readdir(folder)).filter((name) => /^attention_.*\.safetensors$/.test(name))) {
  for (const implementation of implementations as Implementation[]) {
    for (const dtype of floatTypes.filter((one) => implementationsOf(one).includes(implementation))) {
      const errors = await Scope.run(() => errorsOf(join(folder, file), implementation, dtype));
      const run = `${file.replace(".safetensors", "")} ${dtype} ${implementation}`;
      report.rows.push(...errors.map((row) => ({ run, ...row })));
    }
  }
}
console.log(JSON.stringify(report));
