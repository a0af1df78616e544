// The gradients of norms on a tape are derivatives: by differences of the package's own outputs.
import { addLayerNorm, addRmsNorm, layerNorm, rmsNorm, Tape, Tensor } from "longseq";
import t from "tap";
import { at, relativeError } from "../support/compare.ts";
import { dot, values } from "../support/rows.ts";

const [rows, columns] = [3, 10];
const shape = [rows, columns];
const start = {
  x: await values(Tensor.normal(shape, { seed: 1 })),
  residual: await values(Tensor.normal(shape, { seed: 2 })),
  weight: await values(Tensor.normal([columns], { seed: 3, mean: 1 })),
  bias: await values(Tensor.normal([columns], { seed: 4 })),
};
const dout = Tensor.normal(shape, { seed: 5 });
const dsum = Tensor.normal(shape, { seed: 6 });
const [doutValues, dsumValues] = [await values(dout), await values(dsum)];
type Name = keyof typeof start;
type Inputs = Record<Name, Tensor>;
const shapes: Record<Name, number[]> = { x: shape, residual: shape, weight: [columns], bias: [columns] };

const tensorsOf = (given: Record<Name, Float64Array>): Inputs =>
  Object.fromEntries(
    (Object.keys(shapes) as Name[]).map((name) => [name, Tensor.from(given[name], shapes[name])]),
  ) as Inputs;

const operations: Record<string, { names: Name[]; run: (inputs: Inputs) => { out: Tensor; sum?: Tensor } }> =
  {
    layerNorm: { names: ["x", "weight", "bias"], run: (i) => ({ out: layerNorm(i.x, i.weight, i.bias) }) },
    "layerNorm without a bias": {
      names: ["x", "weight"],
      run: (i) => ({ out: layerNorm(i.x, i.weight, null) }),
    },
    rmsNorm: { names: ["x", "weight"], run: (i) => ({ out: rmsNorm(i.x, i.weight) }) },
    addLayerNorm: {
      names: ["x", "residual", "weight", "bias"],
      run: (i) => addLayerNorm(i.x, i.residual, i.weight, i.bias),
    },
    addRmsNorm: { names: ["x", "residual", "weight"], run: (i) => addRmsNorm(i.x, i.residual, i.weight) },
  };

for (const [operation, { names, run }] of Object.entries(operations)) {
  t.test(operation, async (t) => {
    const objective = async (given: Record<Name, Float64Array>) => {
      const { out, sum } = run(tensorsOf(given));
      return dot(await values(out), doutValues) + (sum ? dot(await values(sum), dsumValues) : 0);
    };
    using tape = new Tape();
    const inputs = tensorsOf(start);
    tape.watch(...Object.values(inputs));
    const { out, sum } = run(inputs);
    // A tape takes one output at a time, so each result has its own.
    const wrt = names.map((name) => inputs[name]);
    const gradients = tape.backward(out, dout, wrt);
    using second = new Tape();
    second.watch(...Object.values(inputs));
    const again = run(inputs).sum;
    const ofSum = sum && again && second.backward(again, dsum, wrt);
    for (const [i, name] of names.entries()) {
      const actual = await values(gradients[i] as Tensor);
      const more = ofSum?.[i] && (await values(ofSum[i]));
      const total = actual.map((value, j) => value + (more ? at(more, j) : 0));
      const expected: number[] = [];
      const step = 2 ** -6;
      for (let j = 0; j < start[name].length; j++) {
        const moved = (by: number) => {
          const changed = Float64Array.from(start[name]);
          changed[j] = at(changed, j) + by;
          return objective({ ...start, [name]: changed });
        };
        expected.push(((await moved(step)) - (await moved(-step))) / (2 * step));
      }
      t.ok(relativeError(total, expected) < 2e-3, `d${name}: ${relativeError(total, expected)}`);
    }
  });
}

t.test("both results of one call", async (t) => {
  const { x, residual, weight } = tensorsOf(start);
  using tape = new Tape();
  tape.watch(x, residual, weight);
  const { out, sum } = addRmsNorm(x, residual, weight);
  const next = addRmsNorm(out, sum, weight);
  const [dx, dresidual] = tape.backward(next.sum, dout, [x, residual]);
  using other = new Tape();
  other.watch(x, residual, weight);
  const first = addRmsNorm(x, residual, weight);
  const [direct] = other.backward(first.out, dout, [x]);
  // d(out + sum) is that of out and that of sum, which is dout itself.
  const expected = (await values(direct as Tensor)).map((value, i) => value + at(doutValues, i));
  t.ok(relativeError(await values(dx as Tensor), expected) < 1e-6);
  t.strictSame(await values(dresidual as Tensor), await values(dx as Tensor));
});

t.test("x as its own residual", async (t) => {
  const { x, weight } = tensorsOf(start);
  using tape = new Tape();
  tape.watch(x, weight);
  const [dx] = tape.backward(addRmsNorm(x, x, weight).sum, dout, [x]);
  t.strictSame(
    await values(dx as Tensor),
    doutValues.map((value) => 2 * value),
  );
});

t.test("a gradient whose rows have gaps", async (t) => {
  const { x, weight } = tensorsOf(start);
  const gradient = Tensor.normal([columns, rows], { seed: 8 });
  const derive = async (flip: boolean) => {
    using tape = new Tape();
    tape.watch(x, weight);
    const out = rmsNorm(x, weight);
    const [dx] = flip
      ? tape.backward(out.permute(1, 0), gradient, [x])
      : tape.backward(out, gradient.permute(1, 0), [x]);
    return values(dx as Tensor);
  };
  t.strictSame(await derive(true), await derive(false));
});
