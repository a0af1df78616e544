// Cross entropy fused with its projection: against the definition in float64, for any tiles, and in little memory.
import fc from "fast-check";
import {
  crossEntropy,
  Device,
  type LinearCrossEntropyOptions,
  linear,
  linearCrossEntropy,
  Tape,
  Tensor,
} from "longseq";
import t from "tap";
import { differing } from "../support/bits.ts";
import { at, bounds, type FloatType, floatTypes, relativeError } from "../support/compare.ts";
import { inside } from "../support/layouts.ts";
import { product, transposed } from "../support/product.ts";
import { errorAmong, leading, random, values } from "../support/rows.ts";

const int32 = (list: readonly number[], shape: readonly number[] = [list.length]) =>
  Tensor.from(Int32Array.from(list), shape);

interface Expected {
  loss: readonly [number];
  dx: ArrayLike<number>;
  dweight: ArrayLike<number>;
}

/**
 * The definition, the gradients being those of loss * dloss; and the terms that they are differences of, which have no
 * digits left where a target's probability is all but 1.
 */
async function definition(
  x: Tensor,
  weight: Tensor,
  targets: readonly number[],
  {
    reduction = "mean",
    ignoreIndex = -100,
    count,
    dloss,
  }: Pick<LinearCrossEntropyOptions, "reduction" | "ignoreIndex"> & { count?: number; dloss: number },
): Promise<Expected & { terms: Expected }> {
  const [vocabulary = 0, columns = 0] = weight.shape;
  const rows = { rows: targets.length, columns, values: await values(x) };
  const matrix = { rows: vocabulary, columns, values: await values(weight) };
  const logits = product(rows, transposed(matrix));
  const counted = targets.filter((target) => target !== ignoreIndex).length;
  const divisor = reduction === "sum" ? 1 : Math.max(1, count ?? counted);
  const dlogits = new Float64Array(targets.length * vocabulary);
  const ofTargets = dlogits.slice();
  let [loss, lossTerms] = [0, 0];
  for (const [row, target] of targets.entries()) {
    if (target === ignoreIndex) continue;
    const own = Array.from({ length: vocabulary }, (_, v) => at(logits.values, row * vocabulary + v));
    const most = Math.max(...own);
    const logSumExp = most + Math.log(own.reduce((sum, value) => sum + Math.exp(value - most), 0));
    loss += logSumExp - at(own, target);
    lossTerms += Math.abs(logSumExp) + Math.abs(at(own, target));
    ofTargets[row * vocabulary + target] = dloss / divisor;
    for (const [v, value] of own.entries()) {
      const gradient = Math.exp(value - logSumExp) - (v === target ? 1 : 0);
      dlogits[row * vocabulary + v] = (gradient * dloss) / divisor;
    }
  }
  const gradientsOf = (given: Float64Array) => {
    const gradient = { rows: targets.length, columns: vocabulary, values: given };
    return {
      dx: product(gradient, matrix).values,
      dweight: product(transposed(gradient), rows).values,
    };
  };
  return {
    loss: [loss / divisor],
    ...gradientsOf(dlogits),
    terms: { loss: [lossTerms / divisor], ...gradientsOf(ofTargets) },
  };
}

/** A view of all of it, on no tape. */
const whole = (tensor: Tensor) => tensor.permute(...tensor.shape.keys());

/** The loss, and its gradients in x and weight. */
function taped(
  x: Tensor,
  weight: Tensor,
  lossOf: (x: Tensor, weight: Tensor) => Tensor,
  dloss = 1,
): { loss: Tensor; dx: Tensor; dweight: Tensor } {
  using tape = new Tape();
  const [a, b] = [whole(x), whole(weight)];
  tape.watch(a, b);
  const loss = lossOf(a, b);
  const [dx, dweight] = tape.backward(loss, Tensor.from([dloss], []), [a, b]) as [Tensor, Tensor];
  return { loss, dx, dweight };
}

const cases = fc.record({
  shape: leading,
  columns: fc.integer({ min: 1, max: 40 }),
  vocabulary: fc.integer({ min: 2, max: 60 }),
  tileRows: fc.option(fc.integer({ min: 1, max: 20 }), { nil: undefined }),
  reduction: fc.constantFrom("mean", "sum"),
  count: fc.option(fc.integer({ min: 0, max: 100 }), { nil: undefined }),
  isCountTensor: fc.boolean(),
  ignoreIndex: fc.constantFrom(-100, 1),
  seed: fc.nat(2 ** 31),
  dtype: fc.constantFrom<FloatType>(...floatTypes),
  isInside: fc.boolean(),
});

