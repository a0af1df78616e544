// Embedding against its definition: sizes, dtypes, places in memory, indices that are outside, how sums are made.
import fc from "fast-check";
import { embedding, embeddingBackward, Tape, Tensor } from "longseq";
import t from "tap";
import { differing } from "../support/bits.ts";
import { at, type FloatType, floatTypes, relativeError, unitRoundoff } from "../support/compare.ts";
import { inside } from "../support/layouts.ts";
import { layoutNames, layouts, leading, random, rowsOf, values, widths } from "../support/rows.ts";

const int32 = (list: readonly number[], shape: readonly number[] = [list.length]) =>
  Tensor.from(Int32Array.from(list), shape);

/** The gradient's definition, in float64, of the values as the dtype has them. */
function summed(indices: readonly number[], dy: Float64Array, rows: number, columns: number): Float64Array {
  const dtable = new Float64Array(rows * columns);
  for (const [row, values] of rowsOf(dy, columns, indices.length).entries()) {
    const v = indices[row] ?? -1;
    if (v < 0 || v >= rows) continue;
    for (const [c, value] of values.entries()) dtable[v * columns + c] = at(dtable, v * columns + c) + value;
  }
  return dtable;
}

const cases = fc.record({
  shape: leading,
  columns: widths,
  rows: fc.constantFrom(1, 3, 5, 255, 256, 300, 70000),
  spread: fc.constantFrom(2, 5, 70001),
  seed: fc.nat(2 ** 31),
  dtype: fc.constantFrom<FloatType>(...floatTypes),
  layout: layoutNames,
  isIndicesInside: fc.boolean(),
});

t.test("any sizes, dtypes and places", async (t) => {
  await fc.assert(
    fc.asyncProperty(cases, async (given) => {
      const { shape, seed, dtype } = given;
      const columns = given.rows > 1000 ? Math.min(given.columns, 12) : given.columns;
      const size = shape.reduce((a, b) => a * b, 1);
      // From -1 to behind the last row.
      const indices = Array.from(
        { length: size },
        (_, i) => ((((i + 1) * 2654435761 + seed) % 2 ** 31) % Math.min(given.spread, given.rows + 2)) - 1,
      );
      const table = await layouts[given.layout](random([given.rows, columns], seed, dtype));
      const tensor = int32(indices, shape);
      const placed = given.isIndicesInside && shape.length > 0 ? await insideInt32(tensor) : tensor;
      const y = embedding(table, placed);
      t.strictSame(y.shape, [...shape, columns]);
      const [found, whole] = [await values(y), rowsOf(await values(table), columns, given.rows)];
      for (const [row, got] of rowsOf(found, columns, size).entries()) {
        const expected = whole[indices[row] ?? -1];
        t.ok(
          got.every((value, c) => Object.is(value, expected ? at(expected, c) : Number.NaN)),
          `row ${row} of ${given.rows} x ${columns}`,
        );
      }
      const dy = await layouts[given.layout](random(y.shape, seed + 1, dtype));
      const dtable = embeddingBackward({ table, indices: placed, dy });
      t.ok(dtable.dtype === dtype && dtable.shape.join() === table.shape.join());
      const expected = summed(indices, await values(dy), given.rows, columns);
      // Sums of up to 125 rows in float32, rounded once more where the dtype is narrower.
      const bound = 64 * unitRoundoff.float32 + (dtype === "float32" ? 0 : unitRoundoff[dtype]);
      t.ok(relativeError(await values(dtable), expected) <= bound);
    }),
    { numRuns: 40 },
  );
});

/** `inside` of floats, whose bits a Uint32Array is taken for. */
async function insideInt32(tensor: Tensor): Promise<Tensor> {
  const view = await inside(Tensor.zeros(tensor.shape, { dtype: "int32" }));
  view.write((await tensor.data()) as Int32Array);
  return view;
}

t.test("a sum has its rows in ascending order, in parts of 64", async (t) => {
  const [count, columns] = [1000, 37];
  const indices = Array.from({ length: count }, (_, i) => [1, 3, 1, 1, -1][i % 5] ?? 0);
  const dy = random([count, columns], 1, "bfloat16");
  const rows = rowsOf(await values(dy), columns, count);
  const expected = new Float32Array(4 * columns);
  for (let v = 0; v < 4; v++) {
    const named = rows.filter((_, row) => indices[row] === v);
    for (let c = 0; c < columns; c++) {
      let total = 0;
      for (let first = 0; first < named.length; first += 64) {
        const part = named.slice(first, first + 64).map((row) => at(row, c));
        total = Math.fround(total + part.reduce((a, b) => Math.fround(a + b), 0));
      }
      expected[v * columns + c] = total;
    }
  }
  const table = Tensor.zeros([4, columns], { dtype: "bfloat16" });
  const dtable = Tensor.zeros([4, columns]);
  embeddingBackward({ table, indices: int32(indices), dy, dtable });
  t.strictSame(await dtable.data(), expected);
});

