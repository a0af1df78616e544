// The backward pass of keys in parts: dq is that of all of them, dk and dv are those of a part alone.
import t, { type Test } from "tap";
import { attentionBackward, attentionForward, type Piece, Tensor } from "../../lib/index.ts";
import { type AttentionOptions, nativeRule, nativeScoring } from "../../lib/ops/attention-options.ts";
import { QueryGradient, queryRows } from "../../lib/ops/query-gradient.ts";
import { Scope } from "../../lib/scope.ts";
import { handleOf } from "../../lib/tensor.ts";
import { bounds, type FloatType, floatTypes, relativeError } from "../support/compare.ts";
import { implementationsOf } from "../support/devices.ts";
import { refuses } from "../support/refusals.ts";

const [B, S, Hq, Hkv] = [2, 300, 4, 2] as const;
const piece = (start: number, length: number): Piece[] => [{ start, length }];

function inputs(D: number, dtype: FloatType, options: AttentionOptions) {
  // Neighbouring parts of wider rows: in none of these a row begins at 16 bytes.
  const input = (heads: number, seed: number) =>
    Tensor.normal([B, S, heads, D + 2], { seed, dtype }).slice(3, 1, D + 1);
  const [q, k, v, dout] = [input(Hq, 1), input(Hkv, 2), input(Hkv, 3), input(Hq, 4)] as const;
  return { q, k, v, dout, ...attentionForward(q, k, v, options) };
}

type Pair = readonly [k: Tensor, v: Tensor];
const handlesOf = ([k, v]: Pair) => [handleOf(k, "k"), handleOf(v, "v")] as const;
const everything = nativeRule({});

const bytesOf = async (x: Tensor) => Buffer.from((await x.bits()).buffer);
const isSame = async (a: Tensor, b: Tensor) => (await bytesOf(a)).equals(await bytesOf(b));

/** Of the keys, and the queries that see any of them. */
const parts = [
  { keys: [0, 140], queries: { start: 0, length: S } },
  { keys: [140, 270], queries: { start: 128, length: S - 128 } },
  { keys: [140, 140], queries: { start: 128, length: 128 } },
  { keys: [270, S], queries: { start: 256, length: S - 256 } },
] as const;

async function inParts(t: Test, D: number, dtype: FloatType, options: AttentionOptions): Promise<void> {
  const { k, v, ...tensors } = inputs(D, dtype, options);
  const expected = attentionBackward({ ...tensors, k, v }, { ...options, gradientDtype: "float32" });
  for (const wanted of new Set([dtype, "float32"] as const)) {
    using gradient = new QueryGradient(tensors, nativeScoring(tensors.q, options));
    for (const { keys, queries } of parts) {
      const part = [k, v].map((x) => x.slice(1, keys[0], keys[1])) as [Tensor, Tensor];
      const { start, length } = queries;
      const given = {
        ...options,
        queryPositions: piece(start, length),
        keyPositions: piece(keys[0], keys[1] - keys[0]),
      };
      const alone = attentionBackward(
        {
          q: tensors.q.slice(1, start, start + length),
          out: tensors.out.slice(1, start, start + length),
          logSumExp: tensors.logSumExp.slice(2, start, start + length),
          dout: tensors.dout.slice(1, start, start + length),
          k: part[0],
          v: part[1],
        },
        { ...given, gradientDtype: "float32" },
      );
      const like = { dtype: wanted, device: k.device };
      const made = part.map(({ shape }) => Tensor.empty(shape, like)) as [Tensor, Tensor];
      gradient.add(queries, handlesOf(part), handlesOf(made), false, nativeRule(given));
      for (const [i, own] of [alone.dk, alone.dv].entries())
        t.ok(await isSame(made[i] as Tensor, own.to(wanted)), "as of these keys alone");
      if (wanted !== "float32") continue;
      const noRows = nativeRule({ ...given, queryPositions: [] });
      gradient.add({ start: 0, length: 0 }, handlesOf(part), handlesOf(made), true, noRows);
      t.ok(await isSame(made[0], alone.dk), "nothing added");
    }
    const dq = Tensor.empty([B, S, Hq, D + 2], { dtype: wanted }).slice(3, 1, D + 1);
    gradient.finish(dq);
    const error = relativeError(await dq.data(), await expected.dq.data());
    t.ok(error < (wanted === "float32" ? 1e-6 : bounds[dtype].result), `dq: ${error}`);
  }
}

for (const dtype of floatTypes) {
  for (const implementation of implementationsOf(dtype)) {
    t.test(`${implementation}, ${dtype}`, async (t) => {
      for (const [D, options] of [
        [64, { causal: true }],
        [24, { causal: true, softcap: 2, scale: -0.7 }],
        [128, { window: [100, 0] }],
        [80, { causal: true }],
        [256, { causal: true }],
        [8, { causal: true, alibiSlopes: [0.5, 0.1, 0.02, 0] }],
      ] as const) {
        // The definition is slow, and the same at every D.
        if (implementation === "reference" && D > 80) continue;
        await Scope.run(() => {
          const { alibiSlopes, ...others } = { alibiSlopes: undefined, ...options };
          return inParts(t, D, dtype, {
            ...others,
            implementation,
            ...(alibiSlopes && { alibiSlopes: Tensor.from(alibiSlopes, [Hq]) }),
          });
        });
      }
    });
  }
}

t.test("nothing at all", async (t) => {
  const none = Tensor.empty([1, 0, 2, 8]);
  const results = attentionForward(none, none, none);
  using gradient = new QueryGradient({ q: none, dout: none, ...results }, nativeScoring(none, {}));
  const dk = Tensor.empty(none.shape);
  gradient.add({ start: 0, length: 0 }, handlesOf([none, none]), handlesOf([dk, dk]), false, everything);
  gradient.finish(dk);
  t.strictSame([...(await dk.data())], []);
});

t.test("what is refused", async (t) => {
  const tensors = inputs(8, "bfloat16", {});
  const { q, k, v } = tensors;
  const scoring = nativeScoring(q, {});
  using gradient = new QueryGradient(tensors, scoring);
  const add = (start: number, length: number, dk = Tensor.empty(k.shape)) =>
    gradient.add(
      { start, length },
      handlesOf([k, v]),
      handlesOf([dk, Tensor.empty(v.shape)]),
      true,
      everything,
    );
  const rows = (first: number, last: number) =>
    `queryGradient: got the queries ${first} to ${last} of 300, expected multiples of ${queryRows}, or the last`;
  refuses(t, [
    [() => add(100, 200), "ERR_SHAPE", rows(100, 300)],
    [() => add(128, 100), "ERR_SHAPE", rows(128, 228)],
    [() => add(128, 256), "ERR_SHAPE", rows(128, 384)],
    [
      () => add(0, S, Tensor.empty(k.shape, { dtype: "bfloat16" })),
      "ERR_DTYPE",
      "attention: dk is bfloat16, expected float32 (it is added to)",
    ],
    [
      () => gradient.finish(k),
      "ERR_SHAPE",
      `attention: dq has the shape [2, 300, 2, 8], expected [2, 300, 4, 8] (that of q)`,
    ],
    [
      () => new QueryGradient({ ...tensors, dout: k }, scoring),
      "ERR_SHAPE",
      "attention: dout has the shape [2, 300, 2, 8], expected [2, 300, 4, 8] (that of out)",
    ],
    [
      () => new QueryGradient({ ...tensors, q: q.slice(1, 0, 5) }, scoring),
      "ERR_SHAPE",
      "attention: out has the shape [2, 300, 4, 8], expected [2, 5, 4, 8] (that of q)",
    ],
  ]);
});
