// Every kernel of attention once, on shapes that fill no tile: against `reference`. scripts/sanitize-gpu.mjs runs this file
// under compute-sanitizer, so shapes are as small as they can be for all of a kernel's code to run.
import { AttentionMask, type AttentionOptions, attentionForward, info, Scope, Tensor } from "longseq";
import t from "tap";
import { bounds, floatTypes, relativeError } from "../support/compare.ts";
import { implementationsOf, kind } from "../support/devices.ts";
import { scatter } from "../support/masks.ts";
import { solve } from "../support/problems.ts";

type Sizes = [B: number, Sq: number, Sk: number, Hq: number, Hkv: number];
interface Case {
  sizes: Sizes;
  options: () => AttentionOptions;
}
const scattered = scatter(5, 100);
const cases: Record<string, Case> = {
  full: { sizes: [2, 130, 150, 2, 1], options: () => ({}) },
  "causal, documents": {
    sizes: [1, 300, 300, 1, 1],
    options: () => ({ causal: true, cuSeqlens: [0, 37, 290, 300] }),
  },
  "window, softcap, slopes": {
    sizes: [1, 200, 140, 2, 2],
    options: () => ({ window: [60, 30], softcap: 3, alibiSlopes: Tensor.from([0.2, 0.01], [2]) }),
  },
  "a mask of blocks": {
    sizes: [1, 290, 270, 2, 1],
    options: () => ({
      // Empty, partial and full blocks.
      mask: AttentionMask.from(290, 270, (i, j) => j >= 128 && (i >= 256 || scattered(i, j))),
      softcap: 5,
    }),
  },
  "packed heads that fill no tile, slopes, a mask": {
    sizes: [1, 100, 140, 6, 2],
    options: () => ({
      alibiSlopes: Tensor.from([0.3, 0.1, 0.03, 0.01, 0.003, 0], [6]),
      mask: AttentionMask.from(100, 140, scattered),
    }),
  },
  "few queries, packed heads, keys in parts": { sizes: [1, 5, 1100, 4, 2], options: () => ({}) },
};

for (const headDim of [8, 64, 80, 96, 128, 256]) {
  for (const dtype of floatTypes) {
    t.test(`${dtype}, D ${headDim}`, async (t) => {
      for (const [name, { sizes, options }] of Object.entries(cases)) {
        await Scope.run(async () => {
          const [B, Sq, Sk, Hq, Hkv] = sizes;
          const input = (S: number, heads: number, seed: number) =>
            Tensor.normal([B, S, heads, headDim], { seed, dtype });
          const tensors = {
            q: input(Sq, Hq, 1),
            k: input(Sk, Hkv, 2),
            v: input(Sk, Hkv, 3),
            dout: input(Sq, Hq, 4),
          };
          const given = options();
          const expected = solve({ ...tensors, options: { ...given, implementation: "reference" } });
          const ways = [
            {},
            { deterministic: true },
            ...implementationsOf(dtype)
              .filter((one) => one !== "reference")
              .map((implementation) => ({ implementation })),
          ];
          for (const way of ways) {
            const actual = solve({ ...tensors, options: { ...given, ...way } });
            for (const of of ["out", "logSumExp", "dq", "dk", "dv"] as const) {
              const error = relativeError(await actual[of].data(), await expected[of].data());
              const bound = bounds[dtype][of.startsWith("d") ? "gradient" : "result"];
              const label = `${name}, ${JSON.stringify(way)}: ${of} is off by ${error}`;
              t.ok(error < bound, label);
            }
          }
          given.mask?.dispose();
        });
      }
    });
  }
}

// sm80's forward has larger tiles there, once for each multiprocessor.
const multiprocessors = info().cuda.gpus[0]?.multiprocessors ?? 0;
t.test("as many heads as multiprocessors", { skip: kind !== "cuda" && "it takes a GPU" }, async (t) => {
  for (const dtype of ["bfloat16", "float16"] as const) {
    for (const [headDim, keys] of [
      [80, 1030],
      [96, 1030],
      [128, 4100],
    ] as const) {
      await Scope.run(async () => {
        const input = (S: number, seed: number) =>
          Tensor.normal([1, S, multiprocessors, headDim], { seed, dtype });
        const [q, k, v] = [input(130, 1), input(keys, 2), input(keys, 3)];
        const [actual, expected] = (["sm80", "reference"] as const).map((implementation) =>
          attentionForward(q, k, v, { causal: true, implementation }),
        );
        for (const of of ["out", "logSumExp"] as const) {
          const error = relativeError((await actual?.[of].data()) ?? [], (await expected?.[of].data()) ?? []);
          t.ok(error < bounds[dtype].result, `${dtype}, D ${headDim}: ${of} is off by ${error}`);
        }
      });
    }
  }
});
