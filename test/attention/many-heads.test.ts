// So many heads that a GPU has several tiles of queries for each multiprocessor: kernels have larger tiles then, against the definition.
import { type AttentionOptions, attentionForward, Scope, Tensor } from "longseq";
import t from "tap";
import { bounds, relativeError } from "../support/compare.ts";
import { implementations, kind } from "../support/devices.ts";

/** The CPU's kernels know no such thing: there one size will do. */
const [B, H, headDims] = kind === "cuda" ? [8, 50, [64, 80, 96, 120, 128]] : [1, 1, [128]];

/** Lengths of queries and keys, options, and how large scores become. */
const problems: Record<string, [Sq: number, Sk: number, options?: AttentionOptions, spread?: number]> = {
  causal: [300, 300, { causal: true }],
  "all keys": [257, 131],
  "more keys than queries": [290, 1000, { causal: true }],
  "fewer keys than queries": [515, 40, { causal: true }],
  "a window": [700, 700, { causal: true, window: [90, 0] }],
  "a window to both sides": [530, 530, { window: [33, 65] }],
  documents: [600, 600, { causal: true, cuSeqlens: [0, 1, 20, 20, 290, 470, 600] }],
  "documents without keys": [600, 600, { cuSeqlens: [0, 200, 300, 600], cuSeqlensKeys: [0, 0, 500, 600] }],
  softcap: [300, 300, { causal: true, softcap: 5 }],
  "scores that outgrow the first ones": [400, 900, {}, 8],
};

for (const [name, [Sq, Sk, options = {}, spread = 1]] of Object.entries(problems)) {
  for (const D of headDims) {
    t.test(`${name}, D ${D}`, async (t) => {
      for (const dtype of ["bfloat16", "float16"] as const) {
        await Scope.run(async () => {
          const normal = (rows: number, seed: number, std: number) =>
            Tensor.normal([B, rows, H, D], { dtype, seed, std });
          const [q, k, v] = [normal(Sq, 1, spread), normal(Sk, 2, spread), normal(Sk, 3, 1)];
          const [own, defined] = await Promise.all(
            implementations.map(async (implementation) => {
              const result = attentionForward(q, k, v, { ...options, implementation });
              return [await result.out.data(), await result.logSumExp.data()] as const;
            }),
          );
          if (!own || !defined) throw new Error("two implementations");
          const error = relativeError(own[0], defined[0]);
          t.ok(error < bounds[dtype].result, `out, ${dtype}: off by ${error}`);
          const wrong = own[1].findIndex(
            (x, i) => !(Math.abs(x - Number(defined[1][i])) < 0.02) && x !== defined[1][i],
          );
          t.equal(wrong, -1, `logSumExp, ${dtype}`);
        });
      }
    });
  }
}