t.test("any sizes, tiles and options", async (t) => {
  await fc.assert(
    fc.asyncProperty(cases, async (given) => {
      const { shape, vocabulary, columns, seed, dtype, reduction, ignoreIndex } = given;
      const size = shape.reduce((a, b) => a * b, 1);
      const list = Array.from({ length: size }, (_, i) =>
        (i + seed) % 4 === 0 ? ignoreIndex : (7 * i + seed) % vocabulary,
      );
      const dense = random([...shape, columns], seed, dtype);
      const x = given.isInside ? await inside(dense) : dense;
      const weight = random([vocabulary, columns], seed + 1, dtype);
      const count = reduction === "mean" ? given.count : undefined;
      const options = {
        reduction,
        ignoreIndex,
        ...(given.tileRows && { tileRows: given.tileRows }),
        ...(count !== undefined && {
          count: given.isCountTensor ? Tensor.from([count], []) : count,
        }),
      } as const;
      const dloss = 1.5;
      const own = { reduction, ignoreIndex, dloss, ...(count !== undefined && { count }) };
      const expected = await definition(x, weight, list, own);
      const made = taped(x, weight, (a, b) => linearCrossEntropy(a, b, int32(list, shape), options), dloss);
      t.strictSame([made.loss.shape, made.loss.dtype], [[], "float32"]);
      for (const name of ["loss", "dx", "dweight"] as const) {
        const like = { loss: made.loss, dx: x, dweight: weight }[name];
        t.ok(made[name].shape.join() === like.shape.join() && made[name].dtype === like.dtype);
        const error = errorAmong(await made[name].data(), expected[name], expected.terms[name]);
        t.ok(error < (name === "loss" ? 1e-5 : bounds[dtype].gradient), `${name}: ${error}`);
      }
    }),
    { numRuns: 80 },
  );
});

t.test("it is crossEntropy of linear", async (t) => {
  const [x, weight] = [random([3, 50, 64], 1, "float32"), random([300, 64], 2, "float32")];
  const targets = int32(
    Array.from({ length: 150 }, (_, i) => (i % 7 === 0 ? -100 : (i * 31) % 300)),
    [3, 50],
  );
  for (const reduction of ["mean", "sum"] as const) {
    const expected = taped(x, weight, (a, b) => crossEntropy(linear(a, b), targets, { reduction }));
    const made = taped(x, weight, (a, b) => linearCrossEntropy(a, b, targets, { reduction, tileRows: 32 }));
    for (const name of ["loss", "dx", "dweight"] as const) {
      t.ok(relativeError(await made[name].data(), await expected[name].data()) < 1e-5, name);
    }
  }
});

t.test("the loss is the same on a tape and on none", async (t) => {
  const [x, weight] = [random([40, 32], 1, "bfloat16"), random([90, 32], 2, "bfloat16")];
  const targets = int32(Array.from({ length: 40 }, (_, i) => 2 * i));
  const { loss } = taped(x, weight, (a, b) => linearCrossEntropy(a, b, targets, { tileRows: 7 }));
  const plain = linearCrossEntropy(x, weight, targets, { tileRows: 7 });
  t.strictSame(await differing({ loss }, { loss: plain }), []);
});

t.test("one of the two on a tape", async (t) => {
  const [x, weight] = [random([9, 16], 1, "bfloat16"), random([30, 16], 2, "bfloat16")];
  const targets = int32([1, 2, 3, 4, 5, 6, 7, 8, 29]);
  const lossOf = (a: Tensor, b: Tensor) => linearCrossEntropy(a, b, targets, { tileRows: 4 });
  const both = taped(x, weight, lossOf);
  for (const name of ["dx", "dweight"] as const) {
    const [a, b] = [whole(x), whole(weight)];
    const own = name === "dx" ? a : b;
    using tape = new Tape();
    tape.watch(own);
    const loss = lossOf(a, b);
    const [made] = tape.backward(loss, Tensor.from([1], []), [own]) as [Tensor];
    t.strictSame(await differing({ [name]: made }, { [name]: both[name] }), []);
  }
});

t.test("weight's gradient in a sum of the caller's", async (t) => {
  const [x, weight] = [random([20, 16], 1, "bfloat16"), random([30, 16], 2, "bfloat16")];
  const list = Array.from({ length: 20 }, (_, i) => i);
  const { dweight: once } = await definition(x, weight, list, { dloss: 3 });
  for (const [dtype, bound] of [
    ["float32", 5e-3],
    ["bfloat16", 1e-2],
  ] as const) {
    const dweight = Tensor.from(new Float32Array(30 * 16).fill(0.5), [30, 16], { dtype });
    for (let call = 0; call < 2; call++) {
      const made = taped(
        x,
        weight,
        (a, b) => linearCrossEntropy(a, b, int32(list), { dweight, tileRows: 6 }),
        3,
      );
      t.ok((await made.dweight.data()).every((value) => value === 0));
    }
    const sums = Float64Array.from(once, (value) => 0.5 + 2 * value);
    t.ok(relativeError(await dweight.data(), sums) < bound);
  }
  const untouched = Tensor.zeros([30, 16]);
  linearCrossEntropy(x, weight, int32(list), { dweight: untouched });
  t.ok(
    (await untouched.data()).every((value) => value === 0),
    "without a tape",
  );
});

