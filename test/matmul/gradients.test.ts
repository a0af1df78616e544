// The gradients of products against their definitions, and where they are summed.
import { linear, linearBackward, type MatmulOptions, matmul, Tape, Tensor } from "longseq";
import t from "tap";
import { differing } from "../support/bits.ts";
import { at, bounds, floatTypes, relativeError } from "../support/compare.ts";
import { type Matrix, matrixOf, product, transposed } from "../support/product.ts";

const rowsSummed = ({ rows, columns, values }: Matrix) =>
  Float64Array.from({ length: columns }, (_, c) => {
    let sum = 0;
    for (let r = 0; r < rows; r++) sum += at(values, r * columns + c);
    return sum;
  });

t.test("matmul, in every order of the axes", async (t) => {
  const [M, K, N] = [9, 14, 11];
  for (const dtype of floatTypes) {
    for (const transposeA of [false, true]) {
      for (const transposeB of [false, true]) {
        const a = Tensor.normal(transposeA ? [K, M] : [M, K], { seed: 1, dtype });
        const b = Tensor.normal(transposeB ? [N, K] : [K, N], { seed: 2, dtype });
        const bias = Tensor.normal([N], { seed: 3, dtype });
        const dy = Tensor.normal([M, N], { seed: 4, dtype });
        using tape = new Tape();
        tape.watch(a, b, bias);
        const y = matmul(a, b, { transposeA, transposeB, bias });
        const [da, db, dbias] = tape.backward(y, dy, [a, b, bias]) as [Tensor, Tensor, Tensor];
        const g = await matrixOf(dy);
        const ofA = product(g, transposed(await matrixOf(b, transposeB)));
        const ofB = product(transposed(await matrixOf(a, transposeA)), g);
        const bound = bounds[dtype].gradient;
        t.strictSame([da.shape, db.shape, da.dtype, db.dtype], [a.shape, b.shape, dtype, dtype]);
        t.ok(relativeError((await matrixOf(da, transposeA)).values, ofA.values) < bound, `da ${dtype}`);
        t.ok(relativeError((await matrixOf(db, transposeB)).values, ofB.values) < bound, `db ${dtype}`);
        t.ok(relativeError(await dbias.data(), rowsSummed(g)) < bound, `dbias ${dtype}`);
      }
    }
  }
});

t.test("batches and leading axes: the gradients are differences of the product", async (t) => {
  const cases: [a: number[], b: number[], options: MatmulOptions][] = [
    [[2, 3, 4], [4, 5], {}],
    [[2, 2, 3, 4], [5, 4], { transposeB: true }],
    [[2, 3, 4], [2, 4, 5], {}],
    [[2, 4, 3], [2, 5, 4], { transposeA: true, transposeB: true }],
    [[2, 4, 3], [2, 4, 5], { transposeA: true }],
  ];
  for (const [shapeOfA, shapeOfB, options] of cases) {
    const [a, b] = [Tensor.normal(shapeOfA, { seed: 1 }), Tensor.normal(shapeOfB, { seed: 2 })];
    const bias = Tensor.normal([5], { seed: 3 });
    using tape = new Tape();
    tape.watch(a, b, bias);
    const y = matmul(a, b, { ...options, bias });
    const dy = Tensor.normal(y.shape, { seed: 4 });
    const weights = await dy.data();
    const gradients = tape.backward(y, dy, [a, b, bias]);
    const inputs = [a, b, bias];
    for (const [which, input] of inputs.entries()) {
      const values = await input.data();
      const objective = async (i: number, by: number) => {
        const moved = inputs.map((tensor) => tensor) as [Tensor, Tensor, Tensor];
        moved[which] = Tensor.from(values.with(i, at(values, i) + by), input.shape);
        const out = await matmul(moved[0], moved[1], { ...options, bias: moved[2] }).data();
        return Array.from(out).reduce((sum, value, j) => sum + value * at(weights, j), 0);
      };
      const expected: number[] = [];
      // Linear in each: a step of any size is exact but for rounding.
      for (let i = 0; i < values.length; i++) {
        expected.push(((await objective(i, 1)) - (await objective(i, -1))) / 2);
      }
      const error = relativeError((await gradients[which]?.data()) ?? [], expected);
      t.ok(error < 1e-5, `${shapeOfA} x ${shapeOfB}, input ${which}: ${error}`);
    }
  }
});

t.test("linear: the tape's gradients are linearBackward's, and right", async (t) => {
  for (const dtype of floatTypes) {
    const [x, weight, bias] = [
      Tensor.normal([3, 11, 20], { seed: 1, dtype }),
      Tensor.normal([17, 20], { seed: 2, dtype }),
      Tensor.normal([17], { seed: 3, dtype }),
    ];
    const dy = Tensor.normal([3, 11, 17], { seed: 4, dtype });
    using tape = new Tape();
    tape.watch(x, weight, bias);
    const y = linear(x, weight, bias);
    const [dx, dweight, dbias] = tape.backward(y, dy, [x, weight, bias]) as [Tensor, Tensor, Tensor];
    const made = linearBackward({ x, weight, dy }, { hasBias: true });
    t.strictSame(
      await differing({ dx, dweight, dbias }, { ...made, dbias: made.dbias as Tensor }),
      [],
      "the same bits",
    );
    const g = await matrixOf(dy);
    const expected = {
      dx: product(g, await matrixOf(weight)).values,
      dweight: product(transposed(g), await matrixOf(x)).values,
      dbias: rowsSummed(g),
    };
    for (const [name, value] of Object.entries({ dx, dweight, dbias })) {
      const error = relativeError(await value.data(), expected[name as keyof typeof expected]);
      t.ok(error < bounds[dtype].gradient, `${name}, ${dtype}: ${error}`);
    }
    t.equal(linearBackward({ x, weight, dy }).dbias, null);
  }
});

