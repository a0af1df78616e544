import {
  add,
  attention,
  attentionBackward,
  attentionForward,
  Device,
  info,
  mergeAttention,
  Tensor,
} from "longseq";
import t from "tap";
import { kind } from "./support/devices.ts";

/** Some tenths of a second of work. */
function longWork(device: Device): Tensor {
  const q = Tensor.normal([1, 800, 1, 64], { device });
  return attention(q, q, q, { implementation: "reference" });
}

t.test("names", async (t) => {
  const device = new Device("cpu");
  const { cpu, cuda } = info();
  t.match(device, { name: "cpu", kind: "cpu" });
  t.equal(
    device.description,
    `${cpu.model}, ${cpu.instructionSet}, ${cpu.threads} thread${cpu.threads === 1 ? "" : "s"}`,
  );
  if (process.env.LONGSEQ_DEVICE === undefined) {
    t.equal(new Device().kind, cuda.gpus.length > 0 ? "cuda" : "cpu", "the best there is");
  }
  for (const name of ["", "gpu", "CPU", "cpu:0", "cudax"]) {
    t.throws(
      () => new Device(name),
      { code: "ERR_DEVICE", message: /expected "cpu", "cuda" or "cuda:N"/ },
      name,
    );
  }
  t.throws(() => new Device(1 as never), { code: "ERR_OPTION", message: /^Device: name is number/ });
  for (const name of ["cuda", "cuda:0", "cuda:99"].slice(cuda.gpus.length > 0 ? 2 : 0)) {
    t.throws(() => new Device(name), { code: "ERR_NO_CUDA" }, name);
  }
});

t.test("operations run in the order of their calls", async (t) => {
  const device = new Device();
  const x = Tensor.zeros([1000], { device });
  const seen: Tensor[] = [];
  for (let i = 0; i < 50; i++) {
    x.write(new Float32Array(1000).fill(i));
    seen.push(x.to("int32"));
  }
  for (const [i, tensor] of seen.entries()) {
    if ((await tensor.data()).some((value) => value !== i)) t.fail(`copy ${i}`);
  }
  t.strictSame(await x.data(), new Float32Array(1000).fill(49));
});

t.test("reads resolve in order, and all that is queued before a synchronize has run by then", async (t) => {
  const device = new Device();
  const order: string[] = [];
  const work = longWork(device);
  const reads = [
    work.data().then(() => order.push("long")),
    Tensor.zeros([1], { device })
      .data()
      .then(() => order.push("short")),
    device.synchronize().then(() => order.push("synchronize")),
  ];
  order.push("called");
  await Promise.all(reads);
  t.strictSame(order, ["called", "long", "short", "synchronize"]);
});

t.test("waiting leaves the event loop to others", async (t) => {
  const device = new Device();
  let ticks = 0;
  const timer = setInterval(() => ticks++, 1);
  const started = performance.now();
  const works = Array.from({ length: 4 }, () => longWork(device));
  const called = performance.now() - started;
  await device.synchronize();
  const waited = performance.now() - started;
  clearInterval(timer);
  for (const work of works) work.dispose();
  t.ok(called < waited / 4, `queued in ${called} ms, done after ${waited} ms`);
  t.ok(ticks > waited / 20, `${ticks} ticks in ${waited} ms`);
});

t.test("several devices go on side by side", async (t) => {
  const devices = Array.from({ length: 6 }, () => new Device());
  const outs = devices.map((device) => {
    const q = Tensor.normal([1, 300, 2, 32], { device, seed: 3 });
    return attention(q, q, q, { causal: true });
  });
  const [expected, ...others] = await Promise.all(outs.map((out) => out.bits()));
  for (const bits of others) t.strictSame(bits, expected);
});

t.test("what a device holds", async (t) => {
  const device = new Device();
  t.strictSame(device.memory(), { liveBytes: 0, peakBytes: 0, tensors: 0 });
  const x = Tensor.zeros([256, 1024], { device });
  const y = Tensor.zeros([256], { device });
  await device.synchronize();
  const { liveBytes, tensors } = device.memory();
  t.equal(tensors, 2);
  t.ok(liveBytes >= x.bytes + y.bytes && liveBytes < 1.1 * (x.bytes + y.bytes));
  x.dispose();
  y.dispose();
  await device.synchronize();
  t.match(device.memory(), { liveBytes: 0, peakBytes: liveBytes, tensors: 0 });
  device.resetPeak();
  t.equal(device.memory().peakBytes, 0);
});