t.test("the losses of ranks, each divided by the count of all, are that of the whole", async (t) => {
  const [x, weight] = [random([30, 16], 1, "float32"), random([50, 16], 2, "float32")];
  const list = Array.from({ length: 30 }, (_, i) => (i < 12 && i % 2 ? -100 : i));
  const ofAll = await linearCrossEntropy(x, weight, int32(list)).data();
  const count = list.filter((target) => target >= 0).length;
  const parts = await Promise.all(
    [0, 1, 2].map((rank) => {
      const own = x.slice(0, 10 * rank, 10 * rank + 10);
      return linearCrossEntropy(own, weight, int32(list.slice(10 * rank, 10 * rank + 10)), { count }).data();
    }),
  );
  const sum = parts.reduce((total, part) => total + at(part, 0), 0);
  t.ok(relativeError([sum], ofAll) < 1e-6);
});

t.test("targets that are outside, and none that counts", async (t) => {
  const [x, weight] = [random([4, 8], 1, "float32"), random([5, 8], 2, "float32")];
  for (const wrong of [-1, 5]) {
    const made = taped(x, weight, (a, b) =>
      linearCrossEntropy(a, b, int32([1, wrong, 2, -100]), { tileRows: 1 }),
    );
    t.ok(Number.isNaN((await made.loss.data())[0]));
    const isNaNs = Array.from(await made.dx.data(), Number.isNaN);
    t.strictSame(
      isNaNs,
      Array.from({ length: 32 }, (_, i) => Math.floor(i / 8) === 1),
    );
  }
  for (const reduction of ["mean", "sum"] as const) {
    const ignored = int32([-100, -100, -100, -100]);
    const made = taped(x, weight, (a, b) => linearCrossEntropy(a, b, ignored, { reduction, tileRows: 3 }));
    for (const tensor of Object.values(made)) t.ok((await tensor.data()).every((value) => value === 0));
  }
});

t.test("nothing", async (t) => {
  for (const [rows, vocabulary, columns] of [
    [0, 5, 4],
    [0, 0, 4],
    [3, 5, 0],
  ] as const) {
    const targets = Tensor.zeros([rows], { dtype: "int32" });
    const [x, weight] = [Tensor.normal([rows, columns]), Tensor.normal([vocabulary, columns])];
    const made = taped(x, weight, (a, b) => linearCrossEntropy(a, b, targets));
    const expected = rows === 0 ? 0 : Math.log(5);
    t.ok(Math.abs(at(await made.loss.data(), 0) - expected) < 1e-6);
    t.ok((await made.dx.data()).every((value) => value === 0));
    t.ok((await made.dweight.data()).every((value) => value === 0));
  }
  const [x, weight] = [Tensor.normal([3, 4]), Tensor.normal([0, 4])];
  const made = taped(x, weight, (a, b) => linearCrossEntropy(a, b, Tensor.zeros([3], { dtype: "int32" })));
  t.ok(Number.isNaN(at(await made.loss.data(), 0)), "no column can be meant");
});

t.test("the logits of all rows never exist", async (t) => {
  using device = new Device();
  const [rows, columns, vocabulary, tileRows] = [512, 32, 4096, 64];
  const [x, weight] = [
    Tensor.normal([rows, columns], { device }),
    Tensor.normal([vocabulary, columns], { device }),
  ];
  const targets = Tensor.zeros([rows], { dtype: "int32", device });
  await device.synchronize();
  for (const isRecorded of [false, true]) {
    device.resetPeak();
    const before = device.memory().liveBytes;
    using tape = new Tape();
    if (isRecorded) tape.watch(x, weight);
    const loss = linearCrossEntropy(x, weight, targets, { tileRows });
    await device.synchronize();
    const kept = isRecorded ? x.bytes + weight.bytes : 0;
    const used = device.memory().peakBytes - before - kept;
    // A tile, and what the products pack of their operands.
    t.ok(used < 4 * tileRows * vocabulary + 2 * weight.bytes + 2 ** 19, `${used} bytes`);
    t.ok(used < (rows * vocabulary * 4) / 3, "less than a third of the logits");
    loss.dispose();
  }
});

t.test("what is saved is let go, and the operands may be disposed", async (t) => {
  using device = new Device();
  const run = async (isBackward: boolean) => {
    const options = { device, dtype: "bfloat16" } as const;
    const [x, weight] = [Tensor.normal([6, 8], options), Tensor.normal([9, 8], options)];
    const targets = Tensor.zeros([6], { dtype: "int32", device });
    const count = Tensor.from([3], [], { device });
    using tape = new Tape();
    tape.watch(x, weight);
    const loss = linearCrossEntropy(x, weight, targets, { count });
    for (const tensor of [x, weight, targets, count]) tensor.dispose();
    if (isBackward) {
      const dloss = Tensor.from([1], [], { device });
      const gradients = tape.backward(loss, dloss, [x, weight]);
      for (const tensor of [dloss, ...gradients]) tensor.dispose();
    }
    tape.dispose();
    loss.dispose();
    await device.synchronize();
    return device.memory().tensors;
  };
  t.equal(await run(true), 0);
  t.equal(await run(false), 0);
});
