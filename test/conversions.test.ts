// Rounding and saturation between element types.
import { Tensor } from "longseq";
import t from "tap";
import { at, type FloatType } from "./support/compare.ts";

const { POSITIVE_INFINITY: infinity, NaN: nan } = Number;

/** The value of a 16-bit float, from its sign, exponent and fraction. */
function decoded(bits: number, exponentBits: number): number {
  const fractionBits = 15 - exponentBits;
  const sign = bits >> 15 === 0 ? 1 : -1;
  const exponent = (bits >> fractionBits) & (2 ** exponentBits - 1);
  const fraction = (bits & (2 ** fractionBits - 1)) / 2 ** fractionBits;
  const bias = 2 ** (exponentBits - 1) - 1;
  if (exponent === 2 ** exponentBits - 1) return fraction === 0 ? sign * infinity : nan;
  return exponent === 0 ? sign * fraction * 2 ** (1 - bias) : sign * (1 + fraction) * 2 ** (exponent - bias);
}

for (const [dtype, exponentBits] of [
  ["bfloat16", 8],
  ["float16", 5],
] as [FloatType, number][]) {
  t.test(`${dtype}: all bit patterns, and what lies between`, async (t) => {
    const all = Uint16Array.from({ length: 1 << 16 }, (_, bits) => bits);
    const tensor = Tensor.from(all, [1 << 16], { dtype });
    const values = await tensor.data();
    const expected = Float32Array.from(all, (bits) => decoded(bits, exponentBits));
    t.equal(
      values.findIndex((value, i) => !Object.is(value, expected[i])),
      -1,
      "widened",
    );

    const back = await tensor.to("float32").to(dtype).bits();
    t.equal(
      back.findIndex((bits, i) =>
        Number.isNaN(values[i]) ? !Number.isNaN(decoded(bits, exponentBits)) : bits !== i,
      ),
      -1,
      "narrowed",
    );

    // Each number, and the halfway points and their neighbours on the way to the next one: of a half, the even one.
    const finite = all.subarray(0, expected.indexOf(infinity));
    const given = new Float32Array(3 * finite.length);
    const wanted = new Uint16Array(given.length);
    const asBits = new Uint32Array(given.buffer);
    for (const bits of finite) {
      // Behind the largest number, the next one is what it would be without an end.
      const [low, next] = [decoded(bits, exponentBits), decoded(bits + 1, exponentBits)];
      const high = next === infinity ? 2 * low - decoded(bits - 1, exponentBits) : next;
      given.fill(low / 2 + high / 2, 3 * bits, 3 * bits + 3);
      asBits[3 * bits] = at(asBits, 3 * bits) - 1;
      asBits[3 * bits + 2] = at(asBits, 3 * bits + 2) + 1;
      wanted.set([bits, bits + (bits & 1), bits + 1], 3 * bits);
    }
    const rounded = await Tensor.from(given, [given.length], { dtype }).bits();
    t.equal(
      rounded.findIndex((bits, i) => bits !== wanted[i]),
      -1,
      "rounded to nearest even",
    );
    const negative = await Tensor.from(
      given.map((value) => -value),
      [given.length],
      { dtype },
    ).bits();
    t.equal(
      negative.findIndex((bits, i) => bits !== at(wanted, i) + 0x8000),
      -1,
      "and so below zero",
    );
  });
}

t.test("conversions between types saturate", async (t) => {
  const [low, high] = [-(2 ** 31), 2 ** 31 - 1];
  const floats = [2.9, -2.9, 300, -300, 1e10, -1e10, infinity, -infinity, nan];
  const made = Tensor.from(floats, [floats.length]);
  t.strictSame(await made.to("int32").data(), Int32Array.of(2, -2, 300, -300, high, low, high, low, 0));
  t.strictSame(await made.to("uint8").data(), Uint8Array.of(2, 0, 255, 0, 255, 0, 255, 0, 0));
  t.strictSame(
    await made.to("float16").data(),
    Float32Array.of(2.900390625, -2.900390625, 300, -300, infinity, -infinity, infinity, -infinity, nan),
  );
  const integers = Tensor.from(Int32Array.of(low, high, -1, 256, 2 ** 24 + 1), [5]);
  t.strictSame(await integers.to("uint8").data(), Uint8Array.of(0, 255, 0, 255, 255));
  t.strictSame(await integers.to("float32").data(), Float32Array.of(low, 2 ** 31, -1, 256, 2 ** 24));
  t.strictSame(
    await Tensor.from([3e9, -3e9, nan, 2.5], [4], { dtype: "int32" }).data(),
    Int32Array.of(high, low, 0, 2),
  );
  const wide = Float64Array.of(2 ** 24 + 1, -(2 ** 31), 1e300);
  t.strictSame(
    await Tensor.from(wide, [3], { dtype: "int32" }).data(),
    Int32Array.of(2 ** 24 + 1, low, high),
  );
});
