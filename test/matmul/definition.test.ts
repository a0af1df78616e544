// The matrix product against its definition: every dtype, order of the axes, place in memory, and odd sizes.
import fc from "fast-check";
import { linear, type MatmulOptions, matmul, Tensor } from "longseq";
import t from "tap";
import { at, bounds, type FloatType, floatTypes, relativeError } from "../support/compare.ts";
import { inside } from "../support/layouts.ts";
import { type Matrix, matrixOf, product } from "../support/product.ts";

const orders = [false, true];

function operands(
  [M, K, N]: readonly [number, number, number],
  { transposeA = false, transposeB = false }: MatmulOptions,
  dtype: FloatType,
): [a: Tensor, b: Tensor] {
  return [
    Tensor.normal(transposeA ? [K, M] : [M, K], { seed: 1, dtype }),
    Tensor.normal(transposeB ? [N, K] : [K, N], { seed: 2, dtype }),
  ];
}

async function defined(a: Tensor, b: Tensor, options: MatmulOptions, before?: Tensor): Promise<Matrix> {
  const { transposeA, transposeB, bias } = options;
  return product(
    await matrixOf(a, transposeA),
    await matrixOf(b, transposeB),
    await bias?.data(),
    await before?.data(),
  );
}

t.test("every order of the axes, dtype and size", async () => {
  const size = fc.integer({ min: 1, max: 130 });
  const problem = fc.record({
    sizes: fc.tuple(size, size, size),
    dtype: fc.constantFrom(...floatTypes),
    transposeA: fc.boolean(),
    transposeB: fc.boolean(),
    hasBias: fc.boolean(),
    isWide: fc.boolean(),
    accumulate: fc.boolean(),
  });
  await fc.assert(
    fc.asyncProperty(
      problem,
      async ({ sizes, dtype, transposeA, transposeB, hasBias, isWide, accumulate }) => {
        const [M, , N] = sizes;
        const order = { transposeA, transposeB };
        const [a, b] = operands(sizes, order, dtype);
        const options: MatmulOptions = {
          ...order,
          ...(hasBias && { bias: Tensor.normal([N], { seed: 3, dtype }) }),
        };
        const outDtype: FloatType = isWide ? "float32" : dtype;
        const out = accumulate ? Tensor.normal([M, N], { seed: 4, dtype: outDtype }) : undefined;
        const expected = await defined(a, b, options, out);
        const y = matmul(a, b, {
          ...options,
          ...(out ? { out, accumulate } : isWide && { outDtype: "float32" as const }),
        });
        const error = relativeError(await y.data(), expected.values);
        return y.dtype === outDtype && error < bounds[outDtype].result;
      },
    ),
    { numRuns: 60 },
  );
});

t.test("sizes at the edges of tiles, steps and blocks", async (t) => {
  const sizes = [
    [1, 1, 1],
    [12, 256, 32],
    [13, 257, 33],
    [193, 300, 513],
    [1, 2049, 40],
    [7, 4100, 3],
    [2050, 3, 5],
    [3, 5, 2051],
  ] as const;
  for (const size of sizes) {
    for (const dtype of floatTypes) {
      const [a, b] = operands(size, {}, dtype);
      const y = matmul(a, b);
      t.equal(y.dtype, dtype);
      const error = relativeError(await y.data(), (await defined(a, b, {})).values);
      t.ok(error < bounds[dtype].result, `${size}, ${dtype}: ${error}`);
    }
  }
});

t.test("a depth of more than a block is summed in float32, and rounded once", async (t) => {
  const [M, K, N] = [5, 5000, 6];
  for (const dtype of floatTypes) {
    const [a, b] = [Tensor.normal([K, M], { seed: 1, dtype }), Tensor.normal([K, N], { seed: 2, dtype })];
    const out = Tensor.normal([M, N], { seed: 3, dtype });
    const bias = Tensor.normal([N], { seed: 4, dtype });
    const expected = await defined(a, b, { transposeA: true, bias }, out);
    const wide = matmul(a, b, { transposeA: true, bias, outDtype: "float32" });
    const y = matmul(a, b, { transposeA: true, bias, out, accumulate: true });
    t.ok(relativeError(await y.data(), expected.values) < bounds[dtype].result, dtype);
    const alone = await defined(a, b, { transposeA: true, bias });
    t.ok(relativeError(await wide.data(), alone.values) < bounds.float32.result, `${dtype} to float32`);
  }
});

