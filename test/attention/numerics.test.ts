// Values at the edges: nothing to look at, infinities, NaN, scores past exp's range.
import { AttentionMask, type AttentionOptions, attentionForward, Tensor } from "longseq";
import t from "tap";
import { at, type FloatType, floatTypes, relativeError } from "../support/compare.ts";
import { attend } from "../support/definition.ts";
import { implementations } from "../support/devices.ts";
import { inputsOf, solve } from "../support/problems.ts";

const normal = (shape: readonly number[], seed: number, dtype: FloatType = "float32") =>
  Tensor.normal(shape, { seed, dtype });
const { POSITIVE_INFINITY: infinity, NaN: nan } = Number;

t.test("a query that sees nothing gives 0, -Infinity and no gradient", async (t) => {
  // Query 1 and the last ones see nothing, by each means.
  const [Sq, Sk, H, D] = [140, 100, 2, 24];
  const hidden = (query: number) => query === 1 || query >= 120;
  const means: [string, AttentionOptions, (query: number) => boolean][] = [
    ["causal", { causal: true }, (query) => query < Sq - Sk],
    ["mask", { mask: AttentionMask.from(Sq, Sk, (query) => !hidden(query)) }, hidden],
    ["no keys at all", { mask: AttentionMask.from(Sq, Sk, () => false) }, () => true],
    [
      "documents without keys",
      { cuSeqlens: [0, 1, 2, 120, 140], cuSeqlensKeys: [0, 5, 5, 100, 100] },
      (query) => hidden(query),
    ],
    ["window", { window: [0, 0], queryPositions: [{ start: 50, length: Sq }] }, (query) => query >= 50],
  ];
  for (const [name, options, isEmpty] of means) {
    for (const implementation of implementations) {
      for (const dtype of floatTypes) {
        const inputs = {
          q: normal([1, Sq, H, D], 1, dtype),
          k: normal([1, Sk, H, D], 2, dtype),
          v: normal([1, Sk, H, D], 3, dtype),
          dout: normal([1, Sq, H, D], 4, dtype),
          dlogSumExp: normal([1, H, Sq], 5),
        };
        const results = solve({ ...inputs, options: { ...options, implementation } });
        const [out, dq, logSumExp, dk, dv] = await Promise.all(
          [results.out, results.dq, results.logSumExp, results.dk, results.dv].map((x) => x.data()),
        );
        const wrong: string[] = [];
        for (let i = 0; i < Sq; i++) {
          for (let h = 0; h < H; h++) {
            const row = (i * H + h) * D;
            const isZero = [out, dq].every((x) => x?.subarray(row, row + D).every((value) => value === 0));
            const statistic = logSumExp?.[h * Sq + i] ?? nan;
            if (isZero !== isEmpty(i) || (statistic === -infinity) !== isEmpty(i)) wrong.push(`${i}, ${h}`);
          }
        }
        const label = `${name}, ${implementation}, ${dtype}`;
        t.strictSame(wrong, [], label);
        t.ok(
          [dk, dv].every((x) => x?.every(Number.isFinite)),
          label,
        );
      }
    }
  }
});

t.test("no keys, no queries, no heads", async (t) => {
  for (const [Sq, Sk, Hq, Hkv] of [
    [3, 0, 2, 1],
    [0, 3, 2, 1],
    [3, 3, 0, 2],
    [3, 3, 0, 0],
    [0, 0, 2, 1],
  ] as const) {
    for (const implementation of implementations) {
      const [q, k, v] = [normal([1, Sq, Hq, 8], 1), normal([1, Sk, Hkv, 8], 2), normal([1, Sk, Hkv, 8], 3)];
      const results = solve({ q, k, v, dout: q, options: { implementation } });
      const label = `Sq ${Sq}, Sk ${Sk}, Hq ${Hq}, Hkv ${Hkv}, ${implementation}`;
      for (const name of ["out", "dq", "dk", "dv"] as const) {
        t.ok(
          (await results[name].data()).every((value) => value === 0),
          `${name}: ${label}`,
        );
      }
      t.ok(
        (await results.logSumExp.data()).every((value) => value === -infinity),
        label,
      );
    }
  }
});

t.test("equal scores give the mean of the values", async (t) => {
  const [S, D] = [257, 40];
  const v = normal([1, S, 1, D], 1);
  const values = await v.data();
  const mean = Array.from({ length: D }, (_, d) => {
    let sum = 0;
    for (let j = 0; j < S; j++) sum += at(values, j * D + d);
    return sum / S;
  });
  for (const implementation of implementations) {
    for (const scale of [0, 1]) {
      const q = scale === 0 ? normal([1, 3, 1, D], 2) : Tensor.zeros([1, 3, 1, D]);
      const { out, logSumExp } = attentionForward(q, v, v, { scale, implementation });
      t.ok(relativeError(await out.data(), [...mean, ...mean, ...mean]) < 1e-6, `scale ${scale}`);
      t.ok(relativeError(await logSumExp.data(), Array(3).fill(Math.log(S))) < 1e-6);
    }
  }
});

t.test("NaN in a row of q stays in that row", async (t) => {
  const [S, H, D] = [130, 2, 16];
  for (const implementation of implementations) {
    for (const dtype of floatTypes) {
      const values = await normal([1, S, H, D], 1, dtype).data();
      const [poisoned, head] = [70, 1];
      values[(poisoned * H + head) * D + 3] = nan;
      const q = Tensor.from(values, [1, S, H, D], { dtype });
      const k = normal([1, S, H, D], 2, dtype);
      const { out, logSumExp } = attentionForward(q, k, k, { implementation });
      const [results, statistics] = [await out.data(), await logSumExp.data()];
      const hasNaN: number[] = [];
      for (let row = 0; row < S * H; row++) {
        if (results.subarray(row * D, (row + 1) * D).some(Number.isNaN)) hasNaN.push(row);
      }
      t.strictSame(hasNaN, [poisoned * H + head], `${implementation}, ${dtype}`);
      t.strictSame(
        [...statistics.keys()].filter((i) => Number.isNaN(statistics[i])),
        [head * S + poisoned],
      );
    }
  }
});

