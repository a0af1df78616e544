// GeLU and SwiGLU against their definitions in float64, in every dtype, over sizes that are no multiple of a vector.
import fc from "fast-check";
import { type GeluOptions, gelu, geluBackward, Scope, swiglu, swigluBackward, Tape, Tensor } from "longseq";
import t from "tap";
import { differing } from "../support/bits.ts";
import { at, bounds, type FloatType, floatTypes, relativeError } from "../support/compare.ts";
import { inside } from "../support/layouts.ts";

const logistic = (x: number) => 1 / (1 + Math.exp(-x));

/** By its series near 0, by its continued fraction far from it: 1 - Phi of a positive number, to 1e-14. */
function tail(a: number): number {
  if (a < 3) {
    let term = a;
    let sum = a;
    for (let n = 1; Math.abs(term) > 1e-18; n++) sum += term *= (a * a) / (2 * n + 1);
    return 0.5 - (sum * Math.exp((-a * a) / 2)) / Math.sqrt(2 * Math.PI);
  }
  let fraction = a;
  for (let n = 200; n > 0; n--) fraction = a + n / fraction;
  return Math.exp((-a * a) / 2) / Math.sqrt(2 * Math.PI) / fraction;
}
const below = (z: number) => (z < 0 ? tail(-z) : 1 - tail(z));
const density = (z: number) => Math.exp((-z * z) / 2) / Math.sqrt(2 * Math.PI);

type Functions = Record<"value" | "slope", (z: number) => number>;
const twice = (z: number) => 2 * Math.sqrt(2 / Math.PI) * (z + 0.044715 * z ** 3);
const forms: Record<"none" | "tanh", Functions> = {
  none: { value: (z) => z * below(z), slope: (z) => below(z) + z * density(z) },
  tanh: {
    value: (z) => z * logistic(twice(z)),
    slope: (z) => {
      const s = logistic(twice(z));
      const slope = 2 * Math.sqrt(2 / Math.PI) * (1 + 3 * 0.044715 * z * z);
      return s + z * s * logistic(-twice(z)) * slope;
    },
  },
};
const silu: Functions = {
  value: (g) => g * logistic(g),
  slope: (g) => logistic(g) * (1 + g * logistic(-g)),
};
const approximations = ["none", "tanh"] as const;

const numbers = (tensor: Tensor) => tensor.data().then((values) => Array.from(values));
const normal = (shape: readonly number[], seed: number, dtype: FloatType, std = 2) =>
  Tensor.normal(shape, { seed, dtype, std });

async function checkGelu(shape: readonly number[], dtype: FloatType, options: GeluOptions) {
  const [x, dy] = [normal(shape, 1, dtype), normal(shape, 2, dtype)];
  const [xs, dys] = [await numbers(x), await numbers(dy)];
  const { value, slope } = forms[options.approximate ?? "none"];
  const F = shape.at(-1) ?? 0;
  const bias = options.bias && (await numbers(options.bias));
  const z = xs.map((x, i) => x + (bias ? at(bias, i % F) : 0));
  const dz = z.map((z, i) => slope(z) * at(dys, i));
  const { dx, dbias } = geluBackward({ x, dy }, options);
  const errors = {
    y: relativeError(await numbers(gelu(x, options)), z.map(value)),
    dx: relativeError(await numbers(dx), dz),
    dbias: 0,
  };
  if (dbias) {
    const sums = new Float64Array(F);
    for (const [i, d] of dz.entries()) sums[i % F] = at(sums, i % F) + d;
    errors.dbias = relativeError(await numbers(dbias), sums);
  }
  return errors;
}

t.test("gelu and its gradients", async (t) => {
  const property = fc.asyncProperty(
    fc.array(fc.integer({ min: 1, max: 7 }), { maxLength: 3 }),
    fc.integer({ min: 1, max: 70 }),
    fc.constantFrom(...floatTypes),
    fc.constantFrom(...approximations),
    fc.boolean(),
    (leading, F, dtype, approximate, hasBias) =>
      Scope.run(async () => {
        const options = { approximate, ...(hasBias && { bias: normal([F], 3, dtype, 1) }) };
        const errors = await checkGelu([...leading, F], dtype, options);
        const { result, gradient } = bounds[dtype];
        const fits = errors.y < result && errors.dx < gradient && errors.dbias < gradient;
        if (!fits) throw new Error(`[${leading}, ${F}] ${dtype} ${approximate}: ${JSON.stringify(errors)}`);
      }),
  );
  await t.resolves(fc.assert(property, { numRuns: 60 }));
});

