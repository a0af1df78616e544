// Reference vectors of attention, through attentionForward and attentionBackward.
import {
  AttentionMask,
  type AttentionOptions,
  attentionBackward,
  attentionForward,
  type Tensor,
} from "../../index.ts";
import type { Operation, Result, Run } from "./operation.ts";
import { isBoolean, isNumber, isNumbers, type VectorFile, VectorFileError } from "./vector-file.ts";

export const attentionOperation: Operation = {
  options: ["scale", "causal", "window", "softcap", "cu_seqlens", "alibi", "random_mask"],
  tensors: ["q", "k", "v", "dout", "alibi_slopes", "mask", "out", "lse", "dq", "dk", "dv"],
  run: runAttention,
};

async function runAttention(file: VectorFile, run: Run): Promise<Result[]> {
  const any4 = [undefined, undefined, undefined, undefined];
  const [B = 0, Sq = 0, Hq = 0, D = 0] = file.tensor("q", any4).shape;
  const [, Sk = 0, Hkv = 0] = file.tensor("k", [B, undefined, undefined, D]).shape;
  const queries = [B, Sq, Hq, D];
  const keys = [B, Sk, Hkv, D];
  const shapes = { v: keys, dout: queries, out: queries, lse: [B, Hq, Sq], dq: queries, dk: keys, dv: keys };
  for (const [name, shape] of Object.entries(shapes)) file.optionalTensor(name, shape);

  const boundaries = documentBoundaries(file, B, Sq, Sk);
  const owned: Disposable[] = [];
  const own = <T extends Disposable>(value: T): T => {
    owned.push(value);
    return value;
  };
  try {
    const input = (name: string, shape: number[]) => {
      const converted = own(file.tensor(name, shape).to(run.dtype));
      // Documents are packed: [T, H, D].
      return boundaries ? own(converted.reshape(shape.slice(1))) : converted;
    };
    const options = attentionOptions(file, run, Hq, own);
    if (boundaries) options.cuSeqlens = boundaries;
    if (announces(file, "random_mask", "mask")) {
      options.mask = own(AttentionMask.dense(await maskValues(file, Sq, Sk), Sq, Sk));
    }
    const [q, k, v] = [input("q", queries), input("k", keys), input("v", keys)];
    const { out, logSumExp } = attentionForward(q, k, v, options);
    const computed: Record<string, Tensor> = { out, lse: logSumExp };
    const wantsGradients = ["dq", "dk", "dv"].some((name) => Object.hasOwn(file.tensors, name));
    if (wantsGradients) {
      const dout = input("dout", queries);
      Object.assign(computed, attentionBackward({ q, k, v, out, logSumExp, dout }, options));
    }
    return Object.entries(computed).flatMap(([name, value]): Result[] => {
      const expected = file.tensors[name];
      if (expected) return [{ name, value, expected, kind: name.startsWith("d") ? "gradient" : "result" }];
      value.dispose();
      return [];
    });
  } finally {
    for (const value of owned) value[Symbol.dispose]();
  }
}

function attentionOptions(
  file: VectorFile,
  { implementation }: Run,
  Hq: number,
  own: <T extends Disposable>(value: T) => T,
): AttentionOptions {
  const options: AttentionOptions = { causal: file.option("causal", "true or false", isBoolean) ?? false };
  if (implementation) options.implementation = implementation;
  const scale = file.option("scale", "a number", isNumber);
  if (scale !== undefined) options.scale = scale;
  const softcap = file.option("softcap", "a number", isNumber);
  if (softcap !== undefined) options.softcap = softcap;
  const window = file.option("window", "[left, right]", isPair);
  if (window) options.window = window;
  if (announces(file, "alibi", "alibi_slopes")) {
    options.alibiSlopes = own(file.tensor("alibi_slopes", [Hq]).to("float32"));
  }
  return options;
}

async function maskValues(file: VectorFile, Sq: number, Sk: number): Promise<Uint8Array> {
  const values = await file.tensor("mask", [Sq, Sk]).data();
  if (values instanceof Uint8Array) return values;
  throw new VectorFileError(`${file.path}: tensor "mask" is not of type U8`);
}

/** A flag of the metadata and the tensor that it announces: both or neither. */
function announces(file: VectorFile, flag: string, tensor: string): boolean {
  const isSet = file.option(flag, "true or false", isBoolean) ?? false;
  if (!isSet && Object.hasOwn(file.tensors, tensor)) {
    throw new VectorFileError(`${file.path}: there is a tensor "${tensor}", but option ${flag} is not true`);
  }
  return isSet;
}

function documentBoundaries(file: VectorFile, B: number, Sq: number, Sk: number): number[] | undefined {
  const boundaries = file.option("cu_seqlens", "a list of numbers", isNumbers);
  if (!boundaries) return undefined;
  if (B !== 1 || Sq !== Sk) {
    throw new VectorFileError(`${file.path}: cu_seqlens needs a batch of 1 and as many keys as queries`);
  }
  return boundaries;
}

const isPair = (value: unknown): value is [number, number] => isNumbers(value) && value.length === 2;
