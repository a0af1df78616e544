// What an operation on a tape has saved must be what it was when its product is asked for.
import {
  AdamW,
  AttentionMask,
  attention,
  attentionBackward,
  attentionForward,
  Communicator,
  crossEntropyBackward,
  crossEntropyForward,
  Device,
  embedding,
  gelu,
  linear,
  linearCrossEntropy,
  matmul,
  serial,
  Tape,
  Tensor,
  TransformerLayer,
  zigzag,
} from "longseq";
import t from "tap";

const refusal = (operation: string) => ({
  code: "ERR_OPTION",
  message: `backward: a tensor that ${operation} has saved was written since, expected its values of then`,
});

function ofZeros(options: { out: Tensor }): void {
  matmul(Tensor.zeros([16, 2]), Tensor.zeros([2, 8]), options);
}

/** As a place for dk. */
function addedTo(k: Tensor): void {
  const q = Tensor.zeros(k.shape);
  const result = attentionForward(q, q, q);
  attentionBackward({ q, k: q, v: q, ...result, dout: q }, { addTo: { dk: k } });
}

function received(k: Tensor): void {
  const ranks = Communicator.local([k.device, new Device()]);
  for (const [rank, communicator] of ranks.entries()) {
    const { device } = communicator;
    communicator.broadcast(rank === 0 ? k : Tensor.zeros(k.shape, { device }), 1).wait();
  }
}