t.test("gradients are summed in float32, over calls", async (t) => {
  for (const dtype of floatTypes) {
    const [weight, bias] = [
      Tensor.normal([10, 12], { seed: 1, dtype }),
      Tensor.normal([10], { seed: 2, dtype }),
    ];
    const [dweight, dbias] = [Tensor.normal([10, 12], { seed: 3 }), Tensor.normal([10], { seed: 4 })];
    const [wanted, wantedBias] = [
      Float64Array.from(await dweight.data()),
      Float64Array.from(await dbias.data()),
    ];
    for (const seed of [5, 6, 7]) {
      const x = Tensor.normal([21, 12], { seed, dtype });
      const dy = Tensor.normal([21, 10], { seed: seed + 10, dtype });
      using tape = new Tape();
      tape.watch(x, weight, bias);
      const y = linear(x, weight, bias, { dweight, dbias });
      const [dx, none] = tape.backward(y, dy, [x, weight]) as [Tensor, Tensor];
      t.ok(
        (await none.data()).every((value) => value === 0),
        "what went elsewhere is not returned too",
      );
      t.strictSame(await dx.bits(), await linearBackward({ x, weight, dy }).dx.bits());
      const g = await matrixOf(dy);
      const more = product(transposed(g), await matrixOf(x)).values;
      for (const i of wanted.keys()) wanted[i] = at(wanted, i) + at(more, i);
      for (const [i, value] of rowsSummed(g).entries()) wantedBias[i] = at(wantedBias, i) + value;
    }
    t.ok(relativeError(await dweight.data(), wanted) < bounds.float32.result, `dweight, ${dtype}`);
    t.ok(relativeError(await dbias.data(), wantedBias) < bounds.float32.result, `dbias, ${dtype}`);
  }
});

t.test("a wide result's gradient is float32", async (t) => {
  const [x, weight] = [
    Tensor.normal([5, 8], { seed: 1, dtype: "bfloat16" }),
    Tensor.normal([6, 8], { seed: 2, dtype: "bfloat16" }),
  ];
  const dy = Tensor.normal([5, 6], { seed: 3 });
  for (const run of [
    () => linear(x, weight, undefined, { outDtype: "float32" }),
    () => matmul(x, weight, { transposeB: true, outDtype: "float32" }),
  ]) {
    using tape = new Tape();
    tape.watch(x, weight);
    const [dx, dweight] = tape.backward(run(), dy, [x, weight]) as [Tensor, Tensor];
    t.strictSame([dx.dtype, dweight.dtype], ["bfloat16", "bfloat16"]);
    const expected = linearBackward({ x, weight, dy: dy.to("bfloat16") });
    t.strictSame(await differing({ dx, dweight }, { dx: expected.dx, dweight: expected.dweight }), []);
  }
});

t.test("sums over many rows and odd columns, from anywhere in memory", async (t) => {
  for (const dtype of floatTypes) {
    for (const [rows, columns] of [
      [1, 1],
      [700, 5],
      [3000, 130],
      [257, 1100],
    ] as const) {
      const dy = Tensor.normal([rows, columns + 3], { seed: 1, mean: 1, dtype }).slice(1, 2, columns + 2);
      const [x, weight] = [Tensor.zeros([rows, 2], { dtype }), Tensor.zeros([columns, 2], { dtype })];
      const dbias = Tensor.zeros([columns]);
      linearBackward({ x, weight, dy, dbias });
      const error = relativeError(await dbias.data(), rowsSummed(await matrixOf(dy)));
      t.ok(error < 1e-6, `${rows} x ${columns}, ${dtype}: ${error}`);
      const turned = dy.permute(1, 0).contiguous().permute(1, 0);
      const again = linearBackward({ x, weight, dy: turned }, { hasBias: true }).dbias as Tensor;
      t.ok(relativeError(await again.data(), await dbias.data()) < bounds[dtype].gradient);
    }
  }
});

t.test("nothing in, nothing out", async (t) => {
  const [x, weight, dy] = [Tensor.zeros([0, 3]), Tensor.zeros([2, 3]), Tensor.zeros([0, 2])];
  const { dx, dweight, dbias } = linearBackward({ x, weight, dy }, { hasBias: true });
  t.strictSame(
    [dx.shape, dweight.shape],
    [
      [0, 3],
      [2, 3],
    ],
  );
  t.strictSame(await dweight.data(), new Float32Array(6));
  t.strictSame(await dbias?.data(), new Float32Array(2));
  const sum = Tensor.from([1, 2], [2]);
  linearBackward({ x, weight, dy, dbias: sum });
  t.strictSame(await sum.data(), Float32Array.of(1, 2));
});