t.test("operands and results anywhere in memory", async (t) => {
  const size = [29, 45, 37] as const;
  const columnsFirst = async (x: Tensor) => x.permute(1, 0).contiguous().permute(1, 0);
  const apart = async (x: Tensor) => {
    const [rows = 0, columns = 0] = x.shape;
    const view = Tensor.zeros([rows, columns, 3], { dtype: x.dtype }).select(2, 1);
    view.write(await x.data());
    return view;
  };
  const places = { inside, columnsFirst, apart };
  for (const dtype of floatTypes) {
    for (const transposeA of orders) {
      for (const transposeB of orders) {
        const [a, b] = operands(size, { transposeA, transposeB }, dtype);
        const bias = Tensor.normal([size[2]], { seed: 3, dtype });
        const expected = await defined(a, b, { transposeA, transposeB, bias });
        for (const [name, place] of Object.entries(places)) {
          const options = { transposeA, transposeB, bias: await inside(bias) };
          const out = await inside(Tensor.zeros([size[0], size[2]], { dtype }));
          const y = matmul(await place(a), await place(b), { ...options, out });
          const error = relativeError(await y.data(), expected.values);
          t.ok(error < bounds[dtype].result, `${dtype} ${name} ${transposeA} ${transposeB}: ${error}`);
        }
      }
    }
  }
});

t.test("what lies around the result stays", async (t) => {
  for (const dtype of floatTypes) {
    const around = Tensor.from(new Float32Array(40 * 50).fill(7), [40, 50], { dtype });
    const [a, b] = operands([31, 9, 35], {}, dtype);
    matmul(a, b, { out: around.slice(0, 4, 35).slice(1, 6, 41) });
    const values = await around.data();
    const isInside = (i: number) => {
      const [row, column] = [Math.floor(i / 50), i % 50];
      return row >= 4 && row < 35 && column >= 6 && column < 41;
    };
    t.ok(
      values.every((value, i) => isInside(i) || value === 7),
      dtype,
    );
  }
});

t.test("leading axes", async (t) => {
  for (const dtype of floatTypes) {
    const [x, w] = [
      Tensor.normal([3, 4, 5, 18], { seed: 1, dtype }),
      Tensor.normal([18, 22], { seed: 2, dtype }),
    ];
    const y = matmul(x, w);
    t.strictSame(y.shape, [3, 4, 5, 22]);
    const expected = product(await matrixOf(x), await matrixOf(w));
    t.ok(relativeError(await y.data(), expected.values) < bounds[dtype].result, dtype);
    // Heads first in memory: rows at no one stride.
    const turned = x.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3);
    t.ok(relativeError(await matmul(turned, w).data(), expected.values) < bounds[dtype].result, dtype);
    const whole = Tensor.normal([6, 4, 20], { seed: 3, dtype });
    const part = whole.slice(0, 2, 5).slice(2, 1, 19);
    const ofPart = product(await matrixOf(part), await matrixOf(w));
    t.ok(relativeError(await matmul(part, w).data(), ofPart.values) < bounds[dtype].result, dtype);
  }
});

t.test("batches", async (t) => {
  const [B, M, K, N] = [5, 14, 20, 33];
  for (const dtype of floatTypes) {
    for (const transposeA of orders) {
      for (const transposeB of orders) {
        const a = Tensor.normal(transposeA ? [B, K, M] : [B, M, K], { seed: 1, dtype });
        const b = Tensor.normal(transposeB ? [B, N, K] : [B, K, N], { seed: 2, dtype });
        const bias = Tensor.normal([N], { seed: 3, dtype });
        const options = { transposeA, transposeB, bias };
        const y = matmul(a, b, options);
        t.strictSame(y.shape, [B, M, N]);
        for (let i = 0; i < B; i++) {
          const one = matmul(a.select(0, i), b.select(0, i), options);
          const expected = await defined(a.select(0, i), b.select(0, i), options);
          t.ok(relativeError(await one.data(), expected.values) < bounds[dtype].result);
          const error = relativeError(await y.select(0, i).data(), expected.values);
          t.ok(error < bounds[dtype].result, `${dtype}, entry ${i}: ${error}`);
        }
        const turned = a.permute(1, 0, 2).contiguous().permute(1, 0, 2);
        const out = Tensor.zeros([M, B, N], { dtype }).permute(1, 0, 2);
        const error = relativeError(await matmul(turned, b, { ...options, out }).data(), await y.data());
        t.ok(error < bounds[dtype].result, `${dtype}, entries beside each other: ${error}`);
      }
    }
  }
});

