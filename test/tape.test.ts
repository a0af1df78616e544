import {
  type AttentionOptions,
  attention,
  attentionBackward,
  attentionForward,
  concatenate,
  Device,
  gelu,
  linear,
  matmul,
  Scope,
  Tape,
  Tensor,
} from "longseq";
import t from "tap";
import { differing } from "./support/bits.ts";
import { at, relativeError } from "./support/compare.ts";

const shape = [2, 40, 2, 16];
const normal = (seed: number, of: readonly number[] = shape) => Tensor.normal(of, { seed });

t.test("attention's gradient is attentionBackward's", async (t) => {
  const options: AttentionOptions[] = [
    {},
    { causal: true, softcap: 4 },
    { window: [8, 0], scale: 0.5, alibiSlopes: Tensor.from([0.1, 0.2], [2]) },
    { implementation: "reference" },
    { outDtype: "float32" },
  ];
  for (const given of options) {
    for (const dtype of ["float32", "bfloat16"] as const) {
      const [q, k, v] = [1, 2, 3].map((seed) => Tensor.normal(shape, { seed, dtype })) as [
        Tensor,
        Tensor,
        Tensor,
      ];
      using tape = new Tape();
      tape.watch(q, k, v);
      const result = attention(q, k, v, given);
      const dout = Tensor.normal(shape, { seed: 4, dtype: result.dtype });
      const [dq, dk, dv] = tape.backward(result, dout, [q, k, v]) as [Tensor, Tensor, Tensor];
      const forward = attentionForward(q, k, v, given);
      const expected = attentionBackward({ q, k, v, ...forward, dout }, given);
      t.strictSame(
        await differing({ dq, dk, dv, out: result }, { ...expected, out: forward.out }),
        [],
        dtype,
      );
    }
  }
});

t.test("views and copies", async (t) => {
  // Each as y = x[some of the elements]: the gradient goes back where they came from.
  const [rows, columns] = [3, 4];
  const steps: Record<string, (x: Tensor) => Tensor> = {
    slice: (x) => x.slice(1, 1, 3),
    select: (x) => x.select(0, 2),
    permute: (x) => x.permute(1, 0),
    reshape: (x) => x.reshape([2, 6]),
    "to another dtype": (x) => x.to("bfloat16"),
    contiguous: (x) => x.permute(1, 0).contiguous(),
    "a chain of them": (x) =>
      x.permute(1, 0).slice(0, 1, 4).contiguous().reshape([9]).slice(0, 2, 7).to("float16"),
  };
  for (const [name, step] of Object.entries(steps)) {
    const indices = Float32Array.from({ length: rows * columns }, (_, i) => i);
    const x = Tensor.from(indices, [rows, columns]);
    using tape = new Tape();
    tape.watch(x);
    const y = step(x);
    const shown = await y.data();
    const dy = Tensor.from(
      Float32Array.from(shown, (index) => 100 + index),
      y.shape,
      { dtype: y.dtype },
    );
    const [dx] = tape.backward(y, dy, [x]) as [Tensor];
    t.equal(dx.dtype, "float32", name);
    t.strictSame(
      await dx.data(),
      Float32Array.from(indices, (index) => (Array.from(shown).includes(index) ? 100 + index : 0)),
      name,
    );
  }
});

t.test("slices of one packed tensor", async (t) => {
  const qkv = normal(5, [1, 30, 6, 16]);
  using tape = new Tape();
  tape.watch(qkv);
  const [q, k, v] = [0, 2, 4].map((head) => qkv.slice(2, head, head + 2)) as [Tensor, Tensor, Tensor];
  const out = attention(q, k, v, { causal: true });
  const dout = normal(6, out.shape);
  const [dqkv] = tape.backward(out, dout, [qkv]) as [Tensor];
  const expected = attentionBackward(
    { q, k, v, dout, ...attentionForward(q, k, v, { causal: true }) },
    { causal: true },
  );
  const parts = { dq: dqkv.slice(2, 0, 2), dk: dqkv.slice(2, 2, 4), dv: dqkv.slice(2, 4, 6) };
  t.strictSame(await differing(parts, expected), []);
});

