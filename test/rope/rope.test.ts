// Rotary embedding against its definition in float64, whose angles come from exact integers.
import fc from "fast-check";
import {
  type Piece,
  type RotaryOptions,
  rotaryEmbedding,
  rotaryEmbeddingBackward,
  rotaryFrequencies,
  Scope,
  Tape,
  Tensor,
} from "longseq";
import t from "tap";
import { differing } from "../support/bits.ts";
import { at, bounds, type FloatType, floatTypes, relativeError } from "../support/compare.ts";
import { headsFirst, inside } from "../support/layouts.ts";

const numbers = (tensor: Tensor) => tensor.data().then((values) => Array.from(values));

/** Pi to 70 digits, times 10^70. */
const scale = 10n ** 70n;
const pi = 31415926535897932384626433832795028841971693993751058209749445923078164n;

/** The exact product of a position and a frequency (a float64), less whole turns, in radians. */
function angle(position: number, frequency: number): number {
  const frequencyBits = 80;
  const mantissa = BigInt(Math.round(frequency * 2 ** 53)); // frequencies here are 2^-40 and more, at most 1
  const exact = frequency * 2 ** 53 === Number(mantissa) ? mantissa << BigInt(frequencyBits - 53) : undefined;
  const scaled = exact ?? BigInt(Math.floor(frequency * 2 ** 90)) >> BigInt(90 - frequencyBits);
  const radians = (BigInt(position) * scaled * scale) >> BigInt(frequencyBits);
  return Number(radians % (2n * pi)) / Number(scale);
}

interface Rotation {
  frequencies: Float64Array;
  factor: number;
  interleaved: boolean;
  positions: (batch: number, row: number) => number;
}

function rotate(x: readonly number[], shape: readonly number[], rotation: Rotation): number[] {
  const [, S = 0, H = 0, D = 0] = shape;
  const { frequencies, factor, interleaved, positions } = rotation;
  const pairs = frequencies.length;
  const y = [...x];
  for (let row = 0; row < x.length / D; row++) {
    const s = Math.floor(row / H) % S;
    const position = positions(Math.floor(row / H / S), s);
    frequencies.forEach((frequency, i) => {
      const [a, b] = interleaved ? [2 * i, 2 * i + 1] : [i, i + pairs];
      const theta = angle(position, frequency);
      const [first, second] = [at(x, row * D + a), at(x, row * D + b)];
      y[row * D + a] = factor * (first * Math.cos(theta) - second * Math.sin(theta));
      y[row * D + b] = factor * (second * Math.cos(theta) + first * Math.sin(theta));
    });
  }
  return y;
}

function listed(pieces: readonly Piece[]): number[] {
  return pieces.flatMap(({ start, length }) => Array.from({ length }, (_, i) => start + i));
}

t.test("any problem", async (t) => {
  const property = fc.asyncProperty(
    fc.record({
      B: fc.integer({ min: 1, max: 3 }),
      S: fc.integer({ min: 1, max: 9 }),
      H: fc.integer({ min: 1, max: 6 }),
      pairs: fc.integer({ min: 0, max: 40 }),
      rest: fc.constantFrom(0, 0, 1, 8, 13),
      interleaved: fc.boolean(),
      dtype: fc.constantFrom(...floatTypes),
      base: fc.constantFrom(10_000, 500_000, 1),
      start: fc.integer({ min: 0, max: 2 ** 31 - 100 }),
      kind: fc.constantFrom("offset", "pieces", "rows", "batches"),
    }),
    ({ B, S, H, pairs, rest, interleaved, dtype, base, start, kind }) =>
      Scope.run(async () => {
        const D = 2 * pairs + rest;
        if (D === 0) return;
        const shape = [B, S, H, D];
        const x = Tensor.normal(shape, { seed: 1, dtype });
        const cut = S >> 1;
        const pieces = [
          { start: start + 60, length: cut },
          { start, length: S - cut },
        ];
        const random = Array.from({ length: B * S }, (_, i) => (i * 7919 + start) % 2 ** 31);
        const given: Record<typeof kind, [Partial<RotaryOptions>, Rotation["positions"]]> = {
          offset: [{ offset: start }, (_, s) => start + s],
          pieces: [{ positions: pieces }, (_, s) => at(listed(pieces), s)],
          rows: [
            { positions: Tensor.from(random.slice(0, S), [S], { dtype: "int32" }) },
            (_, s) => at(random, s),
          ],
          batches: [
            { positions: Tensor.from(random, [B, S], { dtype: "int32" }) },
            (b, s) => at(random, b * S + s),
          ],
        };
        const [where, positions] = given[kind];
        const options = { interleaved, base, rotaryDim: 2 * pairs, ...where };
        const frequencies = rotaryFrequencies(2 * pairs, { base });
        const rotation = { frequencies, factor: 1, interleaved, positions };
        const y = rotaryEmbedding(x, options);
        const error = relativeError(await numbers(y), rotate(await numbers(x), shape, rotation));
        const back = relativeError(await numbers(rotaryEmbeddingBackward(y, options)), await numbers(x));
        if (!(error < bounds[dtype].result && back < bounds[dtype].gradient)) {
          throw new Error(`${JSON.stringify({ shape, ...options, dtype })}: ${error}, back ${back}`);
        }
      }),
  );
  await t.resolves(fc.assert(property, { numRuns: 80 }));
});

