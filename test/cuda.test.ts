// What only a GPU has: queues beside each other, its memory's limits, large tensors, its clock, waits at every call.
import { once } from "node:events";
import {
  AttentionMask,
  type AttentionOptions,
  attentionBackward,
  attentionForward,
  attentionKernels,
  Device,
  info,
  Scope,
  Tensor,
} from "longseq";
import t from "tap";
import { differing } from "./support/bits.ts";
import type { CudaDebug } from "./support/child/cuda-debug.ts";
import type { CudaLimits } from "./support/child/cuda-limits.ts";
import { answer, work } from "./support/child.ts";
import { scatter } from "./support/masks.ts";

const { compiled, gpus } = info().cuda;
const [gpu] = gpus;
// On the CPU's turn of these tests a GPU is left alone, even where there is one.
const skip = process.env.LONGSEQ_DEVICE === "cpu" ? "LONGSEQ_DEVICE=cpu" : noGpu();
function noGpu(): string | false {
  if (!compiled) return "this build has no CUDA";
  return gpu === undefined && "there is no GPU";
}

t.test("what it is called", { skip }, async (t) => {
  using device = new Device("cuda");
  t.equal(device.kind, "cuda");
  t.equal(device.description, `${gpu?.name} (cuda:0)`);
  t.equal(new Device("cuda:0").description, device.description);
  t.match(gpu, { name: /./, computeCapability: Number, multiprocessors: Number, memoryBytes: Number });
  for (const dtype of ["bfloat16", "float16", "float32"] as const) {
    t.equal(gpu?.attentionKernels[dtype], attentionKernels({ device, dtype }), dtype);
  }
  t.ok((gpu?.computeCapability ?? 0) >= 8);
});

t.test("several queues on one GPU: each in its own order, with the same results", { skip }, async (t) => {
  const devices = Array.from({ length: 6 }, () => new Device("cuda"));
  const chains = devices.map((device, seed) => {
    let x = Tensor.normal([1, 200, 2, 32], { device, seed });
    for (let i = 0; i < 20; i++) x = attentionForward(x, x, x, { causal: true }).out;
    return x;
  });
  const together = await Promise.all(chains.map((chain) => chain.data()));
  for (const [seed, values] of together.entries()) {
    using device = new Device("cuda");
    let x = Tensor.normal([1, 200, 2, 32], { device, seed });
    for (let i = 0; i < 20; i++) {
      x = attentionForward(x, x, x, { causal: true }).out;
      await device.synchronize();
    }
    t.strictSame(await x.data(), values, `queue ${seed}`);
  }
});

t.test("memory goes from queue to queue", { skip }, async (t) => {
  const devices = [new Device("cuda"), new Device("cuda")] as const;
  // Blocks that one queue has just let go are what the next allocation gets; what was in them must be done with.
  for (let round = 0; round < 50; round++) {
    const device = devices[round % 2] as Device;
    const x = Tensor.from(new Float32Array(1 << 20).fill(round), [1 << 20], { device });
    const copies = [x.to("int32"), x.to("float16"), x.contiguous()];
    x.dispose();
    const last = copies.at(-1) as Tensor;
    const values = await last.data();
    for (const copy of copies) copy.dispose();
    if (values.some((value) => value !== round)) t.fail(`round ${round}`);
  }
  for (const device of devices) {
    await device.synchronize();
    t.match(device.memory(), { liveBytes: 0, tensors: 0 });
  }
});

const sizes = /asked for \d+ MiB on cuda:0, \d+ MiB are left of \d+, \d+ MiB are held by tensors and scratch/;

// Processes of their own, before the tests that take all of the GPU's memory.
t.test("a limit of one's own", { skip }, async (t) => {
  const limits = await answer<CudaLimits>("cuda-limits.ts", {
    args: ["48"],
    environment: { LONGSEQ_MEMORY_LIMIT: "48m" },
  });
  t.match(limits.tensor, ["ERR_OUT_OF_MEMORY", sizes]);
  t.match(limits.queued, ["ERR_OUT_OF_MEMORY", /out of memory/]);
  t.equal(limits.liveBytes, 0);
  t.strictSame(limits.later, [1, 2, 3]);
});

