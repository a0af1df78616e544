// Work in tiles of rows: the same results, whatever the tiles are, from the memory of one.
import fc from "fast-check";
import { Device, type DType, gelu, linear, rmsNorm, Scope, Tape, Tensor, tiled } from "longseq";
import t from "tap";
import { differing } from "./support/bits.ts";
import { bounds, type FloatType, floatTypes, relativeError } from "./support/compare.ts";
import { inside } from "./support/layouts.ts";
import { waitForQueue } from "./support/queue.ts";
import { refuses } from "./support/refusals.ts";

const [columns, hidden, out] = [12, 40, 7];
const mlp = (x: Tensor, norm: Tensor, up: Tensor, bias: Tensor, down: Tensor) =>
  linear(gelu(linear(rmsNorm(x, norm), up, bias)), down);

type Shared = [norm: Tensor, up: Tensor, bias: Tensor, down: Tensor];
function parameters(dtype: FloatType, device = Device.default): Shared {
  const normal = (shape: number[], seed: number, std: number) =>
    Tensor.normal(shape, { seed, std, dtype, device });
  return [
    normal([columns], 1, 1),
    normal([hidden, columns], 2, 0.3),
    normal([hidden], 3, 0.3),
    normal([out, hidden], 4, 0.3),
  ];
}

/** Of the result and x, and of the parameters. */
function run(work: (x: Tensor, ...shared: Shared) => Tensor, x: Tensor, shared: Shared) {
  using tape = new Tape();
  const own = x.permute(...x.shape.keys());
  tape.watch(own, ...shared);
  const y = work(own, ...shared);
  const dy = Tensor.normal(y.shape, { seed: 5, dtype: y.dtype, device: y.device });
  const [dx, dnorm, dup, dbias, ddown] = tape.backward(y, dy, [own, ...shared]) as [
    Tensor,
    Tensor,
    Tensor,
    Tensor,
    Tensor,
  ];
  return { y, dx, dnorm, dup, dbias, ddown };
}

const cases = fc.record({
  leading: fc.array(fc.integer({ min: 1, max: 3 }), { maxLength: 2 }),
  size: fc.integer({ min: 0, max: 30 }),
  tiles: fc.oneof(fc.integer({ min: 1, max: 40 }), fc.record({ rows: fc.integer({ min: 1, max: 40 }) })),
  dtype: fc.constantFrom<FloatType>(...floatTypes),
  isInside: fc.boolean(),
});

t.test("any rows and tiles", async (t) => {
  await fc.assert(
    fc.asyncProperty(cases, async ({ leading, size, tiles, dtype, isInside }) => {
      const dense = Tensor.normal([...leading, size, columns], { seed: 6, dtype });
      const x = isInside ? await inside(dense) : dense;
      const expected = run(mlp, x, parameters(dtype));
      const made = run((rows, ...shared) => tiled(mlp, rows, tiles, ...shared), x, parameters(dtype));
      for (const name of Object.keys(expected) as (keyof typeof expected)[]) {
        const [got, like] = [made[name], expected[name]];
        t.ok(got.shape.join() === like.shape.join() && got.dtype === like.dtype);
        const error = relativeError(await got.data(), await like.data());
        t.ok(error < bounds[dtype].gradient, `${name} of ${leading}, ${size}: ${error}`);
      }
    }),
    { numRuns: 40 },
  );
});

t.test("how work is called", async (t) => {
  const sizesOf = (size: number, tiles: number | { rows: number }) => {
    const sizes: number[] = [];
    const work = (rows: Tensor) => {
      t.ok(rows.isContiguous);
      sizes.push(rows.shape[1] ?? -1);
      return rows.reshape(rows.shape);
    };
    const x = Tensor.normal([2, size, 3], { seed: size });
    const y = tiled(work, x, tiles);
    return { sizes, x, y };
  };
  for (const [size, tiles, expected] of [
    [10, 3, [3, 3, 4]],
    [10, { rows: 4 }, [4, 4, 2]],
    [2, 5, [1, 1]],
    [10, 1, [10]],
    [10, { rows: 100 }, [10]],
    [0, 4, [0]],
    [0, { rows: 4 }, [0]],
  ] as const) {
    const { sizes, x, y } = sizesOf(size, tiles);
    t.strictSame(sizes, expected);
    t.strictSame(await differing({ y }, { y: x }), []);
  }
});