t.test("many small products", async (t) => {
  const [a, b] = [Tensor.normal([300, 3, 4], { seed: 1 }), Tensor.normal([300, 4, 5], { seed: 2 })];
  const [y, x, w] = [await matmul(a, b).data(), await a.data(), await b.data()];
  const expected = Float64Array.from({ length: 300 * 15 }, (_, i) => {
    const [entry, row, column] = [Math.floor(i / 15), Math.floor((i % 15) / 5), i % 5];
    let sum = 0;
    for (let k = 0; k < 4; k++) sum += at(x, entry * 12 + row * 4 + k) * at(w, entry * 20 + k * 5 + column);
    return sum;
  });
  t.ok(relativeError(y, expected) < 1e-6);
});

t.test("what is not finite stays in its row and column", async (t) => {
  for (const dtype of floatTypes) {
    const [a, b] = [new Float32Array(14 * 9).fill(1), new Float32Array(9 * 20).fill(1)];
    a[3 * 9 + 8] = Number.NaN;
    b[2 * 20 + 19] = Number.POSITIVE_INFINITY;
    const y = await matmul(Tensor.from(a, [14, 9], { dtype }), Tensor.from(b, [9, 20], { dtype })).data();
    const expected = Float32Array.from({ length: 14 * 20 }, (_, i) =>
      Math.floor(i / 20) === 3 ? Number.NaN : i % 20 === 19 ? Number.POSITIVE_INFINITY : 9,
    );
    t.strictSame(y, expected, dtype);
  }
});

t.test("empty matrices", async (t) => {
  const zeros = (...shape: number[]) => Tensor.zeros(shape);
  for (const [a, b] of [
    [zeros(0, 4), zeros(4, 3)],
    [zeros(3, 4), zeros(4, 0)],
    [zeros(0, 0), zeros(0, 0)],
  ] as const) {
    t.equal((await matmul(a, b).data()).length, 0);
  }
  t.strictSame(matmul(zeros(2, 0, 4), zeros(4, 3)).shape, [2, 0, 3]);
  t.strictSame(matmul(zeros(0, 2, 4), zeros(0, 4, 3)).shape, [0, 2, 3]);
  // No depth: a sum of nothing.
  const bias = Tensor.from([1, 2, 3], [3]);
  t.strictSame(await matmul(zeros(2, 0), zeros(0, 3)).data(), new Float32Array(6));
  t.strictSame(await matmul(zeros(2, 0), zeros(0, 3), { bias }).data(), Float32Array.of(1, 2, 3, 1, 2, 3));
  const out = Tensor.from([1, 1, 1, 2, 2, 2], [2, 3]);
  const given = { out, accumulate: true };
  t.strictSame(await matmul(zeros(2, 0), zeros(0, 3), given).data(), Float32Array.of(1, 1, 1, 2, 2, 2));
  t.strictSame(
    await matmul(zeros(2, 0), zeros(0, 3), { ...given, bias }).data(),
    Float32Array.of(2, 3, 4, 3, 4, 5),
  );
});

t.test("linear is a product with [out, in] weights", async (t) => {
  for (const dtype of floatTypes) {
    const [x, w, bias] = [
      Tensor.normal([2, 7, 30], { seed: 1, dtype }),
      Tensor.normal([50, 30], { seed: 2, dtype }),
      Tensor.normal([50], { seed: 3, dtype }),
    ];
    const y = linear(x, w, bias);
    t.strictSame(y.shape, [2, 7, 50]);
    const expected = product(await matrixOf(x), await matrixOf(w, true), await bias.data());
    t.ok(relativeError(await y.data(), expected.values) < bounds[dtype].result, dtype);
    const wide = linear(x, w, undefined, { outDtype: "float32" });
    t.strictSame(await wide.data(), await matmul(x, w, { transposeB: true, outDtype: "float32" }).data());
    t.strictSame(linear(x.select(0, 0).select(0, 0), w).shape, [50], "one row");
  }
});
