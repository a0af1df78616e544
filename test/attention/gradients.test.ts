// The gradients are derivatives: those of the definition by differences in float64, those of the package by differences
// of its own outputs.
import { type AttentionOptions, attentionForward, Tensor } from "longseq";
import t from "tap";
import { at, relativeError } from "../support/compare.ts";
import { attend, type Rule, type Shape } from "../support/definition.ts";
import { implementations } from "../support/devices.ts";
import { inputsOf, solve } from "../support/problems.ts";

const shape: Shape = { batch: 1, queries: 3, keys: 5, heads: 4, keyHeads: 2, headDim: 8 };
const slopes = [0.3, 0.1, 0.05, 0.5];
const options: AttentionOptions = {
  causal: true,
  scale: 0.6,
  softcap: 1.5,
  alibiSlopes: Tensor.from(slopes, [4]),
};
const rule: Rule = {
  scale: 0.6,
  softcap: 1.5,
  slopes,
  causal: true,
  window: [-1, -1],
  queryPositions: [2, 3, 4],
  keyPositions: [0, 1, 2, 3, 4],
  documents: undefined,
  mask: undefined,
};
const ofQueries = [1, shape.queries, shape.heads, shape.headDim];
const ofKeys = [1, shape.keys, shape.keyHeads, shape.headDim];
const tensors = {
  q: Tensor.normal(ofQueries, { seed: 1 }),
  k: Tensor.normal(ofKeys, { seed: 2 }),
  v: Tensor.normal(ofKeys, { seed: 3 }),
  dout: Tensor.normal(ofQueries, { seed: 4 }),
  dlogSumExp: Tensor.normal([1, shape.heads, shape.queries], { seed: 5 }),
};
const { q, k, v, dout, dlogSumExp } = await inputsOf({ ...tensors, options });
const inputs = { q, k, v };
type Name = keyof typeof inputs;
const names = ["q", "k", "v"] as const;

const weighted = (values: ArrayLike<number>, weights: ArrayLike<number>) =>
  Array.from(values).reduce((sum, value, i) => sum + value * at(weights, i), 0);

/** What the gradients are of: sum(out * dout) + sum(logSumExp * dlogSumExp). */
const objective = (out: ArrayLike<number>, logSumExp: ArrayLike<number>) =>
  weighted(out, dout) + weighted(logSumExp, dlogSumExp ?? []);

async function differences(
  name: Name,
  step: number,
  evaluate: (changed: Record<Name, ArrayLike<number>>) => Promise<number>,
): Promise<number[]> {
  const result: number[] = [];
  for (let i = 0; i < inputs[name].length; i++) {
    const moved = (by: number) => {
      const values = Float64Array.from(inputs[name]);
      values[i] = at(values, i) + by;
      return evaluate({ ...inputs, [name]: values });
    };
    result.push(((await moved(step)) - (await moved(-step))) / (2 * step));
  }
  return result;
}

for (const name of names) {
  t.test(`d${name} of the definition`, async (t) => {
    const expected = await differences(name, 1e-5, async (changed) => {
      const { out, logSumExp } = attend(shape, rule, { ...changed, dout, dlogSumExp });
      return objective(out.values, logSumExp.values);
    });
    const actual = attend(shape, rule, { q, k, v, dout, dlogSumExp })[`d${name}`].values;
    t.ok(relativeError(actual, expected) < 1e-8);
  });

  t.test(`d${name} of attentionBackward`, async (t) => {
    // In float32 the step's square and the outputs' rounding, over the step, are both about 1e-4.
    const expected = await differences(name, 2 ** -7, async (changed) => {
      const [q, k, v] = names.map((n) => Tensor.from(Float64Array.from(changed[n]), tensors[n].shape));
      const { out, logSumExp } = attentionForward(q as Tensor, k as Tensor, v as Tensor, options);
      return objective(await out.data(), await logSumExp.data());
    });
    for (const implementation of implementations) {
      const actual = solve({ ...tensors, options: { ...options, implementation } })[`d${name}`];
      t.ok(relativeError(await actual.data(), expected) < 5e-4, implementation);
    }
  });
}
