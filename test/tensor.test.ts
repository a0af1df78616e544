import fc from "fast-check";
import { attention, Device, type DType, Tensor, type TensorValues } from "longseq";
import t from "tap";
import { at } from "./support/compare.ts";

const { POSITIVE_INFINITY: infinity, NaN: nan } = Number;

t.test("values in and out", async (t) => {
  const made: [given: TensorValues, dtype: DType | undefined, gives: DType, data: ArrayLike<number>][] = [
    [[1.5, -2, 3], undefined, "float32", Float32Array.of(1.5, -2, 3)],
    [Float32Array.of(0.1, -0, nan), undefined, "float32", Float32Array.of(0.1, -0, nan)],
    [Float64Array.of(0.1, 1e300, 1), undefined, "float32", Float32Array.of(0.1, infinity, 1)],
    [Int32Array.of(-7, 0, 2 ** 31 - 1), undefined, "int32", Int32Array.of(-7, 0, 2 ** 31 - 1)],
    [Uint8Array.of(0, 128, 255), undefined, "uint8", Uint8Array.of(0, 128, 255)],
    [[1, 2, 3], "int32", "int32", Int32Array.of(1, 2, 3)],
    [[1, 2, 3], "uint8", "uint8", Uint8Array.of(1, 2, 3)],
    [[1, 1 + 2 ** -8, 1 + 3 * 2 ** -8], "bfloat16", "bfloat16", Float32Array.of(1, 1, 1 + 2 ** -6)],
    [[1, 1 + 2 ** -11, 1 + 3 * 2 ** -11], "float16", "float16", Float32Array.of(1, 1, 1 + 2 ** -9)],
    [Uint16Array.of(0x3f80, 0xbf00, 0x7f80), "bfloat16", "bfloat16", Float32Array.of(1, -0.5, infinity)],
    [Uint16Array.of(0x3c00, 0xb800, 0x7c00), "float16", "float16", Float32Array.of(1, -0.5, infinity)],
    [Int32Array.of(1, -300, 70_000), "float16", "float16", Float32Array.of(1, -300, infinity)],
    [Int32Array.of(256, -1, 7), "uint8", "uint8", Uint8Array.of(255, 0, 7)],
    [Uint8Array.of(1, 2, 3), "float32", "float32", Float32Array.of(1, 2, 3)],
  ];
  for (const [given, dtype, gives, data] of made) {
    const label = `${Object.prototype.toString.call(given)} as ${gives}`;
    const tensor = Tensor.from(given, [3], dtype === undefined ? {} : { dtype });
    t.equal(tensor.dtype, gives, label);
    t.strictSame(await tensor.data(), data, label);
  }
});

t.test("the stored bits", async (t) => {
  t.strictSame(await Tensor.from([1, -0], [2]).bits(), Uint32Array.of(0x3f800000, 0x80000000));
  t.strictSame(await Tensor.from(Int32Array.of(-1), [1]).bits(), Uint32Array.of(0xffffffff));
  t.strictSame(await Tensor.from(Uint8Array.of(7), [1]).bits(), Uint8Array.of(7));
  t.strictSame(await Tensor.from([1], [1], { dtype: "bfloat16" }).bits(), Uint16Array.of(0x3f80));
});

t.test("shape, size, bytes", async (t) => {
  const sizes: [shape: number[], strides: number[], size: number, bytes: number][] = [
    [[], [], 1, 2],
    [[5], [1], 5, 10],
    [[2, 3, 4], [12, 4, 1], 24, 48],
    [[2, 0, 4], [0, 4, 1], 0, 0],
    [[1, 1, 1, 1, 1, 3], [3, 3, 3, 3, 3, 1], 3, 6],
  ];
  for (const [shape, strides, size, bytes] of sizes) {
    const tensor = Tensor.zeros(shape, { dtype: "float16" });
    t.match(tensor, { shape, strides, size, bytes, dtype: "float16", disposed: false, isContiguous: true });
    t.strictSame(await tensor.data(), new Float32Array(size));
  }
});

interface Model {
  shape: number[];
  values: number[];
}
type Step =
  | ["slice", number, number, number]
  | ["select", number, number]
  | ["permute", number]
  | ["reshape"];

