import { attention, Tape, Tensor } from "longseq";
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
    [() => tape.watch({} as never), "ERR_OPTION", /^watch: a tensor is object/],
    [() => tape.backward(y, x, [x]), "ERR_DTYPE", /gradient is float32, expected bfloat16/],
    [() => tape.backward(x, Tensor.zeros([1]), [x]), "ERR_SHAPE", /gradient is \[1\]/],
    [() => tape.backward(Tensor.zeros(shape), x, [x]), "ERR_OPTION", /not on this tape/],
    [() => tape.backward(null as never, x, [x]), "ERR_OPTION", /output is null/],
    [() => tape.backward(x, gone, [x]), "ERR_DISPOSED", /gradient was disposed/],
  ]);
  const [dx] = tape.backward(y, Tensor.zeros(shape, { dtype: "bfloat16" }), [x]) as [Tensor];
  t.equal(dx.dtype, "float32", "a refused call leaves the tape as it was");
});

t.test("steps are used up by backward and by dispose", async (t) => {
  for (const use of ["backward", "dispose"]) {
    const tape = new Tape();
    const q = Tensor.normal([1, 8, 1, 8]);
    tape.watch(q);
    const out = attention(q, q, q);
    if (use === "backward") tape.backward(out, out, [q]);
    else tape.dispose();
    t.throws(() => tape.backward(out, out, [q]), { code: "ERR_OPTION" }, use);
  }
});
