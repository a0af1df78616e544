// Tensors from device to device: values, the order on both queues, errors, gradients.
import fc from "fast-check";
import { attention, Device, Scope, Tape, Tensor } from "longseq";
import t from "tap";
import type { TransferFailure } from "./support/child/transfer-failure.ts";
import { answer } from "./support/child.ts";

/** A second queue of the default kind, and the CPU, which on a machine without a GPU is the same. */
const kinds = () => [new Device(), new Device(), new Device("cpu")];

t.test("values, of every dtype and any strides", async (t) => {
  const [here, other, cpu] = kinds() as [Device, Device, Device];
  for (const [from, to] of [
    [here, other],
    [here, cpu],
    [cpu, here],
    [here, here],
  ] as const) {
    const label = `${from.name} to ${to.name}`;
    for (const dtype of ["float32", "bfloat16", "float16", "int32", "uint8"] as const) {
      const x = Tensor.from(
        Array.from({ length: 210 }, (_, i) => i),
        [5, 6, 7],
        { dtype, device: from },
      );
      for (const view of [x, x.slice(1, 2, 5), x.permute(2, 0, 1), x.select(0, 4), x.slice(0, 3, 3)]) {
        const there = view.toDevice(to);
        t.equal(there.device, to);
        t.strictSame(there.shape, view.shape);
        t.ok(there.isContiguous);
        t.strictSame(await there.bits(), await view.bits(), `${label}, ${dtype}, [${view.shape}]`);
      }
    }
    const scalar = Tensor.from([5], [], { device: from }).toDevice(to);
    t.strictSame([...(await scalar.data())], [5]);
    // More than one part of a copy through pinned memory, and no whole number of parts.
    const long = Tensor.normal([(40 << 18) + 3], { device: from });
    t.ok(same(await long.toDevice(to).bits(), await long.bits()), `${label}: 40 MiB`);
  }
});

function same(a: Uint32Array | Uint16Array | Uint8Array, b: typeof a): boolean {
  return Buffer.from(a.buffer).equals(Buffer.from(b.buffer));
}

/** Some tenths of a second of work, whose result is `x` again: the mean of equal rows. */
function slowly(x: Tensor): Tensor {
  const [size = 0] = x.shape;
  const q = Tensor.zeros([1, 400, 1, 64], { device: x.device });
  const work = attention(q, q, q, { implementation: "reference" });
  work.dispose();
  q.dispose();
  return x.slice(0, 0, size);
}

t.test(
  "it returns at once; the source may be changed and let go, and the order is that of the calls",
  async (t) => {
    const devices = kinds();
    for (const from of devices) {
      for (const to of devices) {
        const label = `${from.name} to ${to.name}`;
        const x = slowly(Tensor.from(new Float32Array(1000).fill(1), [1000], { device: from }));
        const start = performance.now();
        const first = x.toDevice(to);
        x.write(new Float32Array(1000).fill(2));
        const second = x.toDevice(to);
        x.write(new Float32Array(1000).fill(3));
        const third = x.toDevice(to);
        x.dispose();
        const back = third.toDevice(from);
        third.write(new Float32Array(1000).fill(4));
        const called = performance.now() - start;
        const results = await Promise.all([first, second, back, third].map((tensor) => tensor.data()));
        const waited = performance.now() - start;
        t.strictSame(
          results.map((values) => [...new Set(values)]),
          [[1], [2], [3], [4]],
          label,
        );
        t.ok(called < waited / 2, `${label}: queued in ${called} ms, there after ${waited} ms`);
      }
    }
  },
);

t.test(
  "any number of devices, any order: the values that plain arrays would hold, and no deadlock",
  async (t) => {
    const devices = kinds();
    const step = fc.record({
      from: fc.nat(2),
      to: fc.nat(2),
      what: fc.constantFrom("send", "write", "add" as const),
    });
    const property = fc.asyncProperty(fc.array(step, { maxLength: 60 }), (steps) =>
      Scope.run(async () => {
        const tensors = devices.map((device, i) => Tensor.from([i], [1], { device }));
        const expected = [0, 1, 2];
        let next = 3;
        for (const { from, to, what } of steps) {
          const value = expected[from] ?? 0;
          if (what === "send") {
            const sent = (tensors[from] as Tensor).toDevice(devices[to] as Device);
            if (from !== to) tensors[to] = sent;
            expected[to] = value;
          } else if (what === "write") {
            tensors[from]?.write([next]);
            expected[from] = next++;
          } else {
            tensors[from] = (tensors[from] as Tensor).to("float16").to("float32");
          }
        }
        const values = await Promise.all(tensors.map(async (tensor) => (await tensor.data())[0]));
        if (values.join() !== expected.join()) throw new Error(`${values}, expected ${expected}`);
      }),
    );
    await t.resolves(fc.assert(property, { numRuns: 60 }));
  },
);

t.test("on a tape the gradient goes back", async (t) => {
  const [here, , cpu] = kinds() as [Device, Device, Device];
  using tape = new Tape();
  const x = Tensor.from([1, 2, 3, 4], [2, 2], { device: here });
  tape.watch(x);
  const there = x.permute(1, 0).toDevice(cpu);
  const [dx] = tape.backward(there, Tensor.from([5, 6, 7, 8], [2, 2], { device: cpu }), [x]);
  t.equal(dx?.device, here);
  t.strictSame([...((await dx?.data()) ?? [])], [5, 7, 6, 8]);
});

t.test("what cannot be sent", async (t) => {
  const device = new Device();
  const x = Tensor.zeros([2], { device });
  t.throws(() => x.toDevice("cpu" as never), {
    code: "ERR_OPTION",
    message: "toDevice: device is string, expected a Device",
  });
  const closed = new Device();
  const lost = Tensor.zeros([2], { device: closed });
  closed.dispose();
  t.throws(() => x.toDevice(closed), { code: "ERR_DISPOSED" });
  t.throws(() => lost.toDevice(device), { code: "ERR_DISPOSED" });
  x.dispose();
  t.throws(() => x.toDevice(new Device()), {
    code: "ERR_DISPOSED",
    message: "toDevice: the tensor was disposed",
  });
});

t.test("devices that are disposed still send and receive what was queued", async (t) => {
  const [here, other] = kinds() as [Device, Device, Device];
  const sent = slowly(Tensor.from([7], [1], { device: here })).toDevice(other);
  const read = sent.data();
  here.dispose();
  other.dispose();
  t.strictSame([...(await read)], [7]);
});

t.test("an error on the way to the values reaches whoever reads them", async (t) => {
  const report = await answer<TransferFailure>("transfer-failure.ts", {
    environment: { LONGSEQ_MEMORY_LIMIT: "24m" },
  });
  t.strictSame(report, { there: "ERR_OUT_OF_MEMORY", here: "ERR_OUT_OF_MEMORY", later: [1, 2] });
});
