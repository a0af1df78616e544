// Prints hashes of attention's results for shapes whose work is cut in different ways, twice each: as JSON.
import { createHash } from "node:crypto";
import {
  AttentionMask,
  type AttentionOptions,
  attentionBackward,
  attentionForward,
  info,
  Tensor,
} from "longseq";
import { bitsOf } from "../bits.ts";
import { scatter } from "../masks.ts";

export interface BitsReport {
  threads: number;
  hashes: Record<string, [first: string, second: string]>;
}

type Sizes = [B: number, Sq: number, Sk: number, Hq: number, Hkv: number, D: number];
const cases: Record<string, { sizes: Sizes; dtype?: "bfloat16"; options?: AttentionOptions }> = {
  "one long head": { sizes: [1, 1300, 1300, 1, 1, 64] },
  "one query, long keys": { sizes: [1, 1, 9000, 4, 2, 64] },
  "few queries, long keys, causal": { sizes: [1, 70, 4100, 2, 1, 32], options: { causal: true } },
  "causal, bfloat16": { sizes: [1, 600, 600, 4, 2, 64], dtype: "bfloat16", options: { causal: true } },
  "many short heads": { sizes: [6, 40, 40, 12, 4, 40] },
  "a scattered mask": {
    sizes: [1, 500, 700, 2, 2, 72],
    options: { mask: AttentionMask.from(500, 700, scatter(1, 60)), softcap: 5 },
  },
};

async function hash({ sizes, dtype = undefined, options }: (typeof cases)[string]): Promise<string> {
  const [B, Sq, Sk, Hq, Hkv, D] = sizes;
  const input = (S: number, H: number, seed: number) =>
    Tensor.normal([B, S, H, D], { seed, dtype: dtype ?? "float32" });
  const [q, k, v, dout] = [input(Sq, Hq, 1), input(Sk, Hkv, 2), input(Sk, Hkv, 3), input(Sq, Hq, 4)];
  const given = { ...options, deterministic: true };
  const { out, logSumExp } = attentionForward(q, k, v, given);
  const { dq, dk, dv } = attentionBackward({ q, k, v, out, logSumExp, dout }, given);
  const sum = createHash("sha256");
  for (const tensor of [out, logSumExp, dq, dk, dv]) sum.update(await bitsOf(tensor));
  return sum.digest("hex");
}

const report: BitsReport = { threads: info().cpu.threads, hashes: {} };
for (const [name, given] of Object.entries(cases))
  report.hashes[name] = [await hash(given), await hash(given)];
console.log(JSON.stringify(report));
