// Norms against their definition in float64: sizes, dtypes, places in memory.
import fc from "fast-check";
import {
  addLayerNorm,
  addRmsNorm,
  layerNorm,
  layerNormBackward,
  layerNormForward,
  rmsNorm,
  rmsNormBackward,
  rmsNormForward,
  Scope,
  Tensor,
} from "longseq";
import t from "tap";
import { bitsOf } from "../support/bits.ts";
import { at, bounds, type FloatType, floatTypes, unitRoundoff } from "../support/compare.ts";
import {
  dot,
  errorAmong,
  type Layout,
  layoutNames,
  layouts,
  leading,
  random,
  rowsOf,
  sum,
  values,
  widths,
} from "../support/rows.ts";

interface Problem {
  shape: readonly number[];
  dtype: FloatType;
  weightDtype: FloatType;
  isLayer: boolean;
  hasBias: boolean;
  hasResidual: boolean;
  layout: Layout;
  mean: number;
  seed: number;
}

const eps = 1e-3;

interface Expected {
  out: number[];
  dx: number[];
  dweight: Float64Array;
  dbias: Float64Array;
  mean: number[];
  reciprocalDeviation: number[];
  /** What dx and dweight are sums of. */
  dxTerms: number[];
  dweightTerms: Float64Array;
}

function define(
  rows: readonly Float64Array[],
  weight: Float64Array,
  bias: Float64Array | undefined,
  douts: readonly Float64Array[],
  isLayer: boolean,
): Expected {
  const columns = weight.length;
  const made: Expected = {
    out: [],
    dx: [],
    dweight: new Float64Array(columns),
    dbias: new Float64Array(columns),
    mean: [],
    reciprocalDeviation: [],
    dxTerms: [],
    dweightTerms: new Float64Array(columns),
  };
  for (const [r, row] of rows.entries()) {
    const dout = douts[r] as Float64Array;
    const mean = isLayer ? sum(row) / columns : 0;
    const centred = row.map((value) => value - mean);
    const reciprocal = 1 / Math.sqrt(dot(centred, centred) / columns + eps);
    const n = centred.map((value) => value * reciprocal);
    const g = dout.map((value, c) => value * at(weight, c));
    const meanG = isLayer ? sum(g) / columns : 0;
    const meanGn = dot(g, n) / columns;
    made.mean.push(mean);
    made.reciprocalDeviation.push(reciprocal);
    made.out.push(...n.map((value, c) => value * at(weight, c) + (bias ? at(bias, c) : 0)));
    made.dx.push(...g.map((value, c) => reciprocal * (value - meanG - at(n, c) * meanGn)));
    made.dxTerms.push(...g.map((value) => reciprocal * value));
    for (let c = 0; c < columns; c++) {
      made.dweight[c] = at(made.dweight, c) + at(dout, c) * at(n, c);
      made.dweightTerms[c] = at(made.dweightTerms, c) + Math.abs(at(dout, c) * at(n, c));
      made.dbias[c] = at(made.dbias, c) + at(dout, c);
    }
  }
  return made;
}

/** What is off by more than its bound. */
async function wrong(problem: Problem): Promise<string[]> {
  const { shape, dtype, weightDtype, isLayer, hasBias, hasResidual, seed } = problem;
  const columns = shape.at(-1) ?? 0;
  const place = layouts[problem.layout];
  const x = await place(random(shape, seed, dtype, problem.mean));
  const dout = await place(random(shape, seed + 1, dtype));
  const residual = hasResidual ? await place(random(shape, seed + 2, dtype)) : undefined;
  const dsum = hasResidual ? await place(random(shape, seed + 3, dtype)) : undefined;
  const weight = random([columns], seed + 4, weightDtype, 1);
  const bias = isLayer && hasBias ? random([columns], seed + 5, weightDtype) : null;

  const options = { eps, ...(residual && { residual }) };
  const forward: { out: Tensor; sum?: Tensor; mean?: Tensor; reciprocalDeviation: Tensor } = isLayer
    ? layerNormForward(x, weight, bias, options)
    : rmsNormForward(x, weight, options);
  const { out, mean, reciprocalDeviation } = forward;
  const given = {
    x: forward.sum ? await place(forward.sum) : x,
    weight,
    reciprocalDeviation,
    dout,
    ...(dsum && { dsum }),
  };
  const gradients: { dx: Tensor; dweight: Tensor; dbias?: Tensor } =
    mean === undefined ? rmsNormBackward(given) : layerNormBackward({ ...given, mean });

  const found: string[] = [];
  const compare = (
    name: string,
    actual: Float64Array,
    expected: ArrayLike<number>,
    terms: ArrayLike<number>,
    bound: number,
  ) => {
    const error = errorAmong(actual, expected, terms);
    if (!(error < bound)) found.push(`${name} ${error}`);
  };
  const bound = bounds[dtype];
  const rows = rowsOf(await values(given.x), columns, x.size / columns);
  const douts = rowsOf(await values(dout), columns, x.size / columns);
  const biases = bias === null ? undefined : await values(bias);
  const expected = define(rows, await values(weight), biases, douts, isLayer);
  if (residual !== undefined) {
    const [a, b] = [await values(x), await values(residual)];
    const exact = a.map((value, i) => value + at(b, i));
    compare("sum", await values(forward.sum as Tensor), exact, [], unitRoundoff[dtype]);
  }
  if (dsum !== undefined) {
    const more = await values(dsum);
    expected.dx = expected.dx.map((value, i) => value + at(more, i));
  }
  compare(
    "out",
    await values(out),
    expected.out,
    rows.flatMap((row) => [...row]).map(() => 0),
    bound.result,
  );
  compare("dx", await values(gradients.dx), expected.dx, expected.dxTerms, bound.gradient);
  compare(
    "dweight",
    await values(gradients.dweight),
    expected.dweight,
    expected.dweightTerms,
    bound.gradient,
  );
  if (gradients.dbias)
    compare(
      "dbias",
      await values(gradients.dbias),
      expected.dbias,
      douts.map((row) => dot(row, row)),
      bound.gradient,
    );
  if (mean)
    compare(
      "mean",
      await values(mean),
      expected.mean,
      rows.map((row) => sum(row.map(Math.abs)) / columns),
      1e-5,
    );
  compare("reciprocalDeviation", await values(reciprocalDeviation), expected.reciprocalDeviation, [], 1e-5);
  return found;
}