t.test("far positions are as exact as near ones", async (t) => {
  const D = 128;
  const shape = [1, 4, 1, D];
  const ones = new Array(4 * D).fill(0).map((_, i) => (i % D < D / 2 ? 1 : 0));
  for (const offset of [0, 1_999_999, 2_000_000, 2 ** 31 - 5]) {
    const y = await numbers(rotaryEmbedding(Tensor.from(ones, shape), { offset }));
    const rotation = {
      frequencies: rotaryFrequencies(D),
      factor: 1,
      interleaved: false,
      positions: (_: number, s: number) => offset + s,
    };
    const expected = rotate(ones, shape, rotation);
    const worst = y.reduce((most, value, i) => Math.max(most, Math.abs(value - at(expected, i))), 0);
    t.ok(worst < 1e-6, `${offset}: ${worst}`);
  }
});

t.test("scalings", async (t) => {
  const plain = rotaryFrequencies(8, { base: 10_000 });
  t.strictSame(Array.from(plain), [1, 0.1, 0.01, 0.001]);
  t.strictSame(
    Array.from(rotaryFrequencies(8, { scaling: { type: "linear", factor: 4 } })),
    Array.from(plain, (f) => f / 4),
  );
  const ntk = rotaryFrequencies(8, { scaling: { type: "ntk", factor: 4 } });
  t.equal(ntk[0], 1, "the highest frequency stays");
  t.ok(Math.abs(at(ntk, 3) / (0.001 / 4) - 1) < 1e-12, "the lowest is interpolated in full");
  t.strictSame(Array.from(rotaryFrequencies(2, { scaling: { type: "ntk", factor: 4 } })), [1]);

  const originalLength = 4096;
  const yarn = rotaryFrequencies(128, { scaling: { type: "yarn", factor: 16, originalLength } });
  for (const [i, f] of rotaryFrequencies(128).entries()) {
    const turns = originalLength / ((2 * Math.PI) / f);
    const ramp = turns < 1 ? 0 : turns > 32 ? 1 : (turns - 1) / 31;
    t.ok(Math.abs(at(yarn, i) / ((1 - ramp) * (f / 16) + ramp * f) - 1) < 1e-12, `pair ${i}`);
  }
  t.equal(yarn[0], 1);
  t.ok(Math.abs(at(yarn, 63) / (10_000 ** (-126 / 128) / 16) - 1) < 1e-12);

  const x = Tensor.normal([1, 5, 2, 128]);
  const y = await numbers(rotaryEmbedding(x, { scaling: { type: "yarn", factor: 16, originalLength } }));
  const rotation = {
    frequencies: yarn,
    factor: 0.1 * Math.log(16) + 1,
    interleaved: false,
    positions: (_: number, s: number) => s,
  };
  t.ok(relativeError(y, rotate(await numbers(x), x.shape, rotation)) < 1e-5, "cosine and sine are scaled");
  const chosen = { type: "yarn", factor: 16, originalLength, attentionFactor: 1 } as const;
  const z = await numbers(rotaryEmbedding(x, { scaling: chosen }));
  t.ok(relativeError(z, rotate(await numbers(x), x.shape, { ...rotation, factor: 1 })) < 1e-5);
});

