// Cross entropy against its definition in float64: sizes, dtypes, ignored targets, places in memory.
import fc from "fast-check";
import {
  type CrossEntropyOptions,
  crossEntropy,
  crossEntropyBackward,
  crossEntropyForward,
  Scope,
  Tape,
  Tensor,
} from "longseq";
import t from "tap";
import { bitsOf } from "../support/bits.ts";
import { at, bounds, type FloatType, floatTypes, relativeError } from "../support/compare.ts";
import {
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

type Reduction = NonNullable<CrossEntropyOptions["reduction"]>;
const reductions: readonly Reduction[] = ["mean", "sum", "none"];

function define(
  rows: readonly Float64Array[],
  targets: ArrayLike<number>,
  dloss: ArrayLike<number>,
  reduction: Reduction,
  ignoreIndex: number,
) {
  const isIgnored = (r: number) => targets[r] === ignoreIndex;
  const count = rows.filter((_, r) => !isIgnored(r)).length;
  const divisor = reduction === "mean" ? Math.max(count, 1) : 1;
  const logSumExp = rows.map((row) => {
    const most = row.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
    return most + Math.log(sum(row.map((x) => Math.exp(x - most))));
  });
  const losses = rows.map((row, r) => (isIgnored(r) ? 0 : at(logSumExp, r) - at(row, at(targets, r))));
  const dlogits = rows.flatMap((row, r) => {
    const factor = isIgnored(r) ? 0 : at(dloss, reduction === "none" ? r : 0) / divisor;
    return Array.from(row, (x, v) => (Math.exp(x - at(logSumExp, r)) - Number(v === targets[r])) * factor);
  });
  const loss = reduction === "none" ? losses : [sum(losses) / divisor];
  return { loss, logSumExp, dlogits, count, terms: losses.map(Math.abs) };
}

interface Problem {
  leading: number[];
  width: number;
  dtype: FloatType;
  seed: number;
  reduction: Reduction;
  ignoreIndex: number;
  layout: Layout;
  overwriteLogits: boolean;
}
const problems: fc.Arbitrary<Problem> = fc.record({
  ...{ leading, width: widths, dtype: fc.constantFrom(...floatTypes), seed: fc.nat() },
  ...{ reduction: fc.constantFrom(...reductions), ignoreIndex: fc.constantFrom(-100, 0, -1) },
  ...{ layout: layoutNames, overwriteLogits: fc.boolean() },
});

async function check(given: Problem): Promise<void> {
  const { width, dtype, seed, reduction, ignoreIndex, layout, overwriteLogits } = given;
  const shape = [...given.leading, width];
  const logits = await layouts[layout](random(shape, seed, dtype));
  const rows = rowsOf(await values(logits), width, logits.size / width);
  const list = Int32Array.from(rows, (_, r) =>
    (seed + 7919 * r) % 4 === 0 ? ignoreIndex : (seed + 31 * r) % width,
  );
  const targets = Tensor.from(list, given.leading);
  const options = { reduction, ignoreIndex };
  const { loss, logSumExp, count } = crossEntropyForward(logits, targets, options);
  const dloss = Tensor.normal(loss.shape, { seed: seed + 1, mean: 2 });
  const expected = define(rows, list, await values(dloss), reduction, ignoreIndex);
  const dlogits = crossEntropyBackward(
    { logits, targets, logSumExp, count, dloss },
    { ...options, overwriteLogits },
  );
  const errors = {
    // One row's may be next to nothing: beside 1.
    logSumExp: relativeError([1, ...(await values(logSumExp))], [1, ...expected.logSumExp]) / 1e-5,
    count: relativeError(await values(count), [expected.count]) / 1e-9,
    loss: relativeError(await values(loss), expected.loss) / 1e-5,
    dlogits: relativeError(await values(dlogits), expected.dlogits) / bounds[dtype].gradient,
  };
  if (!Object.values(errors).every((error) => error < 1)) throw new Error(JSON.stringify(errors));
  if (overwriteLogits && !(await bitsOf(logits)).equals(await bitsOf(dlogits)))
    throw new Error("not in place");
}

t.test("random problems", async (t) => {
  const property = fc.asyncProperty(problems, (given) => Scope.run(() => check(given)));
  await t.resolves(fc.assert(property, { numRuns: 200 }));
});

t.test("large vocabularies, and many rows", async (t) => {
  for (const [rows, width, layout] of [
    [3, 32_000, "packed"],
    [3, 50_257, "packed"],
    [2, 70_001, "inside"],
    [5000, 6, "packed"],
    [70_000, 1, "packed"],
  ] as const) {
    for (const dtype of floatTypes) {
      const given = {
        leading: [rows],
        width,
        dtype,
        seed: 5,
        reduction: "mean" as const,
        ignoreIndex: -100,
        layout,
      };
      await t.resolves(Scope.run(() => check({ ...given, overwriteLogits: true })));
    }
  }
});

t.test("targets of any strides", async (t) => {
  const logits = random([3, 4, 10], 1, "float32");
  const targets = Tensor.from(
    Int32Array.from({ length: 12 }, (_, i) => i % 10),
    [4, 3],
  ).permute(1, 0);
  const apart = crossEntropy(logits, targets, { reduction: "none" });
  const packed = crossEntropy(logits, targets.contiguous(), { reduction: "none" });
  t.ok((await bitsOf(apart)).equals(await bitsOf(packed)));
});

t.test("all targets ignored: 0, and no gradient", async (t) => {
  for (const reduction of reductions) {
    using tape = new Tape();
    const logits = random([3, 10], 1, "float32");
    tape.watch(logits);
    const loss = crossEntropy(logits, Tensor.from(Int32Array.of(-7, -7, -7), [3]), {
      reduction,
      ignoreIndex: -7,
    });
    t.ok((await loss.data()).every((value) => value === 0));
    const [dlogits] = tape.backward(loss, Tensor.normal(loss.shape, { seed: 2 }), [logits]);
    t.strictSame(Array.from(await values(dlogits as Tensor)), Array(30).fill(0));
  }
});

t.test("a target that is no column: NaN for its row, and nothing else", async (t) => {
  for (const bad of [-1, 10, 2 ** 31 - 1, -(2 ** 31)]) {
    const logits = random([3, 10], 1, "bfloat16");
    const targets = Tensor.from(Int32Array.of(2, bad, 3), [3]);
    const { loss, ...kept } = crossEntropyForward(logits, targets, { reduction: "none" });
    t.strictSame(Array.from(await loss.data(), Number.isNaN), [false, true, false]);
    const dloss = Tensor.from([1, 1, 1], [3]);
    const dlogits = await crossEntropyBackward(
      { logits, targets, ...kept, dloss },
      { reduction: "none" },
    ).data();
    t.ok(dlogits.every((value, i) => Number.isNaN(value) === (i >= 10 && i < 20)));
    t.ok(Number.isNaN((await crossEntropy(logits, targets).data())[0]));
  }
});

t.test("logits that are not finite", async (t) => {
  const [no, nan] = [Number.NEGATIVE_INFINITY, Number.NaN];
  const rows = [
    [0, no, no, 0],
    [no, no, no, no],
    [1, nan, 1, 1],
    [3e38, -3e38, 0, 3e38],
  ];
  const logits = Tensor.from(rows.flat(), [4, 4]);
  const { logSumExp, loss } = crossEntropyForward(logits, Tensor.zeros([4], { dtype: "int32" }), {
    reduction: "none",
  });
  // ln 2 is 0.6931472.
  const digits = async (tensor: Tensor) => Array.from(await tensor.data(), (value) => value.toPrecision(5));
  t.strictSame(await digits(logSumExp), ["0.69315", "-Infinity", "NaN", "3.0000e+38"]);
  t.strictSame(await digits(loss), ["0.69315", "NaN", "NaN", "0.0000"]);
});

t.test("on a tape: the derivative, in a place of its own or the logits'", async (t) => {
  const start = await values(Tensor.normal([4, 6], { seed: 1 }));
  const targets = Tensor.from(Int32Array.of(0, 5, -100, 2), [4]);
  for (const reduction of reductions) {
    const lossOf = (x: Float64Array) => crossEntropy(Tensor.from(x, [4, 6]), targets, { reduction });
    const dloss = Tensor.normal(lossOf(start).shape, { seed: 3, mean: 1 });
    const weights = await values(dloss);
    const expected: number[] = [];
    for (let i = 0; i < start.length; i++) {
      const moved = async (by: number) => {
        const losses = await values(lossOf(start.map((value, j) => (j === i ? value + by : value))));
        return sum(losses.map((value, r) => value * at(weights, r)));
      };
      expected.push(((await moved(2 ** -5)) - (await moved(-(2 ** -5)))) / 2 ** -4);
    }
    for (const overwriteLogits of [false, true]) {
      using tape = new Tape();
      const x = Tensor.from(start, [4, 6]);
      tape.watch(x);
      const logits = x.to("float32");
      const loss = crossEntropy(logits, targets, { reduction, overwriteLogits });
      const [dx] = tape.backward(loss, dloss, [x]);
      t.ok(relativeError(await values(dx as Tensor), expected) < 1e-3, reduction);
      t.equal(relativeError(await values(logits), start) > 0, overwriteLogits);
    }
  }
});

t.test("the gradient in the logits' place has a life of its own", async (t) => {
  const logits = random([2, 8], 1, "float32");
  const targets = Tensor.zeros([2], { dtype: "int32" });
  const { loss, ...kept } = crossEntropyForward(logits, targets);
  const dloss = Tensor.from([1], []);
  const dlogits = Scope.run(() =>
    crossEntropyBackward({ logits, targets, ...kept, dloss }, { overwriteLogits: true }),
  );
  logits.dispose();
  t.equal(loss.size, 1);
  t.ok(Math.abs(sum(await values(dlogits))) < 1e-6);
});

t.test("nothing", async (t) => {
  for (const shape of [
    [0, 5],
    [0, 0],
    [2, 0, 5],
  ]) {
    for (const reduction of reductions) {
      const logits = Tensor.zeros(shape);
      const targets = Tensor.zeros(shape.slice(0, -1), { dtype: "int32" });
      const { loss, ...kept } = crossEntropyForward(logits, targets, { reduction });
      t.ok((await loss.data()).every((value) => value === 0));
      const dlogits = crossEntropyBackward({ logits, targets, ...kept, dloss: loss }, { reduction });
      t.equal((await dlogits.data()).length, 0);
    }
  }
  const noColumns = crossEntropy(Tensor.zeros([2, 0]), Tensor.zeros([2], { dtype: "int32" }));
  t.ok(Number.isNaN((await noColumns.data())[0]), "no column can be meant");
});