const problems: fc.Arbitrary<Problem> = fc
  .record({
    leading,
    width: widths,
    dtype: fc.constantFrom(...floatTypes),
    isWide: fc.boolean(),
    isLayer: fc.boolean(),
    hasBias: fc.boolean(),
    hasResidual: fc.boolean(),
    layout: layoutNames,
    mean: fc.constantFrom(0, 0.5, -3),
    seed: fc.nat(),
  })
  .map(({ leading, width, isWide, dtype, ...rest }) => ({
    shape: [...leading, width],
    dtype,
    weightDtype: isWide ? "float32" : dtype,
    ...rest,
  }));

t.test("random problems", async (t) => {
  const property = fc.asyncProperty(problems, (problem) =>
    Scope.run(async () => {
      const found = await wrong(problem);
      if (found.length > 0) throw new Error(found.join(", "));
    }),
  );
  await t.resolves(fc.assert(property, { numRuns: 200 }));
});

t.test("long rows, and many", async (t) => {
  for (const [shape, layout] of [
    [[3, 8192], "packed"],
    [[2, 8192], "apart"],
    [[1, 20_000], "packed"],
    [[1, 40_001], "packed"],
    [[1, 70_000], "inside"],
    [[400, 24], "packed"],
    [[20, 20, 64], "apart"],
    [[600, 5], "packed"],
  ] as const) {
    for (const dtype of floatTypes) {
      for (const isLayer of [true, false]) {
        const found = await Scope.run(() =>
          wrong({
            ...{ shape, dtype, weightDtype: dtype, isLayer, hasBias: true, hasResidual: isLayer },
            ...{ layout, mean: 0.5, seed: 7 },
          }),
        );
        t.strictSame(found, [], `[${shape}] ${layout} ${dtype} ${isLayer ? "layer" : "RMS"}`);
      }
    }
  }
});

t.test("with a residual: the bits of the norm of the sum", async (t) => {
  for (const dtype of floatTypes) {
    const [x, residual] = [random([7, 200], 1, dtype), random([7, 200], 2, dtype)];
    const [weight, bias] = [random([200], 3, dtype), random([200], 4, dtype)];
    const layer = addLayerNorm(x, residual, weight, bias);
    const rms = addRmsNorm(x, residual, weight);
    t.ok((await bitsOf(layer.sum)).equals(await bitsOf(rms.sum)));
    t.ok((await bitsOf(layer.out)).equals(await bitsOf(layerNorm(layer.sum, weight, bias))), dtype);
    t.ok((await bitsOf(rms.out)).equals(await bitsOf(rmsNorm(rms.sum, weight))), dtype);
  }
});

t.test("a large mean takes no digits from the deviation", async (t) => {
  const x = Tensor.normal([4, 1000], { mean: 1000, seed: 9 });
  const flat = await values(x);
  const one = new Float64Array(1000).fill(1);
  const expected = define(rowsOf(flat, 1000, 4), one, undefined, rowsOf(flat, 1000, 4), true);
  const out = layerNorm(x, Tensor.from(one, [1000]), null, { eps });
  // The inputs have 1000 * 2^-24 of the deviation's digits.
  t.ok(errorAmong(await values(out), expected.out, []) < 1e-4);
});

t.test("nothing", async (t) => {
  for (const shape of [[0, 8], [3, 0], [0, 0], [2, 0, 8], [0]]) {
    const columns = shape.at(-1) ?? 0;
    const [x, weight] = [Tensor.zeros(shape), Tensor.zeros([columns])];
    const { out, sum: total } = addLayerNorm(x, x, weight, weight);
    t.strictSame([out.shape, total.shape], [shape, shape]);
    const { mean, reciprocalDeviation } = layerNormForward(x, weight, weight);
    const gradients = layerNormBackward({ x, weight, mean, reciprocalDeviation, dout: x });
    t.strictSame(Array.from(await gradients.dweight.data()), Array(columns).fill(0), `[${shape}]`);
    t.strictSame(Array.from(await gradients.dbias.data()), Array(columns).fill(0), `[${shape}]`);
    t.strictSame((await gradients.dx.data()).length, 0);
    const rms = rmsNormForward(x, weight);
    const { dx } = rmsNormBackward({ x, weight, reciprocalDeviation: rms.reciprocalDeviation, dout: x });
    await dx.device.synchronize();
  }
});
