// Random attention problems: the options for the package, and beside them the same in the definition's words.
import fc from "fast-check";
import { type AttentionOptions, attentionBackward, attentionForward, Tensor } from "longseq";
import { type FloatType, floatTypes } from "./compare.ts";
import type { Inputs, Rule, Shape } from "./definition.ts";
import { pairOf } from "./masks.ts";
import { placements, range } from "./placements.ts";

export interface Problem {
  shape: Shape;
  rule: Rule;
  /** Without the tensors: `tensorOptions` makes those. */
  options: Omit<AttentionOptions, "alibiSlopes">;
  dtype: FloatType;
  hasStatisticGradient: boolean;
  seed: number;
}

/** Multiply-adds of one product of all queries and keys, so that the definition takes milliseconds. */
const mostWork = 5e5;
const workOf = (s: Shape) => s.batch * s.heads * s.queries * s.keys * s.headDim;

/** Around the sizes of tiles, of vectors and of nothing. */
const rows = fc.oneof(
  fc.integer({ min: 0, max: 12 }),
  fc.constantFrom(1, 31, 32, 33, 63, 64, 65, 95, 96, 97, 127, 128, 129, 191, 192, 193, 256, 257, 385),
  fc.integer({ min: 0, max: 200 }),
);

/** Long enough that the keys of a query are split over the threads. */
const many = fc.integer({ min: 2040, max: 6000 });
const few = fc.integer({ min: 1, max: 9 });
const lengths = fc.oneof(
  { weight: 8, arbitrary: fc.tuple(rows, rows) },
  { weight: 2, arbitrary: rows.map((length): [number, number] => [length, length]) },
  { weight: 1, arbitrary: fc.tuple(few, many) },
  { weight: 1, arbitrary: fc.tuple(many, few) },
);

const shapes: fc.Arbitrary<Shape> = fc
  .record({
    batch: fc.oneof({ weight: 9, arbitrary: fc.integer({ min: 1, max: 3 }) }, fc.constant(0)),
    lengths,
    keyHeads: fc.integer({ min: 1, max: 3 }),
    group: fc.oneof({ weight: 9, arbitrary: fc.integer({ min: 1, max: 5 }) }, fc.constant(0)),
    headDim: fc.oneof(
      fc.constantFrom(64, 80, 96, 128, 256),
      fc.integer({ min: 1, max: 32 }).map((n) => 8 * n),
    ),
  })
  .map(({ batch, lengths: [queries, keys], keyHeads, group, headDim }) => {
    const shape = {
      batch,
      queries,
      keys,
      heads: group * keyHeads,
      keyHeads,
      headDim,
    };
    if (workOf(shape) > mostWork) shape.batch = 1;
    if (workOf(shape) > mostWork) Object.assign(shape, { heads: group, keyHeads: 1 });
    if (workOf(shape) > mostWork) shape.heads = 1;
    if (workOf(shape) > mostWork) shape.headDim = 8 * Math.ceil(mostWork / queries / keys / 8);
    return shape;
  });

const side = fc.oneof(fc.constant(-1), fc.integer({ min: 0, max: 150 }));

export const problems: fc.Arbitrary<Problem> = shapes.chain((shape) =>
  fc
    .record({
      placement: placements(shape),
      mask: fc.option(pairOf(shape.queries, shape.keys), { freq: 2 }),
      causal: fc.boolean(),
      window: fc.option(fc.tuple(side, side), { freq: 2 }),
      /** In units of the default. */
      scale: fc.option(fc.constantFrom(0, -1, 0.3, 2)),
      softcap: fc.option(fc.constantFrom(0.5, 4, 30), { freq: 2 }),
      slope: fc.option(fc.constantFrom(0, 0.02, 0.5, -0.01), { freq: 2 }),
      dtype: fc.constantFrom(...floatTypes),
      // What the definition does not know.
      plain: fc.record(
        { outDtype: fc.constant("float32" as const), deterministic: fc.boolean() },
        { requiredKeys: [] },
      ),
      hasStatisticGradient: fc.boolean(),
      seed: fc.nat(1000),
    })
    .map(({ placement, mask, causal, window, scale, softcap, slope, plain, ...rest }): Problem => {
      const standard = 1 / Math.sqrt(shape.headDim);
      // A score of 1000 is known to 6e-5 in float32: distances are not to make such.
      const nearness = Math.min(1, 100 / Math.max(shape.queries, shape.keys));
      const { options, ...rows } = placement;
      const rule: Rule = {
        ...rows,
        causal,
        window: window ?? [-1, -1],
        scale: (scale ?? 1) * standard,
        softcap: softcap ?? 0,
        slopes:
          slope === null
            ? undefined
            : range(1, shape.heads).map((head) => Math.fround((slope * nearness) / head)),
        mask: mask?.sees,
      };
      return {
        ...rest,
        shape,
        rule,
        options: {
          ...options,
          causal,
          ...(window && { window }),
          ...(scale !== null && { scale: rule.scale }),
          ...(softcap !== null && { softcap }),
          ...(mask && { mask: mask.mask }),
          ...plain,
        },
      };
    }),
);

export interface ProblemTensors {
  q: Tensor;
  k: Tensor;
  v: Tensor;
  dout: Tensor;
  dlogSumExp?: Tensor;
  options: AttentionOptions;
}

/** The inputs, of normal numbers. */
export function tensorsOf({
  shape,
  rule,
  options,
  dtype,
  hasStatisticGradient,
  seed,
}: Problem): ProblemTensors {
  const { batch, queries, keys, heads, keyHeads, headDim } = shape;
  const ofQueries = [batch, queries, heads, headDim];
  const ofKeys = [batch, keys, keyHeads, headDim];
  const { slopes } = rule;
  return {
    q: Tensor.normal(ofQueries, { dtype, seed }),
    k: Tensor.normal(ofKeys, { dtype, seed: seed + 1 }),
    v: Tensor.normal(ofKeys, { dtype, seed: seed + 2 }),
    dout: Tensor.normal(ofQueries, { dtype: options.outDtype ?? dtype, seed: seed + 3 }),
    ...(hasStatisticGradient && { dlogSumExp: Tensor.normal([batch, heads, queries], { seed: seed + 4 }) }),
    options: { ...options, ...(slopes && { alibiSlopes: Tensor.from(slopes, [heads]) }) },
  };
}

export async function inputsOf({ q, k, v, dout, dlogSumExp }: ProblemTensors): Promise<Inputs> {
  const [qs, ks, vs, douts] = await Promise.all([q, k, v, dout].map((tensor) => tensor.data()));
  if (!qs || !ks || !vs || !douts) throw new Error("unreachable");
  return { q: qs, k: ks, v: vs, dout: douts, dlogSumExp: await dlogSumExp?.data() };
}

export type Results = Record<"out" | "logSumExp" | "dq" | "dk" | "dv", Tensor>;

/** Both directions. */
export function solve({ q, k, v, dout, dlogSumExp, options }: ProblemTensors): Results {
  const { out, logSumExp } = attentionForward(q, k, v, options);
  const gradients = attentionBackward(
    { q, k, v, out, logSumExp, dout, ...(dlogSumExp && { dlogSumExp }) },
    options,
  );
  return { out, logSumExp, ...gradients };
}

/** How a failing problem is shown. */
export function describe({ shape, options, dtype, seed, rule, hasStatisticGradient }: Problem): string {
  const { mask, ...plain } = options;
  return JSON.stringify({
    shape,
    dtype,
    seed,
    hasStatisticGradient,
    slopes: rule.slopes,
    ...plain,
    mask: mask?.kind,
  });
}
