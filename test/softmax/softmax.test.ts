// Softmax against its definition in float64: masks, the causal rule, sizes, dtypes, places in memory.
import fc from "fast-check";
import { Scope, softmax, softmaxBackward, Tape, Tensor } from "longseq";
import t from "tap";
import { bitsOf } from "../support/bits.ts";
import { at, bounds, floatTypes, relativeError } from "../support/compare.ts";
import {
  dot,
  errorAmong,
  layoutNames,
  layouts,
  leading,
  random,
  rowsOf,
  sum,
  values,
  widths,
} from "../support/rows.ts";

function define(
  rows: readonly Float64Array[],
  douts: readonly Float64Array[],
  scale: number,
  sees: (row: number, column: number) => boolean,
) {
  const [out, dx, terms]: [number[], number[], number[]] = [[], [], []];
  for (const [r, row] of rows.entries()) {
    const scores = Array.from(row, (x, c) => (sees(r, c) ? scale * x : Number.NEGATIVE_INFINITY));
    const most = scores.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
    const exponentials = scores.map((s) => (s === Number.NEGATIVE_INFINITY ? 0 : Math.exp(s - most)));
    const total = sum(exponentials);
    const p = exponentials.map((e) => (total === 0 ? 0 : e / total));
    const dout = douts[r] as Float64Array;
    const mean = dot(p, dout);
    out.push(...p);
    dx.push(...p.map((value, c) => scale * value * (at(dout, c) - mean)));
    terms.push(...p.map((value, c) => scale * value * at(dout, c)));
  }
  return { out, dx, terms };
}

const masks = fc.constantFrom("none", "whole", "last axes", "ones");

t.test("random problems", async (t) => {
  const problems = fc.record({
    ...{ leading, queries: fc.integer({ min: 1, max: 9 }), width: widths, seed: fc.nat() },
    ...{ dtype: fc.constantFrom(...floatTypes), scale: fc.constantFrom(1, 0.125, 3, -1) },
    ...{ mask: masks, causal: fc.boolean(), layout: layoutNames },
  });
  const property = fc.asyncProperty(problems, ({ dtype, scale, causal, seed, layout, ...problem }) =>
    Scope.run(async () => {
      const shape = [...problem.leading, problem.queries, problem.width];
      const place = layouts[layout];
      const maskShape = {
        none: undefined,
        whole: shape,
        "last axes": shape.slice(-2),
        ones: shape.map((size, axis) => (axis === shape.length - 1 || axis % 2 ? size : 1)),
      }[problem.mask];
      const visible = maskShape && random(maskShape, seed + 1, "float32").to("uint8");
      const mask = visible && (layout === "inside" ? await layouts.packed(visible) : visible);
      const [x, dout] = [
        await place(random(shape, seed, dtype)),
        await place(random(shape, seed + 2, dtype)),
      ];
      const out = softmax(x, { scale, causal, ...(mask && { mask }) });
      const dx = softmaxBackward({ out: await place(out), dout }, { scale });

      const columns = problem.width;
      const bytes = mask && (await values(mask));
      /** Where row-major index i of x falls in the mask. */
      const maskIndex = (i: number): number => {
        let [rest, index, step] = [i, 0, 1];
        for (let axis = 1; axis <= shape.length; axis++) {
          const size = shape.at(-axis) ?? 1;
          const own = maskShape?.at(-axis) ?? 1;
          if (own > 1) index += (rest % size) * step;
          step *= own;
          rest = Math.floor(rest / size);
        }
        return index;
      };
      const sees = (r: number, c: number) =>
        (!causal || c <= (r % problem.queries) + columns - problem.queries) &&
        (bytes === undefined || at(bytes, maskIndex(r * columns + c)) !== 0);
      const rows = rowsOf(await values(x), columns, x.size / columns);
      const douts = rowsOf(await values(dout), columns, x.size / columns);
      const expected = define(rows, douts, scale, sees);
      const actual = await values(out);
      const errors = [
        relativeError(actual, expected.out) / bounds[dtype].result,
        errorAmong(await values(dx), expected.dx, expected.terms) / bounds[dtype].gradient,
      ];
      if (!errors.every((error) => error < 1)) throw new Error(`${errors}`);
      const hidden = expected.out.findIndex(
        (value, i) => value === 0 && actual[i] !== 0 && !sees(Math.floor(i / columns), i % columns),
      );
      if (hidden >= 0) throw new Error(`element ${hidden} is hidden, but is ${actual[hidden]}`);
    }),
  );
  await t.resolves(fc.assert(property, { numRuns: 200 }));
});