t.test("one row that is named by all has few roundings behind each other", async (t) => {
  const count = 20000;
  const dy = Tensor.normal([count, 8], { mean: 1, seed: 1 });
  const table = Tensor.zeros([1, 8]);
  const indices = Tensor.zeros([count], { dtype: "int32" });
  const expected = summed(Array(count).fill(0), await values(dy), 1, 8);
  const error = relativeError(await values(embeddingBackward({ table, indices, dy })), expected);
  t.ok(error < 2e-6, `${error}`);
});

t.test("many rows, of indices of up to three bytes", async (t) => {
  for (const rows of [4, 1000, 70000]) {
    const count = 5000;
    const indices = Array.from({ length: count }, (_, i) => (i * 40503) % rows);
    const dy = random([count, 4], rows, "float32");
    const dtable = embeddingBackward({ table: Tensor.zeros([rows, 4]), indices: int32(indices), dy });
    t.ok(relativeError(await values(dtable), summed(indices, await values(dy), rows, 4)) < 1e-6);
  }
});

t.test("on a tape", async (t) => {
  for (const dtype of floatTypes) {
    const table = random([7, 24], 1, dtype);
    const indices = int32([6, 0, 6, -1, 7, 3], [2, 3]);
    const dy = random([2, 3, 24], 2, dtype);
    const expected = embeddingBackward({ table, indices, dy });
    using tape = new Tape();
    tape.watch(table);
    const y = embedding(table, indices);
    indices.dispose();
    const [dtable] = tape.backward(y, dy, [table]) as [Tensor];
    t.strictSame(await differing({ dtable }, { dtable: expected }), []);
  }
});

t.test("a gradient that is summed over calls", async (t) => {
  const table = random([5, 16], 1, "bfloat16");
  const dtable = Tensor.from(new Float32Array(5 * 16).fill(0.25), [5, 16]);
  const total = new Float64Array(5 * 16).fill(0.25);
  for (const seed of [1, 2, 3]) {
    const list = [seed, 0, 4, seed];
    const dy = random([4, 16], seed, "bfloat16");
    using tape = new Tape();
    tape.watch(table);
    const y = embedding(table, int32(list), { dtable });
    const [zeros] = tape.backward(y, dy, [table]) as [Tensor];
    t.ok((await zeros.data()).every((value) => value === 0));
    for (const [i, value] of summed(list, await values(dy), 5, 16).entries()) total[i] = at(total, i) + value;
  }
  t.ok(relativeError(await values(dtable), total) < 1e-6);
  const sum = Tensor.from([1, 2], [2, 1], { dtype: "bfloat16" });
  const [one, indices] = [Tensor.zeros([2, 1], { dtype: "bfloat16" }), int32([1])];
  const dy = Tensor.from([4], [1, 1], { dtype: "bfloat16" });
  t.equal(embeddingBackward({ table: one, indices, dy, dtable: sum }), sum);
  t.strictSame(await sum.data(), Float32Array.of(1, 6));
});

t.test("dy of any strides, and of another dtype", async (t) => {
  const table = Tensor.zeros([3, 4], { dtype: "bfloat16" });
  const indices = int32([2, 2, 0]);
  const dy = random([4, 3], 1, "float32").permute(1, 0);
  const dtable = embeddingBackward({ table, indices, dy });
  t.equal(dtable.dtype, "bfloat16");
  const expected = summed([2, 2, 0], await values(dy), 3, 4);
  t.ok(relativeError(await values(dtable), expected) < 2 ** -7);
});

t.test("nothing", async (t) => {
  for (const [rows, columns, shape] of [
    [0, 4, [3]],
    [3, 0, [3]],
    [3, 4, [0]],
    [3, 4, [2, 0]],
    [3, 4, []],
    [0, 0, [0]],
  ] as const) {
    const table = Tensor.normal([rows, columns]);
    const indices = Tensor.zeros(shape, { dtype: "int32" });
    const y = embedding(table, indices);
    const found = await y.data();
    t.equal(found.length, y.size);
    t.ok(found.every((value) => Number.isNaN(value) === (rows === 0)));
    const dtable = embeddingBackward({ table, indices, dy: Tensor.normal(y.shape, { seed: 1 }) });
    t.equal((await dtable.data()).filter((value) => value !== 0).length, y.size > 0 && rows > 0 ? 4 : 0);
  }
});