t.test("parameters' gradients are summed in float32 and rounded once", async (t) => {
  const dtype: DType = "bfloat16";
  const x = Tensor.normal([1, 512, columns], { seed: 1, dtype });
  const weight = Tensor.normal([out, columns], { seed: 2, dtype });
  const dy = Tensor.normal([1, 512, out], { seed: 3, mean: 1, dtype });
  const gradient = async (work: (rows: Tensor, matrix: Tensor) => Tensor) => {
    using tape = new Tape();
    tape.watch(weight);
    const [made] = tape.backward(work(x, weight), dy, [weight]) as [Tensor];
    return made.data();
  };
  const exact = await gradient((rows, matrix) => linear(rows, matrix));
  const inTiles = await gradient((rows, matrix) => tiled((a, b) => linear(a, b), rows, 64, matrix));
  // A tile's own gradient is rounded, and the sum once more.
  const error = relativeError(inTiles, exact);
  t.ok(error < 2 ** -8, `${error}`);
});

t.test("what is not used, and a part that has no gradient, get zeros", async (t) => {
  const x = Tensor.normal([1, 6, 4], { seed: 1 });
  const [weight, unused] = [Tensor.normal([4, 4], { seed: 2 }), Tensor.normal([4, 4], { seed: 3 })];
  using tape = new Tape();
  tape.watch(x, unused);
  let tile = 0;
  const work = (rows: Tensor, matrix: Tensor, _: Tensor) =>
    tile++ % 3 === 1 ? Tensor.zeros(rows.shape) : linear(rows, matrix);
  const y = tiled(work, x, 3, weight, unused);
  const found = tape.backward(y, Tensor.normal(y.shape, { seed: 4 }), [x, unused]);
  const [dx, dunused] = (await Promise.all(found.map((tensor) => tensor.data()))) as [
    Float32Array,
    Float32Array,
  ];
  t.strictSame(
    Array.from(dx, (value) => value === 0),
    Array.from({ length: 24 }, (_, i) => Math.floor(i / 8) === 1),
  );
  t.ok(dunused.every((value) => value === 0));
});

t.test("the memory is that of a tile", async (t) => {
  const [rows, width, inner] = [1024, 16, 512];
  const measure = async (tiles: number) => {
    using device = new Device();
    using scope = new Scope();
    const normal = (shape: number[]) => Tensor.normal(shape, { device, std: 0.1 });
    const [x, up, down, dy] = [
      normal([1, rows, width]),
      normal([inner, width]),
      normal([width, inner]),
      normal([1, rows, width]),
    ];
    const work = (part: Tensor, a: Tensor, b: Tensor) => {
      waitForQueue(device);
      return linear(gelu(linear(part, a)), b);
    };
    using tape = new Tape();
    tape.watch(x, up, down);
    await device.synchronize();
    device.resetPeak();
    const before = device.memory().liveBytes;
    const y = tiled(work, x, tiles, up, down);
    await device.synchronize();
    const kept = device.memory().liveBytes - before;
    Scope.run(() => void tape.backward(y, dy, [x, up, down]));
    await device.synchronize();
    const { peakBytes } = device.memory();
    scope.dispose();
    return { kept, peak: peakBytes - before };
  };
  const [one, eight] = [await measure(1), await measure(8)];
  t.ok(eight.kept <= rows * width * 4 * 1.2, `${eight.kept} bytes kept: the result`);
  t.ok(one.peak > 3 * eight.peak, `${eight.peak} bytes at most, ${one.peak} in one tile`);
});

