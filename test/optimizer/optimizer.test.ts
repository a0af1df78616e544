// AdamW and the global norm against their definitions in float64.
import { AdamW, type AdamWOptions, clipByGlobalNorm, Device, globalNorm, Scope, Tape, Tensor } from "longseq";
import t from "tap";
import { bitsOf, differing } from "../support/bits.ts";
import { at, floatTypes, relativeError } from "../support/compare.ts";

const numbers = (tensor: Tensor) => tensor.data().then((values) => Array.from(values));

interface State {
  parameter: number[];
  first: number[];
  second: number[];
}

function stepOf(
  { parameter, first, second }: State,
  gradient: readonly number[],
  step: number,
  { learningRate, betas, epsilon, weightDecay }: Required<Omit<AdamWOptions, "steps">>,
): State {
  const m = first.map((m, i) => betas[0] * m + (1 - betas[0]) * at(gradient, i));
  const v = second.map((v, i) => betas[1] * v + (1 - betas[1]) * at(gradient, i) ** 2);
  const [m1, v1] = [1 - betas[0] ** step, 1 - betas[1] ** step];
  const next = parameter.map(
    (p, i) => p - learningRate * (weightDecay * p + at(m, i) / m1 / (Math.sqrt(at(v, i) / v1) + epsilon)),
  );
  return { parameter: next, first: m, second: v };
}

const options = { learningRate: 0.01, betas: [0.9, 0.95], epsilon: 1e-8, weightDecay: 0.1 } as const;
/** Empty, less than a vector, odd, and more than a chunk. */
const shapes = [[1], [0, 3], [7, 5], [3, 4, 8], [40_001], [2, 16_384]];

t.test("many tensors, in every dtype of parameters and gradients", async (t) => {
  for (const dtype of floatTypes) {
    for (const gradientType of floatTypes) {
      await Scope.run(async () => {
        const parameters = shapes.map((shape, seed) => Tensor.normal(shape, { seed, dtype }));
        using optimizer = new AdamW(parameters, options);
        let states: State[] = await Promise.all(
          parameters.map(async (parameter) => {
            const zeros = new Array(parameter.size).fill(0);
            return { parameter: await numbers(parameter), first: zeros, second: zeros };
          }),
        );
        const scale = 0.25;
        for (let step = 1; step <= 3; step++) {
          const gradients = shapes.map((shape, i) =>
            Tensor.normal(shape, { seed: 100 * step + i, dtype: gradientType }),
          );
          optimizer.step(gradients, { gradientScale: Tensor.from([scale], []) });
          const scaled = await Promise.all(
            gradients.map(async (g) => (await numbers(g)).map((x) => scale * x)),
          );
          states = states.map((state, i) => stepOf(state, scaled[i] ?? [], step, options));
        }
        t.equal(optimizer.steps, 3);
        for (const [i, { parameter, first, second }] of states.entries()) {
          const errors = [
            relativeError(await numbers(optimizer.masters[i] as Tensor), parameter),
            relativeError(await numbers(optimizer.firstMoments[i] as Tensor), first),
            relativeError(await numbers(optimizer.secondMoments[i] as Tensor), second),
          ];
          const label = `${dtype} ${gradientType} [${shapes[i]}]`;
          t.ok(Math.max(...errors) < 1e-6, `${label}: ${errors}`);
          const copied = (optimizer.masters[i] as Tensor).to(dtype);
          t.strictSame(
            await differing({ p: parameters[i] as Tensor }, { p: copied }),
            [],
            `${label}, rounded`,
          );
        }
      });
    }
  }
});

t.test("views of one tensor, at odd places", async (t) => {
  const all = Tensor.normal([1001], { seed: 1 });
  const before = await numbers(all);
  const gradient = Tensor.normal([1001], { seed: 2, dtype: "bfloat16" });
  const whole = all.contiguous();
  using one = new AdamW([whole], options);
  one.step([gradient]);
  const cuts = [3, 10, 500, 999];
  const parts = (tensor: Tensor) => cuts.slice(1).map((end, i) => tensor.slice(0, cuts[i] ?? 0, end));
  using many = new AdamW(parts(all), options);
  many.step(parts(gradient));
  const expected = await numbers(whole);
  t.same(
    await numbers(all),
    before.map((p, i) => (i >= 3 && i < 999 ? expected[i] : p)),
  );
});