t.test("NaN in keys that a query may not look at stays out of it", async (t) => {
  const [S, D] = [200, 32];
  const values = await normal([1, S, 1, D], 1).data();
  const first = 150;
  values.fill(nan, first * D);
  const [q, k, v] = [normal([1, S, 1, D], 2), Tensor.from(values, [1, S, 1, D]), normal([1, S, 1, D], 3)];
  for (const implementation of implementations) {
    const out = await attentionForward(q, k, v, { causal: true, implementation }).out.data();
    t.ok(out.subarray(0, first * D).every(Number.isFinite), implementation);
    t.ok(out.subarray(first * D).every(Number.isNaN), implementation);
  }
});

t.test("scores of thousands, of either sign", async (t) => {
  const shape = [1, 100, 1, 64];
  const inputs = { q: normal(shape, 1), k: normal(shape, 2), v: normal(shape, 3), dout: normal(shape, 4) };
  for (const scale of [1e4, -1e4]) {
    // One key takes nearly all of each query.
    const expected = solve({ ...inputs, options: { scale, implementation: "reference" } });
    const actual = solve({ ...inputs, options: { scale } });
    for (const name of ["out", "logSumExp", "dv"] as const) {
      // A score of 1e5 is known to 4e-3 in float32.
      const error = relativeError(await actual[name].data(), await expected[name].data());
      t.ok(error < 1e-2, `${name}, scale ${scale}: ${error}`);
    }
    t.ok((await actual.dq.data()).every(Number.isFinite));
  }
});

t.test("infinities, NaN and huge numbers in any input", async (t) => {
  const [S, D] = [70, 8];
  const shape = [1, S, 1, D];
  for (const name of ["q", "k", "v", "dout"] as const) {
    for (const value of [infinity, -infinity, nan, 3e38]) {
      for (const implementation of implementations) {
        const values = await normal(shape, 1).data();
        values[5 * D] = value;
        const inputs = {
          q: normal(shape, 2),
          k: normal(shape, 3),
          v: normal(shape, 4),
          dout: normal(shape, 5),
        };
        const odd = { ...inputs, [name]: Tensor.from(values, shape) };
        const results = solve({ ...odd, options: { causal: true, implementation } });
        const label = `${value} in ${name}, ${implementation}`;
        for (const tensor of Object.values(results))
          t.equal((await tensor.data()).length, tensor.size, label);
        // Queries before the odd row see nothing of it. A weight of 0 times an odd value may be NaN.
        const before = (await results.out.data()).subarray(0, 5 * D);
        if (name !== "v") t.ok(before.every(Number.isFinite), label);
      }
    }
  }
});

/** The error of doing the plain thing in a dtype: each step's result rounded to it, as unfused kernels do. */
async function plainError(dtype: FloatType, S: number, D: number): Promise<[plain: number, ours: number]> {
  const inputs = {
    q: normal([1, S, 1, D], 1, dtype),
    k: normal([1, S, 1, D], 2, dtype),
    v: normal([1, S, 1, D], 3, dtype),
    dout: normal([1, S, 1, D], 4, dtype),
  };
  const { q, k, v, dout } = await inputsOf({ ...inputs, options: {} });
  const positions = Array.from({ length: S }, (_, i) => i);
  const { out } = attend(
    { batch: 1, queries: S, keys: S, heads: 1, keyHeads: 1, headDim: D },
    {
      scale: 1 / Math.sqrt(D),
      softcap: 0,
      slopes: undefined,
      causal: false,
      window: [-1, -1],
      queryPositions: positions,
      keyPositions: positions,
      documents: undefined,
      mask: undefined,
    },
    { q, k, v, dout, dlogSumExp: undefined },
  );
  const rounded = async (values: Float64Array) => Tensor.from(values, [values.length], { dtype }).data();
  const scores = new Float64Array(S * S);
  for (let i = 0; i < S; i++) {
    for (let j = 0; j < S; j++) {
      for (let d = 0; d < D; d++)
        scores[i * S + j] = at(scores, i * S + j) + at(q, i * D + d) * at(k, j * D + d);
    }
  }
  const s = await rounded(scores.map((score) => score / Math.sqrt(D)));
  const weights = new Float64Array(S * S);
  for (let i = 0; i < S; i++) {
    const row = Array.from(s.subarray(i * S, (i + 1) * S));
    const most = Math.max(...row);
    const sum = row.reduce((total, score) => total + Math.exp(score - most), 0);
    weights.set(
      row.map((score) => Math.exp(score - most) / sum),
      i * S,
    );
  }
  const p = await rounded(weights);
  const plain = new Float64Array(S * D);
  for (let i = 0; i < S; i++) {
    for (let j = 0; j < S; j++) {
      for (let d = 0; d < D; d++)
        plain[i * D + d] = at(plain, i * D + d) + at(p, i * S + j) * at(v, j * D + d);
    }
  }
  const ours = attentionForward(inputs.q, inputs.k, inputs.v).out;
  return [relativeError(await rounded(plain), out.values), relativeError(await ours.data(), out.values)];
}

t.test("16-bit floats are at most twice as far off as the plain computation", async (t) => {
  for (const dtype of ["bfloat16", "float16"] as const) {
    const [plain, ours] = await plainError(dtype, 160, 64);
    t.ok(ours < 2 * plain, `${dtype}: ${ours}, plain ${plain}`);
  }
});
