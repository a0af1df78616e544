// So many heads and keys that a GPU has several tiles of queries for each multiprocessor, each with much to do: kernels have larger
// tiles then. Against the definition.
import { type AttentionOptions, attentionForward, Scope, Tensor } from "longseq";
import t from "tap";
import { at, bounds, relativeError } from "../support/compare.ts";
import { implementations, kind } from "../support/devices.ts";

/** The CPU's kernels know no such thing: there one small size will do. */
const isGpu = kind === "cuda";
const [B, Hq, headDims] = isGpu ? [40, 10, [64, 80, 96, 120, 128]] : [1, 5, [128]];
const size = (length: number) => (isGpu ? length : Math.ceil(length / 24));
/** Heads whose results are looked at, of the first sequence and the last: all would take minutes. */
const looked = [
  [0, Hq - 1],
  [B - 1, 0],
] as const;

interface Problem {
  rows: [queries: number, keys: number];
  options?: AttentionOptions;
  /** Query heads that share keys. Default: 1. */
  group?: number;
  /** Of queries and keys: their deviation. Default: 1. */
  spread?: number;
}
const problems: Record<string, Problem> = {
  causal: { rows: [300, 4300], options: { causal: true } },
  "all keys": { rows: [513, 4131] },
  "fewer keys than queries": { rows: [1600, 1200], options: { causal: true } },
  "a window": { rows: [1400, 1400], options: { causal: true, window: [size(1100), 0] } },
  "a wide window": { rows: [700, 5000], options: { window: [size(2300), size(1900)] } },
  "a window to both sides": { rows: [1300, 1300], options: { window: [size(700), size(600)] } },
  documents: {
    rows: [2600, 2600],
    options: { causal: true, cuSeqlens: [0, 1, 20, 20, 1290, 1470, 2600].map(size) },
  },
  "documents without keys": {
    rows: [600, 6000],
    options: {
      cuSeqlens: [0, 200, 300, 600].map(size),
      cuSeqlensKeys: [0, 0, 1400, 6000].map(size),
    },
  },
  "softcap, slopes": {
    rows: [300, 4300],
    options: {
      causal: true,
      softcap: 5,
      alibiSlopes: Tensor.from(
        Array.from({ length: Hq }, (_, head) => 0.01 / (head + 1)),
        [Hq],
      ),
    },
  },
  "heads that share keys, packed": { rows: [127, 4200], options: { causal: true }, group: 5 },
  "scores that outgrow the first ones": { rows: [600, 4400], spread: 8 },
};

for (const [name, { rows, options, group = 1, spread = 1 }] of Object.entries(problems)) {
  const [Sq, Sk] = rows.map(size) as [number, number];
  for (const D of headDims) {
    t.test(`${name}, D ${D}`, async (t) => {
      for (const dtype of ["bfloat16", "float16"] as const) {
        await Scope.run(async () => {
          const normal = (S: number, H: number, seed: number, std: number) =>
            Tensor.normal([B, S, H, D], { dtype, seed, std });
          const q = normal(Sq, Hq, 1, spread);
          const [k, v] = [normal(Sk, Hq / group, 2, spread), normal(Sk, Hq / group, 3, 1)];
          const [own, definition] = implementations;
          const all = attentionForward(q, k, v, { ...options, implementation: own });
          for (const [b, head] of looked) {
            const of = (tensor: Tensor, axis = 2, index = head) =>
              tensor.slice(0, b, b + 1).slice(axis, index, index + 1);
            const keyHead = Math.floor(head / group);
            const expected = attentionForward(of(q), of(k, 2, keyHead), of(v, 2, keyHead), {
              ...options,
              ...(options?.alibiSlopes && { alibiSlopes: options.alibiSlopes.slice(0, head, head + 1) }),
              implementation: definition,
            });
            const error = relativeError(await of(all.out).data(), await expected.out.data());
            const label = `${dtype}, sequence ${b}, head ${head}`;
            t.ok(error < bounds[dtype].result, `out, ${label}: off by ${error}`);
            const statistics = await expected.logSumExp.data();
            const wrong = (await of(all.logSumExp, 1).data()).findIndex(
              (x, i) => x !== statistics[i] && !(Math.abs(x - at(statistics, i)) < 0.02),
            );
            t.equal(wrong, -1, `logSumExp, ${label}`);
          }
        });
      }
    });
  }
}
