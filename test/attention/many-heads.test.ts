// So many heads and keys that a GPU has several tiles of queries for each multiprocessor, each with much to do: kernels have larger
// tiles then. Against the definition.
import { type AttentionOptions, attentionForward, Scope, Tensor } from "longseq";
import t from "tap";
import { at, bounds, relativeError } from "../support/compare.ts";
import { implementations, kind } from "../support/devices.ts";

/** The CPU's kernels know no such thing: there one small size will do. */
const isGpu = kind === "cuda";
const [B, H, headDims] = isGpu ? [40, 10, [64, 80, 96, 120, 128]] : [1, 1, [128]];
const size = (length: number) => (isGpu ? length : Math.ceil(length / 12));
/** Sequences whose results are looked at: reading all would take minutes. */
const looked = [...new Set([0, B - 1])];

/** Lengths of queries and keys, options, and how large scores become. */
const problems: Record<string, [Sq: number, Sk: number, options?: AttentionOptions, spread?: number]> = {
  causal: [300, 4300, { causal: true }],
  "all keys": [257, 4131],
  "fewer keys than queries": [1600, 1200, { causal: true }],
  "a window": [1400, 1400, { causal: true, window: [size(1100), 0] }],
  "a window to both sides": [1300, 1300, { window: [size(700), size(600)] }],
  documents: [2600, 2600, { causal: true, cuSeqlens: [0, 1, 20, 20, 1290, 1470, 2600].map(size) }],
  "documents without keys": [
    600,
    3000,
    { cuSeqlens: [0, 200, 300, 600].map(size), cuSeqlensKeys: [0, 0, 1400, 3000].map(size) },
  ],
  softcap: [300, 4300, { causal: true, softcap: 5 }],
  "scores that outgrow the first ones": [400, 4400, {}, 8],
};

for (const [name, [Sq, Sk, options = {}, spread = 1]] of Object.entries(problems)) {
  for (const D of headDims) {
    t.test(`${name}, D ${D}`, async (t) => {
      for (const dtype of ["bfloat16", "float16"] as const) {
        await Scope.run(async () => {
          const normal = (rows: number, seed: number, std: number) =>
            Tensor.normal([B, size(rows), H, D], { dtype, seed, std });
          const [q, k, v] = [normal(Sq, 1, spread), normal(Sk, 2, spread), normal(Sk, 3, 1)];
          const [own, definition] = implementations;
          const all = attentionForward(q, k, v, { ...options, implementation: own });
          for (const b of looked) {
            const of = (tensor: Tensor) => tensor.slice(0, b, b + 1);
            const expected = attentionForward(of(q), of(k), of(v), {
              ...options,
              implementation: definition,
            });
            const error = relativeError(await of(all.out).data(), await expected.out.data());
            t.ok(error < bounds[dtype].result, `out, ${dtype}, sequence ${b}: off by ${error}`);
            const statistics = await expected.logSumExp.data();
            const wrong = (await of(all.logSumExp).data()).findIndex(
              (x, i) => x !== statistics[i] && !(Math.abs(x - at(statistics, i)) < 0.02),
            );
            t.equal(wrong, -1, `logSumExp, ${dtype}, sequence ${b}`);
          }
        });
      }
    });
  }
}
