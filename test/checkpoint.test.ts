// Recomputation: the same gradients, bit for bit, from less memory.
import {
  attention,
  checkpoint,
  Device,
  gelu,
  linear,
  linearCrossEntropy,
  rmsNorm,
  Scope,
  Tape,
  Tensor,
} from "longseq";
import t from "tap";
import { differing } from "./support/bits.ts";
import type { FloatType } from "./support/compare.ts";
import { waitForQueue } from "./support/queue.ts";
import { refuses } from "./support/refusals.ts";

const columns = 32;

interface Parameters {
  norm: Tensor;
  up: Tensor;
  down: Tensor;
}

function parameters(device: Device, dtype: FloatType = "float32", width = columns): Parameters {
  const normal = (shape: number[], seed: number, std: number) =>
    Tensor.normal(shape, { seed, std, dtype, device });
  return {
    norm: normal([width], 1, 1),
    up: normal([4 * width, width], 2, 0.1),
    down: normal([width, 4 * width], 3, 0.1),
  };
}

const mlp = (x: Tensor, norm: Tensor, up: Tensor, down: Tensor) =>
  linear(gelu(linear(rmsNorm(x, norm), up)), down);

/** Gradients in x and the parameters of two layers that share them. */
function gradients(
  layer: (x: Tensor, { norm, up, down }: Parameters) => Tensor,
  { dtype = "float32" as FloatType, device = Device.default, shouldDispose = false } = {},
): Record<string, Tensor> {
  using tape = new Tape();
  const x = Tensor.normal([2, 10, columns], { seed: 9, dtype, device });
  const own = parameters(device, dtype);
  const watched = { x, ...own };
  tape.watch(...Object.values(watched));
  const middle = layer(x, own);
  const y = layer(middle, own);
  const dy = Tensor.normal(y.shape, { seed: 4, dtype, device });
  if (shouldDispose) for (const tensor of [middle, ...Object.values(watched)]) tensor.dispose();
  const found = tape.backward(y, dy, Object.values(watched));
  return {
    y,
    ...Object.fromEntries(Object.keys(watched).map((name, at) => [`d${name}`, found[at] as Tensor])),
  };
}

const plain = (x: Tensor, { norm, up, down }: Parameters) => mlp(x, norm, up, down);
const checkpointed = (x: Tensor, { norm, up, down }: Parameters) => checkpoint(mlp, x, norm, up, down);

t.test("the bits are those without", async (t) => {
  for (const dtype of ["float32", "bfloat16"] as const) {
    const expected = gradients(plain, { dtype });
    t.strictSame(await differing(gradients(checkpointed, { dtype }), expected), [], dtype);
    t.strictSame(
      await differing(gradients(checkpointed, { dtype, shouldDispose: true }), expected),
      [],
      "disposed",
    );
    const nested = (x: Tensor, { norm, up, down }: Parameters) =>
      checkpoint(
        (rows, ...own) => checkpoint((inner, ...given) => mlp(inner, ...given), rows, ...own),
        x,
        norm,
        up,
        down,
      );
    t.strictSame(await differing(gradients(nested, { dtype }), expected), [], "nested");
  }
});

t.test("attention, views and a loss", async (t) => {
  const lossOf = (x: Tensor, weight: Tensor) => {
    const [q, k, v] = [0, 2, 4].map((head) => x.slice(2, head, head + 2)) as [Tensor, Tensor, Tensor];
    const out = attention(q, k, v, { causal: true });
    const targets = Tensor.zeros([1, 12], { dtype: "int32" });
    return linearCrossEntropy(out.reshape([1, 12, 16]), weight, targets);
  };
  const run = (isCheckpoint: boolean) => {
    using tape = new Tape();
    const [x, weight] = [Tensor.normal([1, 12, 6, 8], { seed: 1 }), Tensor.normal([20, 16], { seed: 2 })];
    tape.watch(x, weight);
    const loss = isCheckpoint ? checkpoint(lossOf, x, weight) : lossOf(x, weight);
    const [dx, dweight] = tape.backward(loss, Tensor.from([2], []), [x, weight]) as [Tensor, Tensor];
    return { loss, dx, dweight };
  };
  t.strictSame(await differing(run(true), run(false)), []);
});

