// Attention under masks of blocks: writes the results of all cases to the file that the first argument names, and prints
// how much memory a mask takes beside the rest. A budget for masks is read once, so it is set for the whole process.
import {
  AttentionMask,
  type AttentionOptions,
  attentionBackward,
  attentionForward,
  Device,
  Scope,
  saveSafetensors,
  Tensor,
} from "longseq";
import type { FloatType } from "../compare.ts";
import { type Predicate, scatter } from "../masks.ts";
import { type Results, solve } from "../problems.ts";

export interface PanelsReport {
  /** Of a mask of partial blocks: the most that a direction holds beyond what it holds without one. */
  maskBytes: Record<string, number>;
}

const scattered = scatter(3, 90);
/** Empty, full and partial blocks. */
const mixed: Predicate = (query, key) => {
  const kind = Math.imul((query >> 7) * 31 + (key >> 7), 0x9e3779b1) >>> 30;
  return kind === 0 ? false : kind === 1 || scattered(query, key);
};

type Sizes = [Sq: number, Sk: number, Hq: number, Hkv: number, D: number];
interface Case {
  sizes: Sizes;
  dtype: FloatType;
  sees?: Predicate;
  options?: AttentionOptions;
}
const slopes = (heads: number) =>
  Tensor.from(
    Float32Array.from({ length: heads }, (_, i) => 0.1 / (i + 1)),
    [heads],
  );
const cases: Record<string, Case> = {
  plain: { sizes: [1000, 1000, 4, 2, 64], dtype: "bfloat16" },
  causal: { sizes: [700, 1000, 2, 2, 40], dtype: "float32", options: { causal: true } },
  documents: {
    sizes: [1000, 1000, 2, 1, 128],
    dtype: "bfloat16",
    options: { cuSeqlens: [0, 300, 300, 1000], outDtype: "float32" },
  },
  "window, softcap, slopes": {
    sizes: [900, 1000, 3, 3, 80],
    dtype: "float16",
    options: { window: [400, 120], softcap: 5, alibiSlopes: slopes(3) },
  },
  positions: {
    sizes: [500, 1000, 2, 2, 96],
    dtype: "float32",
    options: {
      window: [600, 50],
      alibiSlopes: slopes(2),
      scale: -0.1,
      queryPositions: [
        { start: 300, length: 200 },
        { start: 900, length: 300 },
      ],
      keyPositions: [{ start: 100, length: 1000 }],
    },
  },
  "keys in parts": { sizes: [200, 5000, 2, 2, 64], dtype: "bfloat16" },
  "packed heads, a row larger than a panel": {
    sizes: [100, 7000, 8, 2, 64],
    dtype: "float16",
    sees: scattered,
  },
  "wide heads": { sizes: [600, 1000, 2, 2, 256], dtype: "bfloat16", options: { deterministic: true } },
  "wide heads, float32": { sizes: [600, 1000, 2, 2, 256], dtype: "float32" },
};

function both({ sizes: [Sq, Sk, Hq, Hkv, D], dtype, options = {} }: Case, mask?: AttentionMask): Results {
  const input = (S: number, H: number, seed: number, type: FloatType = dtype) =>
    Tensor.normal([2, S, H, D], { seed, dtype: type });
  return solve({
    q: input(Sq, Hq, 1),
    k: input(Sk, Hkv, 2),
    v: input(Sk, Hkv, 3),
    dout: input(Sq, Hq, 4, options.outDtype ?? dtype),
    options: { ...options, ...(mask && { mask }) },
  });
}

/** The most that each direction holds, beyond its inputs and results. */
async function peaksOf(dtype: FloatType, options: AttentionOptions): Promise<[number, number]> {
  const device = Device.default;
  const [q, k, v, dout] = [1, 2, 3, 4].map((seed) => Tensor.normal([2, 2048, 2, 64], { seed, dtype })) as [
    Tensor,
    Tensor,
    Tensor,
    Tensor,
  ];
  const peaks: number[] = [];
  const during = async <Result extends Readonly<Record<string, Tensor>>>(call: () => Result) => {
    await device.synchronize();
    device.resetPeak();
    const results = call();
    await device.synchronize();
    const { peakBytes, liveBytes } = device.memory();
    peaks.push(peakBytes - liveBytes);
    return results;
  };
  const { out, logSumExp } = await during(() => ({ ...attentionForward(q, k, v, options) }));
  await during(() => attentionBackward({ q, k, v, out, logSumExp, dout }, options));
  return peaks as [number, number];
}

await Scope.run(async () => {
  const tensors: Record<string, Tensor> = {};
  for (const [name, given] of Object.entries(cases)) {
    const [Sq, Sk] = given.sizes;
    const mask = AttentionMask.from(Sq, Sk, given.sees ?? mixed);
    for (const [of, tensor] of Object.entries(both(given, mask))) tensors[`${name}/${of}`] = tensor;
    mask.dispose();
  }
  await saveSafetensors(process.argv[2] ?? "", tensors);
});

const report: PanelsReport = { maskBytes: {} };
const mask = AttentionMask.from(2048, 2048, scattered);
for (const dtype of ["bfloat16", "float32"] as const) {
  // In scopes: what the collector let go meanwhile would look like memory that a direction took.
  const peaks = (options: AttentionOptions) => Scope.run(() => peaksOf(dtype, options));
  const [without, masked] = [await peaks({}), await peaks({ mask })];
  for (const [i, pass] of (["forward", "backward"] as const).entries()) {
    report.maskBytes[`${dtype}, ${pass}`] = (masked[i] ?? 0) - (without[i] ?? 0);
  }
}
console.log(JSON.stringify(report));
