// Parts of a tensor along an axis: which elements, views, their gradient, what is refused.
import fc from "fast-check";
import { attention, concatenate, split, Tape, Tensor } from "longseq";
import t from "tap";
import { differing } from "../support/bits.ts";
import { callsOf } from "../support/calls.ts";
import { refuses } from "../support/refusals.ts";

const cases = fc
  .record({
    shape: fc.array(fc.integer({ min: 1, max: 4 }), { minLength: 1, maxLength: 4 }),
    sizes: fc.array(fc.integer({ min: 0, max: 3 }), { minLength: 1, maxLength: 4 }),
    axisOf4: fc.nat(3),
    used: fc.array(fc.boolean(), { minLength: 4, maxLength: 4 }),
  })
  .map(({ shape, sizes, axisOf4, used }) => {
    const axis = axisOf4 % shape.length;
    const size = sizes.reduce((a, b) => a + b, 0);
    return { shape: shape.with(axis, size), axis, sizes, used };
  });

const named = (parts: readonly Tensor[]) => Object.fromEntries(parts.map((part, i) => [String(i), part]));

t.test("the parts are slices", async (t) => {
  await fc.assert(
    fc.asyncProperty(cases, async ({ shape, axis, sizes }) => {
      const x = Tensor.normal(shape, { seed: 1 });
      const parts = split(x, axis, sizes);
      let begin = 0;
      const slices = sizes.map((size) => {
        begin += size;
        return x.slice(axis, begin - size, begin);
      });
      const differ = await differing(named(parts), named(slices));
      return differ.length === 0 && parts.every((part, i) => part.shape[axis] === sizes[i]);
    }),
    { numRuns: 100 },
  );
  const x = Tensor.zeros([4]);
  const [first] = split(x, 0, [2, 2]) as [Tensor, Tensor];
  x.write([1, 2, 3, 4]);
  t.same(await first.data(), [1, 2], "views of the same memory");
});

t.test("the gradient is that of slices, zeros for what is not used", async (t) => {
  await fc.assert(
    fc.asyncProperty(cases, async ({ shape, axis, sizes, used }) => {
      const gradients = await Promise.all(
        [true, false].map(async (isSplit) => {
          const x = Tensor.normal(shape, { seed: 1 });
          using tape = new Tape();
          tape.watch(x);
          let begin = 0;
          const parts = isSplit
            ? split(x, axis, sizes)
            : sizes.map((size) => {
                begin += size;
                return x.slice(axis, begin - size, begin);
              });
          const joined = concatenate(
            [...parts.filter((_, i) => used[i]), x].map((part) => part.contiguous()),
            axis,
          );
          const [dx] = tape.backward(joined, Tensor.normal(joined.shape, { seed: 2 }), [x]);
          return dx as Tensor;
        }),
      );
      const [a, b] = gradients as [Tensor, Tensor];
      return (await differing({ a }, { a: b })).length === 0;
    }),
    { numRuns: 100 },
  );
  t.pass();
});

t.test("what is refused", async (t) => {
  const x = Tensor.zeros([2, 6]);
  const gone = Tensor.zeros([2]);
  gone.dispose();
  refuses(t, [
    [() => split(x, 1, [2, 3]), "ERR_SHAPE", "split: sizes are [2, 3], expected 6 together (axis 1)"],
    [() => split(x, 1, [7, -1]), "ERR_SHAPE", /sizes are/],
    [() => split(x, 1, [2.5, 3.5]), "ERR_SHAPE", /sizes are/],
    [() => split(x, 2, [2]), "ERR_SHAPE", "split: axis is 2, expected 0 to 1"],
    [() => split(x, -1, [2]), "ERR_SHAPE", /axis is -1/],
    [() => split(x, 1, []), "ERR_OPTION", "split: sizes is empty, expected one at least"],
    [() => split(x, 1, 6 as never), "ERR_OPTION", /sizes is number, expected an array of sizes/],
    [() => split([] as never, 0, [1]), "ERR_OPTION", "split: x is an array, expected a Tensor"],
    [() => split(gone, 0, [2]), "ERR_DISPOSED", /disposed/],
  ]);
});

t.test("of q, k and v in one tensor attention makes one gradient: nothing puts it together", async (t) => {
  const x = Tensor.normal([2, 9, 8, 16]);
  const dout = Tensor.normal([2, 9, 4, 16], { seed: 1 });
  const pass = (partsOf: (x: Tensor) => Tensor[]) => {
    using tape = new Tape();
    tape.watch(x);
    const [q, k, v] = partsOf(x) as [Tensor, Tensor, Tensor];
    const out = attention(q, k, v, { causal: true });
    let gradients: Tensor[] = [];
    const calls = callsOf(["copy"], () => {
      gradients = tape.backward(out, dout, [x]);
    });
    return { dx: gradients[0] as Tensor, calls };
  };
  const packed = pass((x) => split(x, 2, [4, 2, 2]));
  t.strictSame(packed.calls, []);
  const apart = pass((x) => split(x, 2, [4, 2, 2]).map((part) => part.to("float32")));
  t.strictSame(await differing({ dx: packed.dx }, { dx: apart.dx }), []);
});