t.test("an input that is used twice, given twice, or not at all; work that returns its input", async (t) => {
  const x = Tensor.from([1, 2, 3], [3]);
  const other = Tensor.from([4], [1]);
  using tape = new Tape();
  tape.watch(x, other);
  const sum = checkpoint((a, b, _) => linear(a.reshape([1, 3]), b.reshape([1, 3])), x, x, other);
  const same = checkpoint((a) => a, sum);
  t.strictSame(await same.data(), Float32Array.of(14));
  const found = tape.backward(same, Tensor.from([1], [1, 1]), [x, other]) as [Tensor, Tensor];
  t.strictSame(await found[0].data(), Float32Array.of(2, 4, 6));
  t.strictSame(await found[1].data(), Float32Array.of(0));
});

t.test("what is on no tape costs no gradient, and no second run", async (t) => {
  let runs = 0;
  const work = (x: Tensor, weight: Tensor) => {
    runs++;
    return linear(x, weight);
  };
  const [x, weight] = [Tensor.normal([4, 8]), Tensor.normal([8, 8])];
  checkpoint(work, x, weight);
  t.equal(runs, 1);
  using tape = new Tape();
  tape.watch(x);
  const y = checkpoint(work, x, weight);
  const [dx] = tape.backward(y, Tensor.normal(y.shape), [x]) as [Tensor];
  t.equal(runs, 3);
  t.ok((await dx.data()).some((value) => value !== 0));
});

t.test("a gradient's sum of the caller's is added to once", async (t) => {
  const [x, weight] = [Tensor.normal([4, 8]), Tensor.normal([8, 8], { seed: 1 })];
  const run = async (isCheckpoint: boolean) => {
    const dweight = Tensor.zeros([8, 8]);
    const work = (rows: Tensor, matrix: Tensor) => linear(rows, matrix, undefined, { dweight });
    using tape = new Tape();
    tape.watch(x, weight);
    const y = isCheckpoint ? checkpoint(work, x, weight) : work(x, weight);
    tape.backward(y, Tensor.normal(y.shape, { seed: 2 }), [x]);
    return { dweight };
  };
  t.strictSame(await differing(await run(true), await run(false)), []);
});

t.test("less memory: between the passes, and at most", async (t) => {
  const [layers, rows, width] = [6, 256, 64];
  const measure = async (isCheckpoint: boolean) => {
    using device = new Device();
    using scope = new Scope();
    const { norm, up, down } = parameters(device, "float32", width);
    const x = Tensor.normal([rows, width], { device });
    const work = (a: Tensor, b: Tensor, c: Tensor, d: Tensor) => {
      waitForQueue(device);
      return mlp(a, b, c, d);
    };
    using tape = new Tape();
    tape.watch(x, norm, up, down);
    const dy = Tensor.normal([rows, width], { device });
    await device.synchronize();
    device.resetPeak();
    const before = device.memory().liveBytes;
    const y = Scope.run(() => {
      let middle = x;
      for (let layer = 0; layer < layers; layer++) {
        middle = isCheckpoint ? checkpoint(work, middle, norm, up, down) : work(middle, norm, up, down);
      }
      return middle;
    });
    await device.synchronize();
    const kept = device.memory().liveBytes - before;
    Scope.run(() => void tape.backward(y, dy, [x, norm, up, down]));
    await device.synchronize();
    const peak = device.memory().peakBytes - before;
    scope.dispose();
    return { kept, peak };
  };
  const [without, withIt] = [await measure(false), await measure(true)];
  const ofLayer = rows * width * 4;
  t.ok(withIt.kept < (layers + 1) * ofLayer, `${withIt.kept} bytes kept: a layer's input each`);
  t.ok(without.kept > 5 * withIt.kept, `${without.kept} without`);
  t.ok(without.peak > 1.5 * withIt.peak, `${withIt.peak} bytes at most, ${without.peak} without`);
});