/** What a view shows, by indices. */
function modelled({ shape, values }: Model, [step, ...given]: Step): Model {
  const index = (at: number[]) => at.reduce((sum, i, axis) => sum * (shape[axis] ?? 0) + i, 0);
  const gather = (sizes: number[], from: (at: number[]) => number[]): Model => {
    const result: number[] = [];
    const visit = (at: number[]) => {
      if (at.length === sizes.length) result.push(values[index(from(at))] ?? nan);
      else for (let i = 0; i < (sizes[at.length] ?? 0); i++) visit([...at, i]);
    };
    visit([]);
    return { shape: sizes, values: result };
  };
  const [axis = 0, start = 0, end = 0] = given;
  if (step === "slice")
    return gather(shape.with(axis, end - start), (at) => at.with(axis, (at[axis] ?? 0) + start));
  if (step === "select") return gather(shape.toSpliced(axis, 1), (at) => at.toSpliced(axis, 0, start));
  if (step === "permute") {
    const order = rotation(shape.length, axis);
    return gather(
      order.map((from) => shape[from] ?? 0),
      (at) => shape.map((_, from) => at[order.indexOf(from)] ?? 0),
    );
  }
  return { shape: [shape.reduce((a, b) => a * b, 1)], values };
}
const rotation = (rank: number, by: number) => Array.from({ length: rank }, (_, axis) => (axis + by) % rank);

function viewed(tensor: Tensor, [step, ...given]: Step): Tensor {
  const [axis = 0, start = 0, end = 0] = given;
  if (step === "slice") return tensor.slice(axis, start, end);
  if (step === "select") return tensor.select(axis, start);
  if (step === "permute") return tensor.permute(...rotation(tensor.shape.length, axis));
  return tensor.contiguous().reshape([tensor.size]);
}

t.test("any views of views show what they should, and take what is written", async (t) => {
  const size = fc.integer({ min: 0, max: 5 });
  const choices = fc.array(fc.tuple(fc.nat(3), fc.nat(9), fc.nat(9), fc.nat(9)), { maxLength: 4 });
  const property = fc.asyncProperty(
    fc.array(size, { minLength: 1, maxLength: 4 }),
    choices,
    async (shape, chosen) => {
      const values = Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => i);
      let tensor = Tensor.from(values, shape);
      let model: Model = { shape, values };
      for (const [kind, a, b, c] of chosen) {
        const axis = a % Math.max(1, model.shape.length);
        const length = model.shape[axis] ?? 0;
        const [start, end] = [b % (length + 1), c % (length + 1)].sort((x, y) => x - y) as [number, number];
        const steps: Step[] = [["reshape"], ["permute", a]];
        if (model.shape.length > 0) steps.push(["slice", axis, start, end]);
        if (length > 0) steps.push(["select", axis, b % length]);
        const step = steps[kind % steps.length] ?? ["reshape"];
        [tensor, model] = [viewed(tensor, step), modelled(model, step)];
      }
      const numbers = Float32Array.from(model.values);
      if (tensor.shape.join() !== model.shape.join()) throw new Error(`shape [${tensor.shape}]`);
      if (Buffer.compare(Buffer.from((await tensor.data()).buffer), Buffer.from(numbers.buffer)) !== 0)
        return false;
      const copy = await tensor.contiguous().data();
      tensor.write(numbers.map((value) => -value));
      const written = await tensor.data();
      return (
        copy.every((value, i) => value === numbers[i]) &&
        written.every((value, i) => value === -at(numbers, i))
      );
    },
  );
  await t.resolves(fc.assert(property, { numRuns: 150 }));
});

t.test("writing into a view leaves what is beside it", async (t) => {
  const whole = Tensor.zeros([3, 4], { dtype: "bfloat16" });
  whole.slice(0, 1, 3).slice(1, 1, 3).write([1, 2, 3, 4]);
  t.strictSame(await whole.data(), Float32Array.of(0, 0, 0, 0, 0, 1, 2, 0, 0, 3, 4, 0));
});

t.test("a tensor's values are written into another, of any strides, dtype and device", async (t) => {
  const numbers = Array.from({ length: 24 }, (_, i) => i * 1.25 - 7);
  const source = Tensor.from(numbers, [2, 3, 4]);
  const sources = [source, source.toDevice(new Device()), source.toDevice(new Device("cpu"))];
  for (const from of sources) {
    for (const dtype of ["float32", "bfloat16", "float16", "int32", "uint8"] as const) {
      const whole = Tensor.zeros([5, 2, 4], { dtype });
      const part = whole.slice(0, 1, 4).permute(1, 0, 2);
      part.write(from);
      t.strictSame(await part.bits(), await source.to(dtype).bits(), dtype);
      t.strictSame([...(await whole.select(0, 0).data())], Array(8).fill(0), "what is beside it");
    }
  }
  const turned = Tensor.zeros([4, 3, 2]);
  turned.write(source.permute(2, 1, 0));
  t.strictSame(await turned.data(), await source.permute(2, 1, 0).data());
  source.write(turned.permute(2, 1, 0));
  t.strictSame([...(await source.data())], numbers);
});