t.test("where x lies makes no difference", async (t) => {
  for (const dtype of floatTypes) {
    for (const [D, rotaryDim] of [
      [64, 64],
      [80, 32],
      [33, 20],
    ]) {
      for (const interleaved of [false, true]) {
        const x = Tensor.normal([2, 7, 5, D ?? 0], { dtype });
        const options = { interleaved, rotaryDim: rotaryDim ?? 0, offset: 12_345 };
        const y = rotaryEmbedding(x, options);
        const moved = [await inside(x), await headsFirst(x)];
        for (const other of moved) {
          const error = relativeError(await numbers(rotaryEmbedding(other, options)), await numbers(y));
          t.ok(error < bounds[dtype].result, `${dtype} ${D} ${interleaved}: ${error}`);
        }
        const flat = rotaryEmbedding(x.select(0, 1), options);
        t.strictSame(await differing({ y: flat }, { y: y.select(0, 1).contiguous() }), [], "[T, H, D]");
      }
    }
  }
});

t.test("pieces, an offset and a tensor say the same", async (t) => {
  const x = Tensor.normal([2, 10, 3, 16], { dtype: "bfloat16" });
  const y = rotaryEmbedding(x, { offset: 100 });
  const rows = Array.from({ length: 10 }, (_, i) => 100 + i);
  const same: RotaryOptions[] = [
    { positions: [{ start: 100, length: 10 }] },
    {
      positions: [
        { start: 100, length: 4 },
        { start: 104, length: 0 },
        { start: 104, length: 6 },
      ],
    },
    { positions: Tensor.from(rows, [10], { dtype: "int32" }) },
    { positions: Tensor.from([...rows, ...rows], [2, 10], { dtype: "int32" }) },
    {
      positions: Tensor.from([...rows, ...rows], [10, 2], { dtype: "int32" })
        .reshape([20])
        .slice(0, 0, 10),
    },
  ];
  for (const options of same) t.strictSame(await differing({ y: rotaryEmbedding(x, options) }, { y }), []);
  const strided = Tensor.from(
    rows.flatMap((row) => [row, 0]),
    [10, 2],
    { dtype: "int32" },
  ).select(1, 0);
  t.strictSame(await differing({ y: rotaryEmbedding(x, { positions: strided }) }, { y }), []);
});

t.test("scores depend on the distance alone", async (t) => {
  const [q, k] = [Tensor.normal([1, 1, 1, 64], { seed: 1 }), Tensor.normal([1, 1, 1, 64], { seed: 2 })];
  const score = async (p: number, r: number) => {
    const [a, b] = [rotaryEmbedding(q, { offset: p }), rotaryEmbedding(k, { offset: r })];
    const [as, bs] = [await numbers(a), await numbers(b)];
    return as.reduce((sum, value, i) => sum + value * at(bs, i), 0);
  };
  const expected = await score(17, 5);
  for (const shift of [1, 1000, 2_000_000, 2_000_000_000]) {
    t.ok(Math.abs((await score(17 + shift, 5 + shift)) - expected) < 1e-4, `${shift}`);
  }
});

t.test("on a tape", async (t) => {
  using tape = new Tape();
  const x = Tensor.normal([1, 3, 2, 12]);
  const positions = Tensor.from([5, 900, 3], [3], { dtype: "int32" });
  const options: RotaryOptions = {
    positions,
    rotaryDim: 8,
    scaling: { type: "yarn", factor: 2, originalLength: 8 },
  };
  tape.watch(x);
  const y = rotaryEmbedding(x, options);
  const dy = Tensor.normal(x.shape, { seed: 3 });
  const [dx] = tape.backward(y, dy, [x]) as [Tensor];
  t.strictSame(await differing({ dx }, { dx: rotaryEmbeddingBackward(dy, options) }), []);
  // A linear operation's gradient is its transpose: <y, dy> = <x, dx>.
  const dot = (a: readonly number[], b: readonly number[]) => a.reduce((sum, v, i) => sum + v * at(b, i), 0);
  const [left, right] = [dot(await numbers(y), await numbers(dy)), dot(await numbers(x), await numbers(dx))];
  t.ok(Math.abs(left - right) < 1e-5 * Math.abs(left), `${left} ${right}`);
});

t.test("no elements, and no pairs", async (t) => {
  for (const shape of [
    [0, 3, 2, 8],
    [1, 0, 2, 8],
    [1, 3, 0, 8],
    [1, 3, 2, 0],
    [0, 2, 8],
  ]) {
    t.same(rotaryEmbedding(Tensor.zeros(shape)).shape, shape);
  }
  const x = Tensor.normal([1, 3, 2, 7], { dtype: "float16" as FloatType });
  t.strictSame(await differing({ y: rotaryEmbedding(x, { rotaryDim: 0 }) }, { y: x }), []);
});