t.test("a gradient scale that is not finite leaves everything as it was", async (t) => {
  const parameter = Tensor.normal([100], { dtype: "bfloat16" });
  using optimizer = new AdamW([parameter], options);
  optimizer.step([Tensor.normal([100], { seed: 1 })]);
  const tensors = () => ({
    parameter,
    master: optimizer.masters[0] as Tensor,
    first: optimizer.firstMoments[0] as Tensor,
    second: optimizer.secondMoments[0] as Tensor,
  });
  const before = Object.fromEntries(Object.entries(tensors()).map(([name, x]) => [name, x.contiguous()]));
  for (const bad of [Number.NaN, Number.POSITIVE_INFINITY]) {
    const gradients = [Tensor.from(new Float32Array(100).fill(bad), [100])];
    const { norm, factor } = clipByGlobalNorm(gradients, 1);
    optimizer.step(gradients, { gradientScale: factor });
    t.strictSame(await differing(tensors(), before), []);
    t.notOk(Number.isFinite(at(await norm.data(), 0)), "the norm says so");
    t.ok(Number.isNaN(at(await factor.data(), 0)));
  }
  t.equal(optimizer.steps, 3);
});

t.test("training goes on where it was", async (t) => {
  const gradients = [1, 2, 3, 4].map((seed) => [Tensor.normal([50], { seed })]);
  const through = Tensor.normal([50]);
  using all = new AdamW([through], options);
  for (const each of gradients) all.step(each);
  const parameter = Tensor.normal([50]);
  using first = new AdamW([parameter], options);
  for (const each of gradients.slice(0, 2)) first.step(each);
  using second = new AdamW([parameter], { ...options, steps: first.steps });
  second.firstMoments[0]?.write(await (first.firstMoments[0] as Tensor).data());
  second.secondMoments[0]?.write(await (first.secondMoments[0] as Tensor).data());
  for (const each of gradients.slice(2)) second.step(each);
  t.strictSame(await differing({ parameter }, { parameter: through }), []);
});

t.test("training in 16 bits goes on from what was saved", async (t) => {
  const gradients = [1, 2].map((seed) => [Tensor.normal([50], { seed, dtype: "bfloat16" })]);
  const through = Tensor.normal([50], { dtype: "bfloat16" });
  using all = new AdamW([through], options);
  all.step(gradients[0] ?? []);
  const names = ["parameters", "masters", "firstMoments", "secondMoments"] as const;
  const saved = await Promise.all(names.map((name) => (all[name][0] as Tensor).data()));
  all.step(gradients[1] ?? []);
  const parameter = Tensor.zeros([50], { dtype: "bfloat16" });
  using second = new AdamW([parameter], { ...options, steps: 1 });
  for (const [i, name] of names.entries()) second[name][0]?.write(saved[i] as Float32Array);
  second.step(gradients[1] ?? []);
  t.strictSame(await differing({ parameter }, { parameter: through }), []);
});

t.test("in 16 bits too, a parameter that is written is what training goes on from", async (t) => {
  const gradient = Tensor.zeros([2], { dtype: "bfloat16" });
  const weight = Tensor.from([1, 1], [2], { dtype: "bfloat16" });
  using optimizer = new AdamW([weight], { weightDecay: 0 });
  weight.write([5, 6]);
  optimizer.step([gradient]);
  t.strictSame([...(await weight.data())], [5, 6]);
  optimizer.step([gradient]);
  weight.write([7, 8]);
  optimizer.step([gradient]);
  t.strictSame([...(await (optimizer.masters[0] as Tensor).data())], [7, 8]);
  // A checkpoint's masters are more exact than its parameters, in whichever order they are written.
  const exact = 9 + 2 ** -12;
  optimizer.masters[0]?.write([exact, exact]);
  weight.write([9, 9]);
  optimizer.step([gradient]);
  t.strictSame([...(await (optimizer.masters[0] as Tensor).data())], [exact, exact]);
});

t.test("parameters that are neighbours in memory do not disturb each other's masters", async (t) => {
  const rows = (big: Tensor) => [0, 1].map((row) => big.select(0, row)) as [Tensor, Tensor];
  const values = Array.from({ length: 16 }, (_, i) => i / 7 - 1);
  const gradient = Tensor.from(Array(8).fill(1), [8], { dtype: "bfloat16" });
  const masters = async (parts: readonly Tensor[]) => {
    const optimizers = parts.map((part) => new AdamW([part], { learningRate: 1e-5 }));
    for (let step = 0; step < 20; step++) for (const optimizer of optimizers) optimizer.step([gradient]);
    return Promise.all(optimizers.map(({ masters }) => (masters[0] as Tensor).bits()));
  };
  const together = await masters(rows(Tensor.from(values, [2, 8], { dtype: "bfloat16" })));
  const apart = await masters(
    [0, 1].map((row) => Tensor.from(values.slice(8 * row, 8 * row + 8), [8], { dtype: "bfloat16" })),
  );
  t.strictSame(together, apart);
});

