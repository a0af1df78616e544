// What an operation on a tape has saved must be what it was when its product is asked for.
import { AdamW, attention, gelu, linear, Tape, Tensor } from "longseq";
import t from "tap";

const refusal = (operation: string) => ({
  code: "ERR_OPTION",
  message: `backward: a tensor that ${operation} has saved was written since, expected its values of then`,
});

t.test("what was written since is refused", async (t) => {
  const inputs = () =>
    [1, 2, 3].map((seed) => Tensor.normal([1, 8, 2, 8], { seed })) as [Tensor, Tensor, Tensor];
  const zeros = new Float32Array(128);
  const writes: [name: string, write: (tensors: { k: Tensor; out: Tensor }) => void][] = [
    ["an input", ({ k }) => k.write(zeros)],
    ["an input, by a tensor", ({ k }) => k.write(Tensor.zeros(k.shape))],
    ["the output", ({ out }) => out.write(zeros)],
    ["a part of an input, by a view", ({ k }) => k.slice(1, 0, 1).write(zeros.subarray(0, 16))],
    ["an input, by an optimizer", ({ k }) => new AdamW([k]).step([Tensor.zeros(k.shape)])],
  ];
  for (const [name, write] of writes) {
    const [q, k, v] = inputs();
    using tape = new Tape();
    tape.watch(q, k, v);
    const out = attention(q, k, v);
    write({ k, out });
    t.throws(() => tape.backward(out, Tensor.normal(out.shape), [q]), refusal("attention"), name);
  }
});

t.test("a write before, of others, or of what nobody needs again is not", async (t) => {
  const x = Tensor.normal([4, 8], { seed: 1 });
  const weight = Tensor.normal([8, 8], { seed: 2 });
  x.write(new Float32Array(32).fill(0.5));
  const dy = Tensor.normal([4, 8], { seed: 3 });
  const gradient = (between: (y: Tensor) => void) => {
    using tape = new Tape();
    tape.watch(weight);
    const y = linear(x, weight);
    between(y);
    return tape.backward(y, dy, [weight])[0]?.bits();
  };
  const expected = await gradient(() => undefined);
  const others = await gradient((y) => {
    Tensor.zeros([4]).write([1, 2, 3, 4]);
    y.write(new Float32Array(32)); // a product does not need its result
  });
  t.strictSame(others, expected);
});

t.test("what is made again is of what was saved", async (t) => {
  const x = Tensor.normal([4, 8], { seed: 1 });
  const weight = Tensor.normal([8, 8], { seed: 2 });
  using tape = new Tape();
  tape.watch(x, weight);
  const y = linear(gelu(x), weight);
  x.write(new Float32Array(32));
  t.throws(() => tape.backward(y, Tensor.normal(y.shape), [weight, x]), { code: "ERR_OPTION" });
});