t.test("an input that is used more than once gets the sum", async (t) => {
  const x = normal(1);
  using tape = new Tape();
  tape.watch(x);
  const out = attention(x, x, x);
  const dout = normal(2);
  const [dx] = tape.backward(out, dout, [x]) as [Tensor];
  const { dq, dk, dv } = attentionBackward({ q: x, k: x, v: x, dout, ...attentionForward(x, x, x) });
  const [qs, ks, vs] = await Promise.all([dq.data(), dk.data(), dv.data()]);
  const sum = qs.map((value, i) => Math.fround(Math.fround(value + at(ks, i)) + at(vs, i)));
  t.strictSame(await dx.data(), sum);
});

t.test("attention of attention", async (t) => {
  const x = normal(1);
  const dout = normal(2);
  using tape = new Tape();
  tape.watch(x);
  const middle = attention(x, x, x, { causal: true });
  const out = attention(middle, x, middle);
  const [dx, dmiddle] = tape.backward(out, dout, [x, middle]) as [Tensor, Tensor];

  const second = attentionBackward({
    q: middle,
    k: x,
    v: middle,
    dout,
    ...attentionForward(middle, x, middle),
  });
  const add = async (...terms: Tensor[]) => {
    const [first, ...others] = await Promise.all(terms.map((term) => term.data()));
    const total = Float32Array.from(first ?? []);
    for (const values of others)
      for (let i = 0; i < total.length; i++) total[i] = at(total, i) + at(values, i);
    return total;
  };
  const ofMiddle = await add(second.dq, second.dv);
  t.strictSame(await dmiddle.data(), ofMiddle);
  const causal = { causal: true };
  const inner = attentionBackward(
    { q: x, k: x, v: x, dout: Tensor.from(ofMiddle, shape), ...attentionForward(x, x, x, causal) },
    causal,
  );
  t.strictSame(await dx.data(), await add(second.dk, inner.dq, inner.dk, inner.dv));
});

t.test("tensors may be disposed between forward and backward", async (t) => {
  const [q, dout] = [normal(1), normal(2)];
  const run = async (shouldDispose: boolean) => {
    using tape = new Tape();
    const x = q.contiguous();
    tape.watch(x);
    const middle = x.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3);
    const alibiSlopes = Tensor.from([0.1, 0.2], [2]);
    const out = attention(middle, middle, middle, { alibiSlopes });
    if (shouldDispose) for (const tensor of [middle, x, alibiSlopes]) tensor.dispose();
    const [dx] = tape.backward(out, dout, [x]) as [Tensor];
    return dx.data();
  };
  t.strictSame(await run(true), await run(false));
});

t.test("by name", async (t) => {
  const named = { x: Tensor.normal([3, 4], { seed: 1 }), unused: Tensor.zeros([2]) };
  using tape = new Tape();
  tape.watch(named);
  const dy = Tensor.normal([3, 2], { seed: 2 });
  const gradients = tape.backward(named.x.slice(1, 0, 2), dy, named);
  t.strictSame(Object.keys(gradients), ["x", "unused"]);
  t.strictSame(Array.from(await gradients.unused.data()), [0, 0]);
  t.strictSame(Array.from(await gradients.x.slice(1, 0, 2).data()), Array.from(await dy.data()));
  using again = new Tape();
  again.watch([named.x], named.unused);
  const [dx, nothing] = again.backward(named.x.slice(1, 0, 2), dy, [named.x, named.unused]);
  t.strictSame(Array.from(await dx.data()), Array.from(await gradients.x.data()));
  t.equal(nothing.size, 2);
});

