// What the activations and `add` refuse, at the call and before anything is queued.
import { add, type GeluOptions, gelu, geluBackward, swiglu, swigluBackward, Tape, Tensor } from "longseq";
import t from "tap";
import { refuses } from "../support/refusals.ts";

const x = Tensor.zeros([2, 4]);
const narrow = Tensor.zeros([2, 4], { dtype: "bfloat16" });
const gone = Tensor.zeros([4]);
gone.dispose();
const withOptions = (options: object) => () => gelu(x, options as GeluOptions);

t.test("activations", async (t) => {
  refuses(t, [
    [() => gelu([1] as never), "ERR_OPTION", "gelu: x is an array, expected a Tensor"],
    [() => gelu(gone), "ERR_DISPOSED", "gelu: x was disposed"],
    [() => gelu(Tensor.zeros([])), "ERR_SHAPE", "gelu: x has no axes, expected [..., F]"],
    [
      () => gelu(Tensor.zeros([4], { dtype: "int32" })),
      "ERR_DTYPE",
      "gelu: x is int32, expected float32, bfloat16 or float16",
    ],
    [() => gelu(x.permute(1, 0)), "ERR_SHAPE", "gelu: x's last axis has stride 4, expected 1"],
    [() => gelu(x, null as never), "ERR_OPTION", "gelu: options is null, expected an object"],
    [
      withOptions({ approximate: "sigmoid" }),
      "ERR_OPTION",
      'gelu: approximate is sigmoid, expected "none" or "tanh"',
    ],
    [withOptions({ bias: 1 }), "ERR_OPTION", "gelu: bias is number, expected a Tensor"],
    [withOptions({ bias: gone }), "ERR_DISPOSED", "gelu: bias was disposed"],
    [withOptions({ bias: x }), "ERR_SHAPE", "gelu: bias has the shape [2, 4], expected [4] (the rows of x)"],
    [
      withOptions({ bias: Tensor.zeros([3]) }),
      "ERR_SHAPE",
      "gelu: bias has the shape [3], expected [4] (the rows of x)",
    ],
    [
      withOptions({ bias: Tensor.zeros([4], { dtype: "bfloat16" }) }),
      "ERR_DTYPE",
      "gelu: bias is bfloat16, expected float32 (that of x)",
    ],
    [
      withOptions({ bias: Tensor.zeros([4, 2]).select(1, 0) }),
      "ERR_SHAPE",
      "gelu: bias has stride 2, expected 1",
    ],
    [
      () => geluBackward(null as never),
      "ERR_OPTION",
      "geluBackward: tensors is null, expected an object of Tensors",
    ],
    [
      () => geluBackward({ x, dy: Tensor.zeros([4, 2]) }),
      "ERR_SHAPE",
      "gelu: dy has the shape [4, 2], expected [2, 4] (that of x)",
    ],
    [
      () => geluBackward({ x, dy: narrow }),
      "ERR_DTYPE",
      "gelu: dy is bfloat16, expected float32 (that of x)",
    ],
    [() => swiglu(x, 1 as never), "ERR_OPTION", "swiglu: up is number, expected a Tensor"],
    [() => swiglu(x, narrow), "ERR_DTYPE", "swiglu: up is bfloat16, expected float32 (that of gate)"],
    [
      () => swiglu(x, Tensor.zeros([2, 5])),
      "ERR_SHAPE",
      "swiglu: up has the shape [2, 5], expected [2, 4] (that of gate)",
    ],
    [() => swigluBackward({ gate: x, up: x, dy: gone }), "ERR_DISPOSED", "swiglu: dy was disposed"],
  ]);
});

t.test("add", async (t) => {
  refuses(t, [
    [() => add(x, 1 as never), "ERR_OPTION", "add: b is number, expected a Tensor"],
    [() => add(gone, gone), "ERR_DISPOSED", "add: a was disposed"],
    [() => add(x, narrow), "ERR_DTYPE", "add: the terms are float32 and bfloat16, expected one dtype"],
    [() => add(x, Tensor.zeros([4])), "ERR_SHAPE", "add: the terms have the shapes [2, 4] and [4]"],
  ]);
});

t.test("add: values and gradients", async (t) => {
  using tape = new Tape();
  const [a, b] = [Tensor.from([1, 2, 3, 4], [2, 2]), Tensor.from([10, 20, 30, 40], [2, 2])];
  tape.watch(a, b);
  const y = add(add(a, b.permute(1, 0)), a);
  t.same(Array.from(await y.data()), [12, 34, 26, 48]);
  const [da, db] = tape.backward(y, Tensor.from([1, 2, 3, 4], [2, 2]), [a, b]) as [Tensor, Tensor];
  t.same(Array.from(await da.data()), [2, 4, 6, 8]);
  t.same(Array.from(await db.data()), [1, 3, 2, 4]);
  t.same(
    Array.from(
      await add(
        Tensor.from([2 ** 31 - 1], [1], { dtype: "int32" }),
        Tensor.from([5], [1], { dtype: "int32" }),
      ).data(),
    ),
    [2 ** 31 - 1],
  );
  t.same(add(Tensor.zeros([0, 3]), Tensor.zeros([0, 3])).shape, [0, 3]);
});
