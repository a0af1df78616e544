// Joining tensors along an axis: every dtype and layout, empty parts, the gradient, what is refused.
import fc from "fast-check";
import { concatenate, Device, type DType, Tape, Tensor } from "longseq";
import t from "tap";
import { differing } from "../support/bits.ts";
import { at } from "../support/compare.ts";
import { inside } from "../support/layouts.ts";
import { refuses } from "../support/refusals.ts";

const dtypes: readonly DType[] = ["float32", "bfloat16", "float16", "int32", "uint8"];
const zeros = (shape: number[], dtype: DType = "float32") => Tensor.zeros(shape, { dtype });

/** Numbers from `start` on, which all dtypes hold. */
function counted(shape: readonly number[], start: number, dtype: DType): Tensor {
  const size = shape.reduce((a, b) => a * b, 1);
  return Tensor.from(
    Array.from({ length: size }, (_, i) => (start + i) % 251),
    shape,
    { dtype },
  );
}

const cases = fc.record({
  shape: fc.array(fc.integer({ min: 1, max: 4 }), { minLength: 1, maxLength: 4 }),
  sizes: fc.array(fc.integer({ min: 0, max: 3 }), { minLength: 1, maxLength: 4 }),
  dtype: fc.constantFrom(...dtypes),
  isInside: fc.boolean(),
  axisOf4: fc.nat(3),
});

t.test("an element is the one of its part", async (t) => {
  await fc.assert(
    fc.asyncProperty(cases, async ({ shape, sizes, dtype, isInside, axisOf4 }) => {
      const axis = axisOf4 % shape.length;
      const parts = await Promise.all(
        sizes.map((size, i) => {
          const part = counted(shape.with(axis, size), 17 * i, dtype);
          return isInside ? inside(part) : part;
        }),
      );
      const y = concatenate(parts, axis);
      t.strictSame(
        y.shape,
        shape.with(
          axis,
          sizes.reduce((a, b) => a + b, 0),
        ),
      );
      t.ok(y.isContiguous && y.dtype === dtype);
      let start = 0;
      for (const part of parts) {
        const end = start + (part.shape[axis] ?? 0);
        t.strictSame(await y.slice(axis, start, end).data(), await part.data());
        start = end;
      }
    }),
    { numRuns: 60 },
  );
});

t.test("the gradient is in parts", async (t) => {
  const [a, b] = [Tensor.normal([2, 3, 2], { seed: 1 }), Tensor.normal([2, 1, 2], { seed: 2 })];
  using tape = new Tape();
  tape.watch(a);
  const y = concatenate([b, a, a], 1);
  const dy = Tensor.normal(y.shape, { seed: 3 });
  const [da] = tape.backward(y, dy, [a]) as [Tensor];
  const [first, second] = [await dy.slice(1, 1, 4).data(), await dy.slice(1, 4, 7).data()];
  t.strictSame(
    await da.data(),
    first.map((value, i) => Math.fround(value + at(second, i))),
  );
});

t.test("one part is a copy", async (t) => {
  const x = Tensor.normal([2, 3], { seed: 1 });
  const y = concatenate([x], 0);
  t.strictSame(await differing({ y }, { y: x }), []);
  y.write(new Float32Array(6));
  t.ok((await x.data()).some((value) => value !== 0));
});

t.test("the array may change after the call, and the parts be disposed", async (t) => {
  const parts = [Tensor.from([1], [1]), Tensor.from([2, 3], [2])];
  const [x] = parts as [Tensor];
  using tape = new Tape();
  tape.watch(x);
  const y = concatenate(parts, 0);
  parts.pop();
  x.dispose();
  const [dx] = tape.backward(y, Tensor.from([5, 6, 7], [3]), [x]) as [Tensor];
  t.strictSame(await dx.data(), Float32Array.of(5));
});

t.test("refusals", async (t) => {
  using other = new Device();
  const gone = zeros([2]);
  gone.dispose();
  const a = zeros([2, 3]);
  refuses(t, [
    [() => concatenate(a as never, 0), "ERR_OPTION", /parts is object, expected an array of Tensors/],
    [() => concatenate([], 0), "ERR_OPTION", "concatenate: parts has no tensor, expected one at least"],
    [() => concatenate([a, 3 as never], 0), "ERR_OPTION", "concatenate: part 1 is number, expected a Tensor"],
    [() => concatenate([a, gone], 0), "ERR_DISPOSED", "concatenate: part 1 was disposed"],
    [() => concatenate([a, a], 2), "ERR_SHAPE", "concatenate: axis is 2, expected 0 to 1"],
    [() => concatenate([a], -1), "ERR_SHAPE", "concatenate: axis is -1, expected 0 to 1"],
    [() => concatenate([a], "0" as never), "ERR_SHAPE", "concatenate: axis is 0, expected 0 to 1"],
    [
      () => concatenate([zeros([])], 0),
      "ERR_SHAPE",
      "concatenate: axis is 0, expected tensors that have axes",
    ],
    [
      () => concatenate([a, zeros([2, 4])], 0),
      "ERR_SHAPE",
      "concatenate: part 1 has the shape [2, 4], expected that of part 0, [2, 3], but for axis 0",
    ],
    [() => concatenate([a, zeros([2, 3, 1])], 1), "ERR_SHAPE", /part 1 has the shape \[2, 3, 1\]/],
    [
      () => concatenate([a, zeros([2, 3], "bfloat16")], 0),
      "ERR_DTYPE",
      "concatenate: part 1 is bfloat16, expected float32 (that of part 0)",
    ],
    [
      () => concatenate([a, Tensor.zeros([2, 3], { device: other })], 0),
      "ERR_DEVICE",
      "concatenate: part 1 is on another device than part 0",
    ],
  ]);
});