t.test("a tensor may be written from a part of itself, and its source be let go", async (t) => {
  const x = Tensor.from([1, 2, 3, 4, 5], [5]);
  x.slice(0, 1, 5).write(x.slice(0, 0, 4));
  t.strictSame(await x.data(), Float32Array.of(1, 1, 2, 3, 4));
  const square = Tensor.from([1, 2, 3, 4], [2, 2]);
  square.write(square.permute(1, 0));
  t.strictSame(await square.data(), Float32Array.of(1, 3, 2, 4));
  for (const device of [x.device, new Device()]) {
    const source = Tensor.from([9, 8, 7, 6, 5], [5], { device });
    x.write(source);
    source.write([0, 0, 0, 0, 0]);
    source.dispose();
    t.strictSame(await x.data(), Float32Array.of(9, 8, 7, 6, 5));
  }
});

t.test("one value", async (t) => {
  t.equal(await Tensor.from([1.5], [], { dtype: "bfloat16" }).item(), 1.5);
  t.equal(await Tensor.from(Int32Array.of(-7), [1, 1]).item(), -7);
  t.equal(await Tensor.from([1, 2, 3], [3]).select(0, 1).item(), 2);
  for (const [shape, count] of [
    [[0], 0],
    [[2], 2],
  ] as const) {
    const message = `item: the tensor has ${count} values, expected one`;
    await t.rejects(Tensor.zeros(shape).item(), { code: "ERR_SHAPE", message });
  }
  const disposed = Tensor.zeros([]);
  disposed.dispose();
  await t.rejects(disposed.item(), { code: "ERR_DISPOSED" });
});

t.test("a written array may be changed at once", async (t) => {
  const values = Float32Array.of(1, 2, 3);
  const tensor = Tensor.from(values, [3]);
  values.fill(9);
  t.strictSame(await tensor.data(), Float32Array.of(1, 2, 3));
});

t.test("normal numbers", async (t) => {
  const count = 100_001;
  const values = Float32Array.from(await Tensor.normal([count], { seed: 7 }).data());
  const moment = (power: number) => values.reduce((sum, value) => sum + value ** power, 0) / count;
  // Within five standard errors.
  t.ok(Math.abs(moment(1)) < 5 / Math.sqrt(count));
  t.ok(Math.abs(moment(2) - 1) < (5 * Math.sqrt(2)) / Math.sqrt(count));
  t.ok(Math.abs(moment(4) - 3) < (5 * Math.sqrt(96)) / Math.sqrt(count));
  t.strictSame(await Tensor.normal([10, 10], { seed: 7 }).data(), values.slice(0, 100), "by index alone");
  t.strictSame(
    await Tensor.normal([10], { seed: 7, first: 33 }).data(),
    values.slice(33, 43),
    "also of a part of them",
  );
  t.strictSame(
    await Tensor.normal([100], { seed: 7, mean: 3, std: 2 }).data(),
    Float32Array.from(values.slice(0, 100), (value) => Math.fround(3 + Math.fround(2 * value))),
  );
  const other = Float32Array.from(await Tensor.normal([count], { seed: 8 }).data());
  const correlation = other.reduce((sum, value, i) => sum + value * at(values, i), 0) / count;
  t.ok(Math.abs(correlation) < 5 / Math.sqrt(count), "seeds are independent");
  const narrow = await Tensor.normal([100], { seed: 7, dtype: "bfloat16" }).bits();
  t.strictSame(narrow, await Tensor.from(values.slice(0, 100), [100], { dtype: "bfloat16" }).bits());
});

t.test("views keep the memory, which goes with the last of them", async (t) => {
  using device = new Device();
  const whole = Tensor.from([1, 2, 3, 4], [4], { device });
  const view = whole.slice(0, 2, 4);
  const viewOfView = view.select(0, 1);
  await device.synchronize();
  t.equal(device.memory().tensors, 1);
  whole.dispose();
  view.dispose();
  t.strictSame(await viewOfView.data(), Float32Array.of(4));
  viewOfView.dispose();
  viewOfView.dispose();
  t.ok(viewOfView.disposed);
  await device.synchronize();
  t.match(device.memory(), { liveBytes: 0, tensors: 0 });
});

t.test("a view of fewer axes has the shape of any other tensor", async (t) => {
  const qkv = Tensor.normal([1, 8, 3, 2, 16]);
  const [q, k, v] = [0, 1, 2].map((i) => qkv.select(2, i)) as [Tensor, Tensor, Tensor];
  t.strictSame(await attention(q, k, v).data(), await attention(q.contiguous(), k, v).data());
});