t.test("nothing is left behind, and the operands may be disposed", async (t) => {
  using device = new Device();
  const count = async () => {
    await device.synchronize();
    return device.memory().tensors;
  };
  const shared = parameters("bfloat16", device);
  const before = await count();
  for (const throwsIn of [0, 2, 5]) {
    let calls = 0;
    const work = (rows: Tensor, ...own: Shared) => {
      if (++calls === throwsIn) throw new Error("no more");
      return mlp(rows, ...own);
    };
    const attempt = () =>
      Scope.run(() => {
        using tape = new Tape();
        const x = Tensor.normal([2, 9, columns], { dtype: "bfloat16", device });
        tape.watch(x, ...shared);
        const y = tiled(work, x, 3, ...shared);
        x.dispose();
        tape.backward(y, Tensor.normal(y.shape, { dtype: "bfloat16", device }), [x, ...shared]);
      });
    if (throwsIn === 0) attempt();
    else t.throws(attempt, { message: "no more" });
    t.equal(await count(), before);
  }
});

t.test("refusals", async (t) => {
  const x = Tensor.normal([1, 6, 4]);
  const gone = Tensor.zeros([1]);
  gone.dispose();
  const same = (rows: Tensor) => rows;
  let tile = 0;
  using other = new Device();
  const inTurns = (first: (rows: Tensor) => Tensor, second: (rows: Tensor) => Tensor) => (rows: Tensor) =>
    tile++ % 2 === 0 ? first(rows) : second(rows);
  refuses(t, [
    [() => tiled(1 as never, x, 2), "ERR_OPTION", "tiled: work is number, expected a function"],
    [() => tiled(same, 1 as never, 2), "ERR_OPTION", "tiled: x is number, expected a Tensor"],
    [() => tiled(same, gone, 2), "ERR_DISPOSED", "tiled: x was disposed"],
    [
      () => tiled((rows, _) => rows, x, 2, null as never),
      "ERR_OPTION",
      "tiled: shared tensor 0 is null, expected a Tensor",
    ],
    [() => tiled(same, Tensor.zeros([4]), 2), "ERR_SHAPE", "tiled: x has the shape [4], expected [.., S, C]"],
    [() => tiled(same, x, 0), "ERR_OPTION", "tiled: tiles is 0, expected an integer of 1 or more"],
    [() => tiled(same, x, 1.5), "ERR_OPTION", "tiled: tiles is 1.5, expected an integer of 1 or more"],
    [
      () => tiled(same, x, { rows: 0 }),
      "ERR_OPTION",
      "tiled: tiles.rows is 0, expected an integer of 1 or more",
    ],
    [
      () => tiled(same, x, {} as never),
      "ERR_OPTION",
      "tiled: tiles.rows is undefined, expected an integer of 1 or more",
    ],
    [
      () => tiled(same, x, null as never),
      "ERR_OPTION",
      "tiled: tiles is null, expected a number or { rows }",
    ],
    [
      () => tiled((() => null) as never, x, 2),
      "ERR_OPTION",
      "tiled: the result of work is null, expected a Tensor",
    ],
    [
      () => tiled((rows) => rows.slice(1, 0, 1), x, 2),
      "ERR_SHAPE",
      "tiled: the result of work has the shape [1, 1, 4], expected [1, 3, 4]",
    ],
    [
      () =>
        tiled(
          inTurns(same, (rows) => rows.slice(2, 0, 1)),
          x,
          2,
        ),
      "ERR_SHAPE",
      "tiled: the result of work has the shape [1, 3, 1], expected [1, 3, 4]",
    ],
    [
      () =>
        tiled(
          inTurns(same, (rows) => rows.to("bfloat16")),
          x,
          2,
        ),
      "ERR_DTYPE",
      "tiled: the result of work is bfloat16, expected float32 (that of the first tile)",
    ],
    [
      () =>
        tiled(
          inTurns(same, (rows) => rows.toDevice(other)),
          x,
          2,
        ),
      "ERR_DEVICE",
      "tiled: the result of work is on another device than that of the first tile",
    ],
  ]);
  const weight = Tensor.zeros([4, 4]);
  using tape = new Tape();
  tape.watch(weight);
  refuses(t, [
    [
      () => tiled((rows) => linear(rows, weight), x, 2),
      "ERR_OPTION",
      "tiled: work uses a tensor that is on a tape, expected it to be an input",
    ],
  ]);
});