t.test("nothing is left behind, also where work throws", async (t) => {
  using device = new Device();
  const count = async () => {
    await device.synchronize();
    return device.memory().tensors;
  };
  const x = Tensor.normal([4, 8], { device });
  const dy = Tensor.normal([4, 8], { device });
  const before = await count();
  let runs = 0;
  for (const throwsIn of [0, 1, 2]) {
    runs = 0;
    const work = (rows: Tensor) => {
      const made = gelu(gelu(rows));
      if (++runs === throwsIn) throw new Error("no more");
      return gelu(made);
    };
    using tape = new Tape();
    tape.watch(x);
    const attempt = () => Scope.run(() => void tape.backward(checkpoint(work, x), dy, [x]));
    if (throwsIn === 0) attempt();
    else t.throws(attempt, { message: "no more" });
    t.equal(await count(), before);
  }
  using tape = new Tape();
  const given = x.contiguous();
  tape.watch(given);
  const y = checkpoint((rows) => gelu(rows), given);
  for (const tensor of [given, y]) tensor.dispose();
  t.ok((await count()) > before, "the input is kept while the tape is open");
  tape.dispose();
  t.equal(await count(), before);
});

t.test("what work has from elsewhere stays its owner's", async (t) => {
  const [x, constant] = [Tensor.normal([4]), Tensor.from([1, 2, 3, 4], [4])];
  using tape = new Tape();
  tape.watch(x);
  const y = checkpoint((_x: Tensor) => constant, x);
  const [dx] = tape.backward(y, Tensor.normal([4]), [x]) as [Tensor];
  t.strictSame([...(await dx.data())], [0, 0, 0, 0]);
  t.strictSame([...(await constant.data())], [1, 2, 3, 4]);
  t.not(y, constant);
});

t.test("two devices in one thread", async (t) => {
  using first = new Device();
  using second = new Device();
  const expected = gradients(plain);
  const made = await Promise.all(
    [first, second].map((device) => Scope.run(async () => gradients(checkpointed, { device }))),
  );
  for (const found of made) t.strictSame(await differing(found, expected), []);
  const [x, weight] = [Tensor.normal([4, 8], { device: first }), Tensor.normal([8, 8], { device: second })];
  using tape = new Tape();
  tape.watch(x, weight);
  const y = checkpoint((rows, matrix) => linear(rows.toDevice(second), matrix), x, weight);
  const [dx, dweight] = tape.backward(y, Tensor.normal(y.shape, { device: second }), [x, weight]);
  t.ok(dx?.device === first && dweight?.device === second);
});

t.test("refusals", async (t) => {
  const [x, weight] = [Tensor.normal([4, 8]), Tensor.normal([8, 8])];
  const gone = Tensor.zeros([1]);
  gone.dispose();
  refuses(t, [
    [() => checkpoint(3 as never, x), "ERR_OPTION", "checkpoint: work is number, expected a function"],
    [
      () => checkpoint((a: Tensor) => a, 3 as never),
      "ERR_OPTION",
      "checkpoint: input 0 is number, expected a Tensor",
    ],
    [() => checkpoint((a) => a, gone), "ERR_DISPOSED", "checkpoint: input 0 was disposed"],
    [
      () => checkpoint((() => 3) as never, x),
      "ERR_OPTION",
      "checkpoint: the result of work is number, expected a Tensor",
    ],
    [
      () => checkpoint((async () => Promise.reject(new Error("unheard"))) as never, x),
      "ERR_OPTION",
      "checkpoint: the result of work is object, expected a Tensor",
    ],
    [() => checkpoint((_) => gone, x), "ERR_DISPOSED", "checkpoint: the result of work was disposed"],
    [
      () => checkpoint((a, _) => a, x, 3 as never),
      "ERR_OPTION",
      "checkpoint: input 1 is number, expected a Tensor",
    ],
  ]);
  using tape = new Tape();
  tape.watch(x, weight);
  refuses(t, [
    [
      () => checkpoint((rows) => linear(rows, weight), x),
      "ERR_OPTION",
      "checkpoint: work uses a tensor that is on a tape, expected it to be an input",
    ],
  ]);
  let rows = 4;
  const y = checkpoint((a) => a.slice(0, 0, rows--), x);
  refuses(t, [
    [
      () => tape.backward(y, Tensor.zeros([4, 8]), [x]),
      "ERR_SHAPE",
      "checkpoint: work gave float32 [3, 8] when it ran again, expected float32 [4, 8]",
    ],
  ]);
});
