// Tensors of more than 2^31 elements through both directions, on a GPU: rows at both ends, and where an index of 32 bits
// would turn over, are what they are alone.
import {
  type AttentionOptions,
  attentionBackward,
  attentionForward,
  Device,
  info,
  mergeAttention,
  Scope,
  Tensor,
} from "longseq";
import t, { type Test } from "tap";
import { at, bounds, relativeError } from "../support/compare.ts";
import { kind } from "../support/devices.ts";

const [H, D] = [16, 128];
const long = 2 ** 31 / (H * D) + 301;
const few = 48;
/** Where bytes and elements pass 2^31, and the ends. */
const places = [0, 2 ** 29 / (H * D), 2 ** 30 / (H * D), 2 ** 31 / (H * D), long - 16].map((at) =>
  Math.max(0, at - 16),
);
const each = 32;
const parts = 4;
const cuts = Array.from({ length: parts + 1 }, (_, part) => Math.floor((long * part) / parts));

type Type = "bfloat16" | "float32";
const gigabytes = { bfloat16: 40, float32: 64 };

/** Tests a shape for each type, where the GPU has the memory. */
function large(name: string, run: (t: Test, dtype: Type) => Promise<void>): void {
  for (const dtype of ["bfloat16", "float32"] as const) {
    const most = (info().cuda.gpus[0]?.memoryBytes ?? 0) / 1e9;
    const needs = `it takes a GPU of ${gigabytes[dtype]} GB`;
    t.test(`${name}, ${dtype}`, { skip: (kind !== "cuda" || most < gigabytes[dtype]) && needs }, (t) =>
      Scope.run(async () => {
        await run(t, dtype);
        await Device.default.synchronize();
      }),
    );
  }
}

const normal = (rows: number, heads: number, dtype: Type, seed: number) =>
  Tensor.normal([1, rows, heads, D], { dtype, seed });

/** Leaves memory that large results will be in full of other numbers. */
function poison(dtype: Type, tensors: number): void {
  const held = Array.from({ length: tensors }, (_, seed) =>
    Tensor.normal([1, long, H, D], { dtype, seed, std: 1000 }),
  );
  for (const tensor of held) tensor.dispose();
}

async function near(t: Test, name: string, actual: Tensor, expected: ArrayLike<number>, bound: number) {
  const error = relativeError(await actual.data(), expected);
  t.ok(error < bound, `${name}: off by ${error}`);
}

async function sumOf(tensors: readonly Tensor[]): Promise<Float64Array> {
  const all = await Promise.all(tensors.map((tensor) => tensor.data()));
  return Float64Array.from({ length: all[0]?.length ?? 0 }, (_, i) =>
    all.reduce((sum, values) => sum + at(values as ArrayLike<number>, i), 0),
  );
}

/** A sum of as many terms as there are long rows: each addition rounds. */
const boundOfSums = (dtype: Type) => Math.max(bounds[dtype].gradient, 2 ** -24 * Math.sqrt(long));

const reference: AttentionOptions = { implementation: "reference" };

large("queries", async (t, dtype) => {
  const { result, gradient } = bounds[dtype];
  const [q, dout] = [normal(long, H, dtype, 1), normal(long, H, dtype, 2)];
  const [k, v] = [normal(few, 8, dtype, 3), normal(few, 8, dtype, 4)];
  poison(dtype, 1);
  const { out, logSumExp } = attentionForward(q, k, v);
  poison(dtype, 1);
  const { dq, dk, dv } = attentionBackward({ q, k, v, out, logSumExp, dout });
  const ofRows = (begin: number, end: number) => ({
    q: q.slice(1, begin, end),
    dout: dout.slice(1, begin, end),
    out: out.slice(1, begin, end),
    logSumExp: logSumExp.slice(2, begin, end),
  });
  for (const place of places) {
    const rows = ofRows(place, place + each);
    const alone = attentionForward(rows.q, k, v, reference);
    const gradients = attentionBackward({ ...rows, k, v }, reference);
    await near(t, `out from ${place}`, rows.out, await alone.out.data(), result);
    await near(t, `logSumExp from ${place}`, rows.logSumExp, await alone.logSumExp.data(), result);
    await near(t, `dq from ${place}`, dq.slice(1, place, place + each), await gradients.dq.data(), gradient);
  }
  const ofParts = Array.from({ length: parts }, (_, part) =>
    attentionBackward({ ...ofRows(cuts[part] ?? 0, cuts[part + 1] ?? 0), k, v }),
  );
  await near(t, "dk", dk, await sumOf(ofParts.map((part) => part.dk)), boundOfSums(dtype));
  await near(t, "dv", dv, await sumOf(ofParts.map((part) => part.dv)), boundOfSums(dtype));
});

large("keys", async (t, dtype) => {
  const { result, gradient } = bounds[dtype];
  const [q, dout] = [normal(few, H, dtype, 1), normal(few, H, dtype, 2)];
  const [k, v] = [normal(long, H, dtype, 3), normal(long, H, dtype, 4)];
  const ofKeys = (begin: number, end: number) => ({ k: k.slice(1, begin, end), v: v.slice(1, begin, end) });
  const halves = Array.from({ length: parts }, (_, part) => ofKeys(cuts[part] ?? 0, cuts[part + 1] ?? 0));
  const { out, logSumExp } = attentionForward(q, k, v);
  const merged = mergeAttention(halves.map(({ k, v }) => attentionForward(q, k, v, { outDtype: "float32" })));
  await near(t, "out", out, await merged.out.data(), result);
  await near(t, "logSumExp", logSumExp, await merged.logSumExp.data(), result);
  poison(dtype, 2);
  const { dq, dk, dv } = attentionBackward({ q, k, v, out, logSumExp, dout });
  for (const place of places) {
    const gradients = attentionBackward(
      { q, ...ofKeys(place, place + each), out, logSumExp, dout },
      reference,
    );
    const own = (x: Tensor) => x.slice(1, place, place + each);
    await near(t, `dk from ${place}`, own(dk), await gradients.dk.data(), gradient);
    await near(t, `dv from ${place}`, own(dv), await gradients.dv.data(), gradient);
  }
  const ofParts = halves.map(({ k, v }) => attentionBackward({ q, k, v, out, logSumExp, dout }));
  await near(t, "dq", dq, await sumOf(ofParts.map((part) => part.dq)), boundOfSums(dtype));
});