t.test("LONGSEQ_CUDA_DEBUG: every call waits, and throws its own error", { skip }, async (t) => {
  const limit = { LONGSEQ_MEMORY_LIMIT: "64m" };
  const plain = await answer<CudaDebug>("cuda-debug.ts", { environment: limit });
  const debug = await answer<CudaDebug>("cuda-debug.ts", {
    environment: { ...limit, LONGSEQ_CUDA_DEBUG: "1" },
  });
  t.ok(plain.wait > plain.call, `${plain.call} ms in the call, ${plain.wait} ms behind it`);
  t.ok(debug.call > debug.wait, `waiting: ${debug.call} ms in the call, ${debug.wait} ms behind it`);
  t.match(plain, { where: "await", code: "ERR_OUT_OF_MEMORY" });
  t.match(debug, { where: "call", code: "ERR_OUT_OF_MEMORY" });
});

t.test("10^12 bytes are refused, and all goes on", { skip }, async (t) => {
  using device = new Device("cuda");
  for (let i = 0; i < 3; i++) {
    t.throws(() => Tensor.empty([1e12], { dtype: "uint8", device }), {
      code: "ERR_OUT_OF_MEMORY",
      message: sizes,
    });
  }
  t.strictSame(device.memory(), { liveBytes: 0, peakBytes: 0, tensors: 0 });
  t.strictSame([...(await Tensor.from([1, 2], [2], { device }).data())], [1, 2]);
});

t.test("memory is used to its end, and is there again", { skip }, async (t) => {
  using device = new Device("cuda");
  for (let round = 0; round < 2; round++) {
    const held: Tensor[] = [];
    const each = 2 ** 32;
    await t.rejects(
      async () => {
        for (;;) {
          held.push(Tensor.zeros([each], { dtype: "uint8", device }));
          await device.synchronize();
        }
      },
      { code: "ERR_OUT_OF_MEMORY", message: sizes },
    );
    t.ok(held.length * each > 0.5 * (gpu?.memoryBytes ?? 0), `${held.length} times 4 GiB`);
    // The next one fits because these are on their way to be freed.
    for (const tensor of held) tensor.dispose();
    Tensor.zeros([each], { dtype: "uint8", device }).dispose();
    await device.synchronize();
    t.equal(device.memory().liveBytes, 0);
  }
});

t.test("2^31 + 8 elements: both ends, and a view of the last", { skip }, async (t) => {
  using device = new Device("cuda");
  const size = 2 ** 31 + 8;
  const x = Tensor.zeros([size], { dtype: "uint8", device });
  const ends = [x.slice(0, 0, 8), x.slice(0, size - 8, size)] as const;
  ends[0].write(Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8));
  ends[1].write(Uint8Array.of(9, 10, 11, 12, 13, 14, 15, 16));
  const strided = x.reshape([size / 8, 8]).slice(1, 7, 8);
  const copy = x.contiguous();
  t.strictSame([...(await copy.slice(0, 0, 9).data())], [1, 2, 3, 4, 5, 6, 7, 8, 0]);
  t.strictSame([...(await copy.slice(0, size - 9, size).data())], [0, 9, 10, 11, 12, 13, 14, 15, 16]);
  const column = strided.contiguous();
  t.strictSame([...(await column.slice(0, size / 8 - 1, size / 8).data())], [16]);
  const wide = x.to("float16");
  t.strictSame([...(await wide.slice(0, size - 2, size).data())], [15, 16]);
  for (const tensor of [x, copy, column, wide, strided, ...ends]) tensor.dispose();
});

t.test("reads and writes of many parts", { skip }, async (t) => {
  using device = new Device("cuda");
  const count = (150 << 18) + 5; // 150 MiB and 20 bytes
  const values = Float32Array.from({ length: count }, (_, i) => i);
  const x = Tensor.from(values, [count], { device });
  const [first, second] = await Promise.all([x.data(), x.bits()]);
  t.ok(Buffer.from(first.buffer).equals(Buffer.from(values.buffer)));
  t.ok(Buffer.from(second.buffer).equals(Buffer.from(values.buffer)));
  x.dispose();
});