t.test("many rows, and rows of many blocks", async (t) => {
  for (const shape of [
    [3001, 40],
    [3, 70_001],
    [700, 520],
  ]) {
    const bias = normal([shape[1] ?? 0], 3, "float32", 1);
    const errors = await Scope.run(() => checkGelu(shape, "float32", { bias, approximate: "tanh" }));
    t.ok(Math.max(errors.y, errors.dx, errors.dbias) < 1e-5, `${shape}: ${JSON.stringify(errors)}`);
  }
});

t.test("as exact far from 0 as near it", async (t) => {
  const zs = Float32Array.from({ length: 8001 }, (_, i) => (i - 4000) / 500);
  const cases: [string, (x: Tensor) => Tensor, (z: number) => number][] = [
    ["gelu", (x) => gelu(x), forms.none.value],
    ["gelu tanh", (x) => gelu(x, { approximate: "tanh" }), forms.tanh.value],
    ["silu", (x) => swiglu(x, Tensor.from(new Float32Array(x.size).fill(1), x.shape)), silu.value],
  ];
  for (const [name, compute, define] of cases) {
    const values = await numbers(compute(Tensor.from(zs, [zs.length])));
    // An exponent e is known to its own rounding, e 2^-24: to 2^-20 where z is -5.
    const worst = (from: number) =>
      values.reduce((most, y, i) => {
        const z = at(zs, i);
        const expected = define(z);
        return z === 0 || z < from ? most : Math.max(most, Math.abs(y - expected) / Math.abs(expected));
      }, 0);
    t.ok(worst(-2) < 16 * 2 ** -23, `${name}: ${worst(-2)}`);
    t.ok(worst(-8) < 2 ** -15, `${name}: ${worst(-8)}`);
  }
});

t.test("where the numbers end", async (t) => {
  const ends = [
    Number.NEGATIVE_INFINITY,
    -(2 ** 127),
    -200,
    -16,
    0,
    16,
    200,
    2 ** 127,
    Number.POSITIVE_INFINITY,
    Number.NaN,
  ];
  const x = Tensor.from(ends, [ends.length]);
  const ones = Tensor.from(
    ends.map(() => 1),
    [ends.length],
  );
  const positive = ends.map((z) => Math.max(z, 0));
  const step = ends.map((z) => (z === 0 ? 0.5 : z < 0 ? 0 : z > 0 ? 1 : z));
  const close = (actual: readonly number[], expected: readonly number[], what: string) =>
    t.ok(
      actual.every((y, i) => Object.is(y, at(expected, i)) || Math.abs(y - at(expected, i)) < 1e-6),
      `${what}: ${actual}`,
    );
  for (const approximate of approximations) {
    close(await numbers(gelu(x, { approximate })), positive, approximate);
    close(await numbers(geluBackward({ x, dy: ones }, { approximate }).dx), step, `${approximate}, gradient`);
  }
  const { dgate } = swigluBackward({ gate: x, up: ones, dy: ones });
  close(
    await numbers(swiglu(x, ones)),
    positive.map((z, i) => (Math.abs(at(ends, i)) === 16 ? silu.value(at(ends, i)) : z)),
    "silu",
  );
  close(
    await numbers(dgate),
    step.map((s, i) => (Math.abs(at(ends, i)) === 16 ? silu.slope(at(ends, i)) : s)),
    "silu, gradient",
  );
});

t.test("swiglu and its gradients, of the halves of one tensor", async (t) => {
  for (const dtype of floatTypes) {
    for (const F of [1, 8, 15, 64, 129]) {
      const packed = normal([3, 5, 2 * F], 1, dtype);
      const [gate, up] = [packed.slice(2, 0, F), packed.slice(2, F, 2 * F)];
      const dy = normal([3, 5, F], 2, dtype);
      const [gs, us, ds] = [await numbers(gate), await numbers(up), await numbers(dy)];
      const { dgate, dup } = swigluBackward({ gate, up, dy });
      const errors = {
        y: relativeError(
          await numbers(swiglu(gate, up)),
          gs.map((g, i) => silu.value(g) * at(us, i)),
        ),
        dgate: relativeError(
          await numbers(dgate),
          gs.map((g, i) => silu.slope(g) * at(us, i) * at(ds, i)),
        ),
        dup: relativeError(
          await numbers(dup),
          gs.map((g, i) => silu.value(g) * at(ds, i)),
        ),
      };
      const { result, gradient } = bounds[dtype];
      t.ok(
        errors.y < result && errors.dgate < gradient && errors.dup < gradient,
        `${dtype} ${F}: ${JSON.stringify(errors)}`,
      );
    }
  }
});