t.test("what it owns, and that no tape notes it", async (t) => {
  using device = new Device(Device.default.name);
  using tape = new Tape();
  const parameter = Tensor.normal([64], { dtype: "bfloat16", device });
  tape.watch(parameter);
  const optimizer = Scope.run(() => ({ made: new AdamW([parameter], options) })).made;
  t.notOk(optimizer.masters[0]?.disposed, "a scope's end leaves it alone");
  await device.synchronize();
  t.equal(device.memory().tensors, 4);
  optimizer.dispose();
  optimizer.dispose();
  t.notOk(parameter.disposed);
  t.equal(device.memory().tensors, 1);
  t.throws(() => optimizer.step([Tensor.zeros([64], { device })]), { code: "ERR_DISPOSED" });
  t.equal(optimizer.steps, 0, "a step that was refused does not count");
  t.throws(() => tape.backward(optimizer.masters[0] as Tensor, parameter, [parameter]));
});

t.test("by name: gradients in any order, and what it keeps, with the same bits", async (t) => {
  const make = () => ({
    weight: Tensor.normal([7, 5], { seed: 1, dtype: "bfloat16" }),
    bias: Tensor.normal([7], { seed: 2 }),
  });
  const all = (tensors: readonly Tensor[]) => Promise.all(tensors.map(bitsOf));
  const [named, listed] = [make(), Object.values(make())];
  using byName = new AdamW(named, options);
  using inOrder = new AdamW(listed, options);
  const [weight, bias] = [Tensor.normal([7, 5], { seed: 3 }), Tensor.normal([7], { seed: 4 })];
  byName.step({ bias, weight });
  byName.step([weight, bias]);
  for (let i = 0; i < 2; i++) inOrder.step([weight, bias]);
  for (const what of ["parameters", "masters", "firstMoments", "secondMoments"] as const) {
    const [ofNamed, ofListed] = [byName[what], inOrder[what]];
    t.strictSame(Object.keys(ofNamed), ["weight", "bias"]);
    t.strictSame(await all([ofNamed.weight, ofNamed.bias]), await all(ofListed), what);
  }
  t.strictSame(await bitsOf(globalNorm({ weight, bias })), await bitsOf(globalNorm([weight, bias])));
  const { norm, factor } = clipByGlobalNorm({ weight, bias }, 1);
  t.ok(Math.abs((await norm.item()) * (await factor.item()) - 1) < 1e-6);
});

t.test("the global norm", async (t) => {
  for (const dtype of floatTypes) {
    const tensors = [...shapes, [100_003]].map((shape, seed) => Tensor.normal(shape, { seed, dtype }));
    const all = (await Promise.all(tensors.map(numbers))).flat();
    const expected = Math.sqrt(all.reduce((sum, x) => sum + x * x, 0));
    const norm = globalNorm(tensors);
    t.same(norm.shape, []);
    t.ok(Math.abs(at(await norm.data(), 0) / expected - 1) < 1e-6, dtype);
    t.same(await bitsOf(globalNorm(tensors)), await bitsOf(norm));
    // A view that does not lie at a multiple of 16 bytes.
    const [view] = [(tensors.at(-1) as Tensor).slice(0, 1, 100_001)];
    const part = (await numbers(view as Tensor)).reduce((sum, x) => sum + x * x, 0);
    t.ok(Math.abs(at(await globalNorm([view as Tensor]).data(), 0) / Math.sqrt(part) - 1) < 1e-6);
    for (const maxNorm of [1, 1e6]) {
      const clip = clipByGlobalNorm(tensors, maxNorm);
      t.same(await bitsOf(clip.norm), await bitsOf(norm));
      const factor = at(await clip.factor.data(), 0);
      t.ok(Math.abs(factor / Math.min(1, maxNorm / expected) - 1) < 1e-6, `${factor}`);
    }
  }
  t.same(await numbers(globalNorm([])), [0]);
  t.same(await numbers(globalNorm([Tensor.zeros([0])])), [0]);
  t.same(await numbers(clipByGlobalNorm([Tensor.zeros([3])], 1).factor), [1]);
  t.same(await numbers(clipByGlobalNorm([], Number.POSITIVE_INFINITY).factor), [1]);
});