t.test("marks: the GPU's own clock", { skip }, async (t) => {
  using device = new Device("cuda");
  const x = Tensor.zeros([2 ** 28], { dtype: "uint8", device });
  const marks = [device.mark()];
  for (let i = 0; i < 4; i++) {
    for (let copies = 0; copies < 1 + 8 * i; copies++) x.contiguous().dispose();
    marks.push(device.mark());
  }
  const [start, ...later] = marks;
  const times = await Promise.all(later.map((mark) => mark.since(start as (typeof marks)[number])));
  t.ok(
    times.every((time, i) => time > (times[i - 1] ?? 0)),
    `${times} ms`,
  );
  // 60 copies of 256 MiB, each read and written: no GPU does 10 TB/s, and none that is working less than 0.1.
  const terabytes = (2 * 52 * 2 ** 28) / ((times.at(-1) ?? 0) / 1000) / 1e12;
  t.ok(terabytes > 0.1 && terabytes < 10, `${terabytes} TB/s`);
  const [other] = [new Device("cuda").mark()];
  await t.rejects(other.since(start as (typeof marks)[number]), { code: "ERR_DEVICE" });
});

t.test("worker threads share the GPU", { skip }, async (t) => {
  const workers = [1, 2, 3, 4].map(() => work("worker.ts", { seed: 5, isEndless: false }));
  const results = await Promise.all(workers.map(async (worker) => (await once(worker, "message"))[0]));
  for (const result of results) t.strictSame(result, results[0]);
});

t.test("the same bits in every run", { skip }, async (t) => {
  using device = new Device("cuda");
  using mask = AttentionMask.from(2000, 2000, scatter(7, 128));
  const rules: AttentionOptions[] = [{ causal: true }, {}, { window: [300, 100], softcap: 5 }, { mask }];
  const cases = [
    { dtype: "float32", D: 64, deterministic: false },
    { dtype: "bfloat16", D: 64, deterministic: false },
    ...[64, 80, 96, 128, 256].map((D) => ({ dtype: "bfloat16", D, deterministic: true }) as const),
    { dtype: "float16", D: 128, deterministic: true },
  ] as const;
  for (const { dtype, D, deterministic } of cases) {
    for (const [i, rule] of rules.entries()) {
      await Scope.run(async () => {
        const input = (heads: number, seed: number) =>
          Tensor.normal([2, 2000, heads, D], { seed, dtype, device });
        const [q, k, v, dout] = [input(8, 1), input(4, 2), input(4, 3), input(8, 4)];
        const options = { ...rule, deterministic };
        const once = () => {
          const { out, logSumExp } = attentionForward(q, k, v, options);
          return { out, logSumExp, ...attentionBackward({ q, k, v, out, logSumExp, dout }, options) };
        };
        const expected = once();
        const found = new Set<string>();
        for (let round = 0; round < 10; round++) {
          await Scope.run(async () => {
            for (const name of await differing(once(), expected, options)) found.add(name);
          });
        }
        t.strictSame([...found], [], `${dtype}, D ${D}, rule ${i}${deterministic ? ", deterministic" : ""}`);
      });
    }
  }
});

t.test("a call that queues next to nothing", { skip }, async (t) => {
  using device = new Device("cuda");
  const x = Tensor.zeros([1], { device });
  const q = Tensor.normal([1, 128, 8, 64], { dtype: "bfloat16", device });
  const each = async (label: string, calls: number, call: () => void) => {
    call();
    await device.synchronize();
    const start = performance.now();
    for (let i = 0; i < calls; i++) call();
    const called = performance.now() - start;
    await device.synchronize();
    const done = performance.now() - start;
    const microseconds = (ms: number) => ((1000 * ms) / calls).toFixed(2);
    // Measured, not judged.
    t.comment(`${label}: ${microseconds(called)} us a call, ${microseconds(done)} us until it has run`);
  };
  await each("a cast", 10_000, () => x.to("float16").dispose());
  await each("attention of 128 tokens", 1000, () => {
    const { out, logSumExp } = attentionForward(q, q, q, { causal: true });
    out.dispose();
    logSumExp.dispose();
  });
  x.dispose();
  q.dispose();
  await device.synchronize();
  t.match(device.memory(), { liveBytes: 0, tensors: 0 });
});