t.test("what the output does not depend on has a gradient of zeros", async (t) => {
  const [q, k, other] = [normal(1), normal(2), normal(3)];
  using tape = new Tape();
  tape.watch(q, other);
  const [out, aside] = [attention(q, k, k), attention(q, other, other)];
  const gradients = tape.backward(out, normal(4), [q, aside, other]);
  t.strictSame(
    gradients.map(({ shape }) => [...shape]),
    [shape, shape, shape],
  );
  const [dq, daside, dother] = await Promise.all(gradients.map((gradient) => gradient.data()));
  t.ok(dq?.some((value) => value !== 0));
  t.ok(daside?.every((value) => value === 0));
  t.ok(dother?.every((value) => value === 0));
});

t.test("the output's own gradient, and one asked for twice, are new tensors", async (t) => {
  const x = normal(1);
  using tape = new Tape();
  tape.watch(x);
  const y = x.reshape([...shape]);
  const dy = normal(2);
  const gradients = tape.backward(y, dy, [y, x, x]) as [Tensor, Tensor, Tensor];
  t.equal(new Set([dy, ...gradients]).size, 4);
  for (const gradient of gradients) t.strictSame(await gradient.data(), await dy.data());
});

t.test("gradients that are views of one another are handed out apart", async (t) => {
  const [a, b] = [Tensor.from([1, 2], [2]), Tensor.from([3, 4], [2])];
  using first = new Tape();
  first.watch(a, b);
  const dy = Tensor.from([5, 6, 7, 8], [4]);
  const parts = first.backward(concatenate([a, b], 0), dy, [a, b]);
  dy.write([0, 0, 0, 0]);
  t.strictSame(await Promise.all(parts.map((part) => part.data())), [
    Float32Array.of(5, 6),
    Float32Array.of(7, 8),
  ]);
  const x = Tensor.from([1, 2, 3, 4], [2, 2]);
  using second = new Tape();
  second.watch(x);
  const y = x.reshape([4]);
  const [dx, dflat] = second.backward(gelu(y), Tensor.from([1, 1, 1, 1], [4]), [x, y]) as [Tensor, Tensor];
  const before = await dflat.data();
  dx.write([0, 0, 0, 0]);
  t.strictSame(await dflat.data(), before);
});

t.test("products make the gradients that are wanted, with the same bits", async (t) => {
  const [x, weight, bias] = [normal(1, [16, 8]), Tensor.normal([4, 8], { seed: 2 }), Tensor.zeros([4])];
  const products = {
    linear: () => linear(x, weight, bias),
    matmul: () => matmul(x, weight, { transposeB: true, bias }),
  };
  for (const [name, product] of Object.entries(products)) {
    const gradients = async (watched: readonly Tensor[]) => {
      using tape = new Tape();
      tape.watch(...watched);
      const y = product();
      return Promise.all(tape.backward(y, Tensor.normal(y.shape, { seed: 3 }), watched).map((g) => g.bits()));
    };
    const all = await gradients([x, weight, bias]);
    for (const [at, tensor] of [x, weight, bias].entries()) {
      t.strictSame(await gradients([tensor]), [all[at]], `${name}: input ${at} alone`);
    }
  }
});

t.test("two tapes do not see each other", async (t) => {
  const [a, b] = [normal(1), normal(2)];
  using first = new Tape();
  using second = new Tape();
  first.watch(a);
  second.watch(b);
  const ofA = attention(a, a, a);
  const ofB = attention(b, b, b);
  const [da] = first.backward(ofA, normal(3), [a]) as [Tensor];
  const [db] = second.backward(ofB, normal(3), [b]) as [Tensor];
  t.notSame(await da.data(), await db.data());
  t.throws(() => first.backward(ofB, normal(3), [b]), {
    code: "ERR_OPTION",
    message: /output is not on this tape/,
  });
});