t.test("where the rows lie makes no difference", async (t) => {
  for (const dtype of floatTypes) {
    for (const shape of [
      [4, 3, 5, 33],
      [2, 6, 64],
    ]) {
      const [x, up, dy] = [1, 2, 3].map((seed) => normal(shape, seed, dtype)) as [Tensor, Tensor, Tensor];
      const bias = normal(shape.slice(-1), 4, dtype);
      const solve = (x: Tensor, up: Tensor, dy: Tensor) => ({
        ...geluBackward({ x, dy }, { bias }),
        ...swigluBackward({ gate: x, up, dy }),
        gelu: gelu(x, { bias }),
        swiglu: swiglu(x, up),
      });
      const expected = solve(x, up, dy);
      const moved = solve(await inside(x), await inside(up), await inside(dy));
      const { dbias, ...rest } = expected;
      t.strictSame(await differing(moved, rest), [], `${dtype} ${shape}`);
      const error = relativeError(await numbers(moved.dbias as Tensor), await numbers(dbias as Tensor));
      t.ok(error < bounds[dtype].gradient, `dbias: ${error}`);
      const swapped = shape.map((_, axis) => (axis < 2 ? 1 - axis : axis));
      const exchanged = gelu(x.permute(...swapped), { bias }).permute(...swapped);
      t.strictSame(
        await differing({ y: exchanged.contiguous() }, { y: expected.gelu }),
        [],
        "axes exchanged",
      );
    }
  }
});

t.test("on a tape", async (t) => {
  using tape = new Tape();
  const [packed, bias] = [normal([3, 20], 1, "float32"), normal([10], 2, "float32")];
  tape.watch(packed, bias);
  const [gate, up] = [packed.slice(1, 0, 10), packed.slice(1, 10, 20)];
  const y = swiglu(gelu(gate, { bias }), up);
  const dy = normal([3, 10], 3, "float32");
  const [dpacked, dbias] = tape.backward(y, dy, [packed, bias]) as [Tensor, Tensor];
  const [xs, bs, ds] = [await numbers(packed), await numbers(bias), await numbers(dy)];
  const objective = (xs: readonly number[], bs: readonly number[]) =>
    ds.reduce((sum, d, i) => {
      const [row, f] = [Math.floor(i / 10), i % 10];
      const g = forms.none.value(at(xs, 20 * row + f) + at(bs, f));
      return sum + d * silu.value(g) * at(xs, 20 * row + 10 + f);
    }, 0);
  const h = 1e-5;
  const moved = (values: readonly number[], i: number, by: number) => values.with(i, at(values, i) + by);
  const byX = xs.map((_, i) => (objective(moved(xs, i, h), bs) - objective(moved(xs, i, -h), bs)) / (2 * h));
  const byBias = bs.map(
    (_, i) => (objective(xs, moved(bs, i, h)) - objective(xs, moved(bs, i, -h))) / (2 * h),
  );
  t.ok(relativeError(await numbers(dpacked), byX) < 1e-5);
  t.ok(relativeError(await numbers(dbias), byBias) < 1e-5);
});

t.test("no elements", async (t) => {
  for (const shape of [[0], [0, 8], [3, 0], [2, 0, 8]]) {
    const x = Tensor.zeros(shape);
    const bias = Tensor.zeros(shape.slice(-1));
    t.same(gelu(x, { bias }).shape, shape);
    t.same(swiglu(x, x).shape, shape);
    const { dx, dbias } = geluBackward({ x, dy: x }, { bias });
    t.same(dx.shape, shape);
    t.same(await numbers(dbias as Tensor), new Array(shape.at(-1)).fill(0));
    t.same(swigluBackward({ gate: x, up: x, dy: x }).dup.shape, shape);
  }
  await Tensor.zeros([1]).data();
});