t.test("what was written since is refused", async (t) => {
  const inputs = () =>
    [1, 2, 3].map((seed) => Tensor.normal([1, 8, 2, 8], { seed })) as [Tensor, Tensor, Tensor];
  const zeros = new Float32Array(128);
  const writes: [name: string, write: (tensors: { k: Tensor; out: Tensor }) => void][] = [
    ["an input", ({ k }) => k.write(zeros)],
    ["an input, by a tensor", ({ k }) => k.write(Tensor.zeros(k.shape))],
    ["an input, as a product's place", ({ k }) => ofZeros({ out: k.reshape([16, 8]) })],
    ["an input, as a sum", ({ k }) => addedTo(k)],
    ["an input, received", ({ k }) => received(k)],
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

t.test("logits whose gradient took their place are no longer what they were", async (t) => {
  const [logits, targets] = [Tensor.normal([4, 8]), Tensor.zeros([4], { dtype: "int32" })];
  using tape = new Tape();
  tape.watch(logits);
  const y = gelu(logits);
  const given = { logits, targets, ...crossEntropyForward(logits, targets), dloss: Tensor.from([1], []) };
  crossEntropyBackward(given, { overwriteLogits: true });
  t.throws(() => tape.backward(y, Tensor.normal(y.shape), [logits]), refusal("gelu"));
});

t.test("sums of gradients may have other values by the backward pass", async (t) => {
  const indices = Tensor.from(Int32Array.of(1, 3), [2]);
  const weight = Tensor.normal([8, 8], { seed: 2 });
  const x = Tensor.normal([2, 8], { seed: 1 });
  const targets = Tensor.from(Int32Array.of(0, 7), [2]);
  const products: [name: string, product: (sum: Tensor) => Tensor][] = [
    ["linear", (dweight) => linear(x, weight, undefined, { dweight })],
    ["embedding", (dtable) => embedding(weight, indices, { dtable })],
    ["linearCrossEntropy", (dweight) => linearCrossEntropy(x, weight, targets, { dweight })],
  ];
  for (const [name, product] of products) {
    const gradient = async (between: (sum: Tensor) => void) => {
      const sum = Tensor.zeros(weight.shape);
      using tape = new Tape();
      tape.watch(weight);
      const y = product(sum);
      between(sum);
      tape.backward(y, Tensor.normal(y.shape, { seed: 3 }), [weight]);
      return sum.bits();
    };
    const dirty = await gradient((sum) => {
      sum.write(Tensor.normal(sum.shape, { seed: 4 }));
      sum.write(new Float32Array(64));
    });
    t.strictSame(dirty, await gradient(() => undefined), name);
  }
  const layer = new TransformerLayer({ hidden: 16, heads: 2 }, serial(4));
  const parameters = Object.entries(layer.parameters);
  const gradients = Object.fromEntries(parameters.map(([name, { shape }]) => [name, Tensor.zeros(shape)]));
  using tape = new Tape();
  tape.watch(...Object.values(layer.parameters));
  const y = layer.forward(Tensor.normal([1, 4, 16]), { gradients });
  for (const sum of Object.values(gradients)) sum.write(new Float32Array(sum.size));
  tape.backward(y, Tensor.normal(y.shape), []);
  t.ok((await gradients["qkv.weight"]?.data())?.some((value) => value !== 0));
});

t.test("the places of gradients are those of the call, and are kept", async (t) => {
  const x = Tensor.normal([1, 4, 16]);
  const dy = Tensor.normal([1, 4, 16], { seed: 1 });
  for (const recompute of ["none", "pointwise", "attention", "full"] as const) {
    const layer = new TransformerLayer({ hidden: 16, heads: 2 }, serial(4), { recompute });
    const sum = Tensor.zeros([48, 16]);
    const kept = sum.slice(0, 0, 48);
    const [other, gradients] = [Tensor.zeros([48, 16]), { "qkv.weight": sum }];
    using tape = new Tape();
    tape.watch(x, ...Object.values(layer.parameters));
    const y = layer.forward(x, { gradients });
    sum.dispose();
    gradients["qkv.weight"] = other;
    tape.backward(y, dy, [x]);
    t.ok(
      (await kept.data()).some((value) => value !== 0),
      recompute,
    );
    t.ok(
      (await other.data()).every((value) => value === 0),
      recompute,
    );
  }
});

t.test("masks, boundaries and positions are those of the call", async (t) => {
  const q = Tensor.normal([1, 32, 2, 8]);
  const dout = Tensor.normal(q.shape, { seed: 1 });
  /** Of what is made of a mask of two documents, their boundaries, and the pieces that hold the rows. */
  const gradient = async (
    isChanged: boolean,
    make: (given: {
      mask: AttentionMask;
      cuSeqlens: Int32Array;
      pieces: { start: number; length: number }[];
    }) => Tensor,
  ) => {
    const cuSeqlens = Int32Array.of(0, 9, 32);
    const mask = AttentionMask.documents(cuSeqlens);
    const pieces = [{ start: 0, length: 32 }];
    using tape = new Tape();
    tape.watch(q);
    const out = make({ mask, cuSeqlens, pieces });
    if (isChanged) {
      mask.dispose();
      cuSeqlens[1] = 20;
      for (const piece of pieces) piece.start = 5;
    }
    return tape.backward(out, dout, [q])[0]?.bits();
  };
  const layer = (recompute: "full" | "attention" | "none") => {
    const made = new TransformerLayer({ hidden: 16, heads: 2 }, serial(32), { recompute });
    return (options: object) => made.forward(q.reshape([1, 32, 16]), options);
  };
  const alone = () => zigzag(Communicator.local([q.device])[0] as Communicator, 32);
  const made: [name: string, (options: object) => Tensor][] = [
    ["attention", (options) => attention(q, q, q, options)],
    ["zigzag", (options) => alone().attend(q, q, q, options)],
    ["a layer", layer("none")],
    ["a layer that keeps attention", layer("attention")],
    ["a layer that keeps nothing", layer("full")],
  ];
  for (const [name, make] of made) {
    for (const option of ["mask", "cuSeqlens"] as const) {
      const of = (isChanged: boolean) =>
        gradient(isChanged, (given) => make({ [option]: given[option], causal: true }).reshape(q.shape));
      t.strictSame(await of(true), await of(false), `${name}: ${option}`);
    }
  }
  const placed = (isChanged: boolean) =>
    gradient(isChanged, ({ pieces }) => attention(q, q, q, { queryPositions: pieces, causal: true }));
  t.strictSame(await placed(true), await placed(false), "positions");
});