t.test("a tape that was disposed follows nothing any more", async (t) => {
  const q = Tensor.normal([1, 8, 1, 8], { device: new Device() });
  const tape = new Tape();
  tape.watch(q);
  tape.dispose();
  await q.device.synchronize();
  const before = q.device.memory().tensors;
  const out = attention(q, q, q);
  t.throws(() => tape.backward(out, out, [q]), { code: "ERR_DISPOSED" });
  t.throws(() => tape.watch(q), { code: "ERR_DISPOSED" });
  out.dispose();
  await q.device.synchronize();
  t.equal(q.device.memory().tensors, before, "and saves nothing");
});

t.test("what is saved is freed when it was used, and with the tape", async (t) => {
  const device = new Device();
  const x = Tensor.normal(shape, { device });
  const dout = Tensor.normal(shape, { device });
  const count = async () => {
    await device.synchronize();
    return device.memory().tensors;
  };
  const before = await count();
  const run = (shouldDiffer: boolean) =>
    Scope.run(() => {
      using tape = new Tape();
      tape.watch(x);
      const out = attention(attention(x, x, x), x, x)
        .permute(0, 2, 1, 3)
        .contiguous()
        .permute(0, 2, 1, 3);
      if (shouldDiffer) tape.backward(out, dout, [x]);
    });
  run(true);
  t.equal(await count(), before, "after backward");
  run(false);
  t.equal(await count(), before, "without");
  const tape = new Tape();
  Scope.run(() => {
    tape.watch(x);
    attention(x, x, x);
  });
  t.ok((await count()) > before, "kept while the tape is open");
  tape.dispose();
  tape.dispose();
  t.equal(await count(), before);
});

t.test("a gradient is let go once it is used", async (t) => {
  using device = new Device();
  const x = Tensor.normal([64, 1024], { device });
  const dy = Tensor.normal([64, 1024], { device });
  const tensors = 20;
  using tape = new Tape();
  tape.watch(x);
  let y = x;
  for (let i = 0; i < tensors; i++) y = y.to("float16").to("float32");
  await device.synchronize();
  device.resetPeak();
  const before = device.memory().liveBytes;
  const [dx] = tape.backward(y, dy, [x]);
  await device.synchronize();
  const taken = (device.memory().peakBytes - before) / x.bytes;
  t.ok(taken < tensors / 2, `${taken} at once of ${2 * tensors}`);
  dx?.dispose();
});

t.test(
  "a gradient that is asked for, or that others have, is not what a later one is written over",
  async (t) => {
    const [x, weight, dy] = [normal(1, [8, 16]), normal(2, [4, 16]), normal(3, [8, 4])];
    const pass = (others: (activated: Tensor) => Tensor[]) => {
      using tape = new Tape();
      tape.watch(x);
      const activated = gelu(x);
      const y = linear(activated, weight);
      return tape.backward(y, dy, [x, ...others(activated)]) as [Tensor, Tensor];
    };
    const [alone] = pass(() => []);
    const [dx, dactivated] = pass((activated) => [activated]);
    const expected = linear(dy, weight.permute(1, 0).contiguous());
    t.strictSame(await differing({ dx }, { dx: alone }), []);
    // A GPU's product sums in another order where an operand lies otherwise.
    t.ok(relativeError(await dactivated.data(), await expected.data()) < 1e-6);

    using tape = new Tape();
    tape.watch(x);
    const ones = Tensor.from(Array(x.size).fill(1), x.shape);
    const [twice] = tape.backward(gelu(x), ones, [x]);
    t.ok(
      (await ones.data()).every((value: number) => value === 1),
      "the caller's stays",
    );
    twice?.dispose();

    const rows = ones.reshape([16, 8]);
    using another = new Tape();
    another.watch(x);
    another.backward(gelu(x).reshape([16, 8]), rows, [x])[0]?.dispose();
    using view = new Tape();
    view.watch(x);
    const [given] = view.backward(x.reshape([16, 8]), rows, [x]) as [Tensor];
    given.write(Array(x.size).fill(0));
    for (const value of await ones.data()) t.equal(value, 1, "also through a view: what is returned is new");
  },
);