t.test("what is queued far ahead takes its memory when its turn comes", async (t) => {
  const device = new Device();
  const x = Tensor.zeros([1 << 18], { device });
  await device.synchronize();
  device.resetPeak();
  for (let i = 0; i < 100; i++) {
    using sum = add(x, x);
    add(sum, x).dispose();
  }
  await device.synchronize();
  const { peakBytes } = device.memory();
  t.ok(peakBytes < 20 * x.bytes, `${peakBytes / x.bytes} tensors at once`);
});

t.test("memory grows with S, not with S x S", async (t) => {
  const device = new Device();
  const scratch = async (S: number) => {
    const q = Tensor.normal([1, S, 1, 64], { device });
    await device.synchronize();
    const before = device.memory().liveBytes;
    device.resetPeak();
    const { out, logSumExp } = attentionForward(q, q, q);
    attentionBackward({ q, k: q, v: q, out, logSumExp, dout: q });
    await device.synchronize();
    return device.memory().peakBytes - before;
  };
  const [short, long] = [await scratch(1000), await scratch(4000)];
  t.ok(long < (kind === "cpu" ? 4.5 : 16) * short, `${short} bytes at 1000, ${long} at 4000`);
});

t.test("tensors may be disposed while they are queued", async (t) => {
  const device = new Device();
  const q = Tensor.normal([1, 600, 1, 64], { device });
  const expected = await attention(q, q, q).bits();
  const copy = q.contiguous();
  const out = attention(copy, copy, copy);
  const read = out.bits();
  copy.dispose();
  out.dispose();
  t.strictSame(await read, expected);
});

t.test("a device is disposed", async (t) => {
  const device = new Device();
  const x = Tensor.from([1, 2], [2], { device });
  const read = longWork(device).data();
  device.dispose();
  device.dispose();
  t.equal((await read).length, 800 * 64, "what was queued still runs");
  await device.synchronize();
  t.throws(() => Tensor.zeros([1], { device }), { code: "ERR_DISPOSED", message: /device was disposed/ });
  t.throws(() => x.to("int32"), { code: "ERR_DISPOSED", message: /device/ });
  t.throws(() => attention(x, x, x), { code: /ERR_/ });
  await t.rejects(x.data(), { code: "ERR_DISPOSED" });
  x.dispose();
  t.equal(device.memory().tensors >= 0, true);
});

t.test("the default device", async (t) => {
  const first = Device.default;
  t.equal(Device.default, first);
  t.equal(Tensor.zeros([1]).device, first);
  first.dispose();
  t.not(Device.default, first, "a new one in place of a disposed one");
  t.strictSame(await Tensor.zeros([1]).data(), Float32Array.of(0));
});

t.test("tensors of two devices do not mix", async (t) => {
  const [here, there] = [new Device(), new Device()];
  const q = Tensor.zeros([1, 4, 1, 8], { device: here });
  const other = Tensor.zeros([1, 4, 1, 8], { device: there });
  const slopes = Tensor.zeros([1], { device: there });
  const { out, logSumExp } = attentionForward(q, q, q);
  const backward = { q, k: q, v: q, out, logSumExp, dout: q };
  const elsewhere = attentionForward(other, other, other);
  const refused: [() => unknown, RegExp][] = [
    [() => attention(q, other, q), /^attention: k is on another device than q$/],
    [() => attention(q, q, other), /^attention: v is on another device than q$/],
    [
      () => attention(q, q, q, { alibiSlopes: slopes }),
      /^attention: alibiSlopes is on another device than q$/,
    ],
    [() => attentionBackward({ ...backward, dout: other }), /^attention: dout is on another device/],
    [() => attentionBackward({ ...backward, out: other }), /^attention: out is on another device/],
    [
      () => attentionBackward({ ...backward, logSumExp: elsewhere.logSumExp }),
      /logSumExp is on another device/,
    ],
    [() => mergeAttention([{ out, logSumExp }, elsewhere]), /device/],
  ];
  for (const [call, message] of refused) t.throws(call, { code: "ERR_DEVICE", message }, String(message));
});

t.test("how long a call takes that queues next to nothing", async (t) => {
  const device = new Device();
  const x = Tensor.zeros([1], { device });
  const views = 20_000;
  const started = performance.now();
  for (let i = 0; i < views; i++) x.slice(0, 0, 1).dispose();
  const microseconds = ((performance.now() - started) / views) * 1000;
  // Measured, not judged: machines differ.
  t.comment(`a view and its disposal: ${microseconds.toFixed(2)} us`);
  const fills = 5000;
  const begun = performance.now();
  for (let i = 0; i < fills; i++) Tensor.zeros([1], { device }).dispose();
  t.comment(
    `a tensor, a queued fill, its disposal: ${(((performance.now() - begun) / fills) * 1000).toFixed(2)} us`,
  );
  x.dispose();
  await device.synchronize();
  t.equal(device.memory().tensors, 0);
});
