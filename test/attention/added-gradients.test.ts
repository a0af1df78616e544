// Gradients that are added to sums in float32: the same bits as gradients of their own, added behind them.
import {
  AttentionMask,
  type AttentionOptions,
  attentionBackward,
  attentionForward,
  Scope,
  Tensor,
} from "longseq";
import t, { type Test } from "tap";
import { at, floatTypes } from "../support/compare.ts";
import { implementationsOf } from "../support/devices.ts";
import { scatter } from "../support/masks.ts";
import { refuses } from "../support/refusals.ts";

const names = ["dq", "dk", "dv"] as const;
type Sums = Partial<Record<(typeof names)[number], Tensor>>;
type Sizes = readonly [B: number, Sq: number, Sk: number, Hq: number, Hkv: number, D: number];

function inputs(
  [B, Sq, Sk, Hq, Hkv, D]: Sizes,
  dtype: (typeof floatTypes)[number],
  options: AttentionOptions,
) {
  const input = (S: number, heads: number, seed: number) => Tensor.normal([B, S, heads, D], { seed, dtype });
  const [q, k, v] = [input(Sq, Hq, 1), input(Sk, Hkv, 2), input(Sk, Hkv, 3)] as const;
  return { q, k, v, ...attentionForward(q, k, v, options), dout: input(Sq, Hq, 4) };
}

/** Values of a shape, as rows of a longer tensor; `isEven`: and of wider rows, so that none begins at 16 bytes. */
function placed(shape: readonly number[], seed: number, isEven: boolean): Tensor {
  const [B = 0, S = 0, H = 0, D = 0] = shape;
  if (isEven) return Tensor.normal([B, S + 3, H, D], { seed }).slice(1, 2, S + 2);
  return Tensor.normal([B, S, H, D + 3], { seed }).slice(3, 1, D + 1);
}

/** What becomes of sums of all three gradients, or of some, against what they held and gradients of their own. */
async function adds(
  t: Test,
  tensors: Parameters<typeof attentionBackward>[0],
  options: AttentionOptions,
  added: readonly (typeof names)[number][],
  isEven = true,
): Promise<void> {
  const given = { ...options, gradientDtype: "float32" as const };
  const own = attentionBackward(tensors, given);
  const sums: Sums = {};
  const before = new Map<string, ArrayLike<number>>();
  for (const [i, name] of names.entries()) {
    if (!added.includes(name)) continue;
    const sum = placed(own[name].shape, 10 + i, isEven);
    sums[name] = sum;
    before.set(name, await sum.data());
  }
  const result = attentionBackward(tensors, { ...given, addTo: sums });
  // dq that is summed in any order has other last bits each time.
  for (const name of options.deterministic ? names : added) {
    if (added.includes(name)) t.equal(result[name], sums[name], `${name} is the tensor that was given`);
    const held = before.get(name);
    const values = await result[name].data();
    const off = Array.from(await own[name].data()).filter(
      (value, i) => at(values, i) !== Math.fround((held ? at(held, i) : 0) + value),
    );
    t.equal(off.length, 0, name);
  }
}

const slopes = () => Tensor.from([0.2, 0.01], [2]);
const scattered = scatter(5, 100);
const cases: Record<string, [Sizes, () => AttentionOptions]> = {
  "heads in groups": [[2, 70, 140, 4, 2, 64], () => ({ scale: 0.3 })],
  "causal, documents": [[1, 150, 150, 1, 1, 96], () => ({ causal: true, cuSeqlens: [0, 37, 140, 150] })],
  "softcap, slopes": [[1, 70, 100, 2, 2, 80], () => ({ softcap: 3, alibiSlopes: slopes() })],
  "a mask": [[1, 140, 150, 2, 1, 128], () => ({ mask: AttentionMask.from(140, 150, scattered) })],
  "wide heads": [[1, 40, 70, 1, 1, 256], () => ({})],
  "narrow heads": [[1, 40, 200, 2, 2, 8], () => ({})],
  "a negative scale": [[1, 40, 70, 1, 1, 64], () => ({ scale: -0.7 })],
  "a scale of zero": [[1, 40, 70, 1, 1, 64], () => ({ scale: 0 })],
};

for (const dtype of floatTypes) {
  for (const implementation of implementationsOf(dtype)) {
    t.test(`${implementation}, ${dtype}`, async (t) => {
      for (const [name, [sizes, options]] of Object.entries(cases)) {
        await t.test(name, (t) =>
          Scope.run(async () => {
            const given = { ...options(), implementation, deterministic: true };
            const tensors = inputs(sizes, dtype, given);
            await adds(t, tensors, given, names);
            await adds(t, tensors, given, names, false);
            await adds(t, tensors, { ...given, deterministic: false }, ["dk", "dv"]);
            given.mask?.dispose();
          }),
        );
      }
    });
  }
}

t.test("to some of them", async (t) => {
  const options = { causal: true, deterministic: true };
  const tensors = inputs([1, 70, 70, 2, 1, 32], "bfloat16", options);
  for (const name of names) await adds(t, tensors, options, [name]);
  await adds(t, tensors, options, ["dk", "dv"]);
});

t.test("where there is nothing to add", async (t) => {
  for (const sizes of [
    [1, 0, 20, 2, 2, 16],
    [1, 20, 0, 2, 2, 16],
  ] as const) {
    await adds(t, inputs(sizes, "bfloat16", {}), {}, names);
  }
});

t.test("what is refused", async (t) => {
  const tensors = inputs([1, 4, 4, 2, 2, 16], "bfloat16", {});
  const { q } = tensors;
  const half = Tensor.empty([1, 4, 1, 16]);
  const gone = Tensor.empty(q.shape);
  gone.dispose();
  refuses(t, [
    [
      () => attentionBackward(tensors, { addTo: { dq: q } }),
      "ERR_DTYPE",
      "attention: dq is bfloat16, expected float32 (it is added to)",
    ],
    [
      () => attentionBackward(tensors, { addTo: { dv: half } }),
      "ERR_SHAPE",
      "attention: dv has the shape [1, 4, 1, 16], expected [1, 4, 2, 16] (that of v)",
    ],
    [() => attentionBackward(tensors, { addTo: { dk: gone } }), "ERR_DISPOSED", /dk/],
    [
      () => attentionBackward(tensors, { addTo: null as never }),
      "ERR_OPTION",
      "attentionBackward: addTo is null, expected an object of Tensors",
    ],
  ]);
});