t.test("long rows", async (t) => {
  for (const columns of [4096, 20_000, 40_001, 70_000]) {
    for (const dtype of floatTypes) {
      const [x, dout] = [random([3, columns], 1, dtype), random([3, columns], 2, dtype)];
      const out = softmax(x, { scale: 2, causal: true });
      const rows = rowsOf(await values(x), columns, 3);
      const expected = define(
        rows,
        rowsOf(await values(dout), columns, 3),
        2,
        (r, c) => c <= r + columns - 3,
      );
      t.ok(relativeError(await values(out), expected.out) < bounds[dtype].result, `${columns} ${dtype}`);
      const dx = await values(softmaxBackward({ out, dout }, { scale: 2 }));
      t.ok(errorAmong(dx, expected.dx, expected.terms) < bounds[dtype].gradient, `${columns} ${dtype} dx`);
    }
  }
});

t.test("what is not finite", async (t) => {
  const [no, nan] = [Number.NEGATIVE_INFINITY, Number.NaN];
  const rows = [
    [no, no, no, no],
    [no, 0, no, 0],
    [1, nan, 1, 1],
    [nan, nan, nan, nan],
    [1e38, 1e38, -1e38, 0],
  ];
  const out = await softmax(Tensor.from(rows.flat(), [5, 4])).data();
  t.strictSame(Array.from(out), [
    ...[0, 0, 0, 0],
    ...[0, 0.5, 0, 0.5],
    ...[nan, nan, nan, nan],
    ...[nan, nan, nan, nan],
    ...[0.5, 0.5, 0, 0],
  ]);
});

t.test("a row that sees nothing", async (t) => {
  using tape = new Tape();
  const x = Tensor.normal([4, 2], { seed: 1 });
  tape.watch(x);
  const out = softmax(x, { causal: true });
  t.strictSame(Array.from(await out.data()).slice(0, 4), [0, 0, 0, 0]);
  const [dx] = tape.backward(out, Tensor.normal([4, 2], { seed: 2 }), [x]);
  t.strictSame(Array.from(await values(dx as Tensor)).slice(0, 6), [0, 0, 0, 0, 0, 0], "and that sees one");
  const hidden = softmax(x, { mask: Tensor.zeros([2], { dtype: "uint8" }) });
  t.strictSame(Array.from(await hidden.data()), Array(8).fill(0));
});

t.test("the causal rule is the mask of it", async (t) => {
  const x = random([2, 5, 8], 1, "bfloat16");
  const bytes = Uint8Array.from({ length: 40 }, (_, i) => Number(i % 8 <= Math.floor(i / 8) + 3) * 255);
  const mask = Tensor.from(bytes, [5, 8]);
  t.ok((await bitsOf(softmax(x, { mask }))).equals(await bitsOf(softmax(x, { causal: true }))));
});

t.test("a derivative, also of a gradient whose rows have gaps", async (t) => {
  const start = await values(Tensor.normal([3, 4], { seed: 1 }));
  const dout = Tensor.normal([4, 3], { seed: 2 }).permute(1, 0);
  const options = { scale: 0.7, causal: true };
  using tape = new Tape();
  const x = Tensor.from(start, [3, 4]);
  tape.watch(x);
  const [dx] = tape.backward(softmax(x, options), dout, [x]);
  const weights = await values(dout);
  const expected: number[] = [];
  for (let i = 0; i < 12; i++) {
    const moved = async (by: number) =>
      dot(
        await values(
          softmax(
            Tensor.from(
              start.map((v, j) => (j === i ? v + by : v)),
              [3, 4],
            ),
            options,
          ),
        ),
        weights,
      );
    expected.push(((await moved(2 ** -6)) - (await moved(-(2 ** -6)))) / 2 ** -5);
  }
  t.ok(relativeError(await values(dx as Tensor), expected) < 1e-3);
});

t.test("nothing", async (t) => {
  for (const shape of [[0, 4], [4, 0], [0, 0], [0]]) {
    const x = Tensor.zeros(shape);
    const out = softmax(x, { causal: shape.length > 1 });
    t.strictSame([out.shape, (await out.data()).length], [shape, 0]);
    t.equal((await softmaxBackward({ out, dout: x }).data()).length, 0);
  }
});
