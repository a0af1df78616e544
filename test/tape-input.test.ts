import { add, attention, concatenate, Device, layerNorm, Tape, Tensor } from "longseq";
import t from "tap";
import { refuses } from "./support/refusals.ts";

const shape = [2, 3];

t.test("bad input", async (t) => {
  const x = Tensor.normal(shape);
  const gone = Tensor.zeros([1]);
  gone.dispose();
  using tape = new Tape();
  tape.watch(x);
  const y = x.to("bfloat16");
  refuses(t, [
    [() => tape.watch(gone), "ERR_DISPOSED", /^watch: a tensor was disposed/],
    [() => tape.watch({ x: {} } as never), "ERR_OPTION", /^watch: a tensor is object/],
    [() => tape.watch(1 as never), "ERR_OPTION", /^watch: a tensor is number/],
    [
      () => tape.backward(x, x, { gone: 1 as never }),
      "ERR_OPTION",
      /wrt\["gone"\] is number, expected a Tensor/,
    ],
    [() => tape.backward(x, x, { x, z: gone }), "ERR_OPTION", /wrt\["z"\] is not on this tape/],
    [() => tape.backward(y, x, [x]), "ERR_DTYPE", /gradient is float32, expected bfloat16/],
    [() => tape.backward(x, Tensor.zeros([1]), [x]), "ERR_SHAPE", /gradient is \[1\]/],
    [() => tape.backward(Tensor.zeros(shape), x, [x]), "ERR_OPTION", /not on this tape/],
    [() => tape.backward(null as never, x, [x]), "ERR_OPTION", /output is null/],
    [() => tape.backward(x, gone, [x]), "ERR_DISPOSED", /gradient was disposed/],
    [() => tape.backward(x, x, [x, 1 as never]), "ERR_OPTION", /wrt\[1\] is number, expected a Tensor/],
    [
      () => tape.backward(x, x, [x, Tensor.zeros(shape)]),
      "ERR_OPTION",
      "backward: wrt[1] is not on this tape: watch it before it is used",
    ],
  ]);
  const [dx] = tape.backward(y, Tensor.zeros(shape, { dtype: "bfloat16" }), [x]) as [Tensor];
  t.equal(dx.dtype, "float32", "a refused call leaves the tape as it was");
});

t.test("steps are used up by backward and by dispose", async (t) => {
  const q = Tensor.normal([1, 8, 1, 8]);
  using tape = new Tape();
  using other = new Tape();
  tape.watch(q);
  const [out, unused] = [attention(q, q, q), q.slice(1, 0, 4)];
  tape.backward(out, Tensor.normal(out.shape), [q]);
  const again = (on: Tape, output: Tensor) => () => on.backward(output, output, [q]);
  const why = /^backward: output is not on this tape any more, its steps are used up/;
  refuses(t, [
    [again(tape, out), "ERR_OPTION", why],
    [again(tape, unused), "ERR_OPTION", why],
    [again(other, out), "ERR_OPTION", /^backward: output is not on this tape$/],
  ]);
  tape.dispose();
  refuses(t, [[again(tape, out), "ERR_DISPOSED", "backward: the tape was disposed"]]);
});

t.test("an operation whose inputs are on two open tapes", async (t) => {
  // Of its own, so that what the collector takes of other tests does not count.
  const device = new Device(Device.default.kind);
  const [a, b] = [Tensor.normal(shape, { device }), Tensor.normal(shape, { device })];
  using first = new Tape();
  first.watch(a);
  {
    using second = new Tape();
    second.watch(b);
    await device.synchronize();
    const before = device.memory().tensors;
    refuses(t, [
      [() => add(a, b), "ERR_OPTION", "add: inputs are on two open tapes, expected one"],
      [() => concatenate([a, b, a], 0), "ERR_OPTION", /^concatenate: inputs are on two open tapes/],
      [() => layerNorm(a, b.select(0, 0), null), "ERR_OPTION", /^layerNorm: inputs are on two open tapes/],
    ]);
    second.dispose();
    await device.synchronize();
    t.equal(device.memory().tensors, before, "and leaves nothing behind");
  }
  const sum = add(a, b);
  const dsum = Tensor.from([1, 2, 3, 4, 5, 6], shape, { device });
  const [da] = first.backward(sum, dsum, [a]) as [Tensor];
  t.same(await da.data(), [1, 2, 3, 4, 5, 6], "a tape that was disposed does not count");
});

t.test("what another tape has come to watch stays on that", async (t) => {
  const x = Tensor.normal(shape);
  using first = new Tape();
  using second = new Tape();
  first.watch(x);
  const y = add(x, x);
  second.watch(y);
  const z = add(y, y);
  refuses(t, [[() => first.backward(y, x, [x]), "ERR_OPTION", /output is not on this tape/]]);
  first.backward(x, x, [x]);
  const [dy] = second.backward(z, Tensor.from([1, 2, 3, 4, 5, 6], shape), [y]) as [Tensor];
  t.same(await dy.data(), [2, 4, 6, 8, 10, 12]);
});
