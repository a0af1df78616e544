// What softmax refuses, with which code and which words.
import { Device, type DType, softmax, softmaxBackward, Tape, Tensor } from "longseq";
import t from "tap";
import { refuses } from "../support/refusals.ts";

const zeros = (shape: number[], dtype: DType = "float32") => Tensor.zeros(shape, { dtype });
const mask = (shape: number[]) => ({ mask: zeros(shape, "uint8") });
const x = zeros([2, 3, 4]);
const gone = zeros([1]);
gone.dispose();

t.test("refusals", async (t) => {
  using other = new Device();
  refuses(t, [
    [() => softmax(zeros([])), "ERR_SHAPE", "softmax: x has the shape [], expected at least one axis"],
    [
      () => softmax(zeros([4]), { causal: true }),
      "ERR_SHAPE",
      "softmax: x has the shape [4], expected [..., Sq, Sk] for causal",
    ],
    [() => softmax(x.permute(0, 2, 1)), "ERR_SHAPE", "softmax: x's last axis has stride 4, expected 1"],
    [
      () => softmax(x, mask([3, 3])),
      "ERR_SHAPE",
      "softmax: mask has the shape [3, 3], expected one that broadcasts to [2, 3, 4] (that of x) with rows of 4",
    ],
    ...[[2, 4], [1, 2, 3, 4], [3, 1], [1], []].map((shape): [() => unknown, "ERR_SHAPE", RegExp] => [
      () => softmax(x, mask(shape)),
      "ERR_SHAPE",
      /softmax: mask has the shape/,
    ]),
    [
      () => softmax(x, { mask: zeros([4, 3], "uint8").permute(1, 0) }),
      "ERR_SHAPE",
      "softmax: mask's last axis has stride 3, expected 1",
    ],
    [
      () => softmax(zeros([4], "uint8")),
      "ERR_DTYPE",
      "softmax: x is uint8, expected float32, bfloat16 or float16",
    ],
    [() => softmax(x, { mask: x }), "ERR_DTYPE", "softmax: mask is float32, expected uint8"],
    [
      () => softmaxBackward({ out: x, dout: zeros([2, 3, 4], "bfloat16") }),
      "ERR_DTYPE",
      /softmax: dout is bfloat16/,
    ],
    [
      () => softmaxBackward({ out: x, dout: zeros([3, 4]) }),
      "ERR_SHAPE",
      /softmax: dout has the shape \[3, 4\], expected \[2, 3, 4\] \(that of out\)/,
    ],
    [
      () => softmax(x, { mask: Tensor.zeros([4], { dtype: "uint8", device: other }) }),
      "ERR_DEVICE",
      "softmax: mask is on another device than x",
    ],
    [
      () => softmax(x, { scale: Number.POSITIVE_INFINITY }),
      "ERR_OPTION",
      "softmax: scale is not a finite float32",
    ],
    [
      () => softmaxBackward({ out: x, dout: x }, { scale: 1e300 }),
      "ERR_OPTION",
      "softmax: scale is not a finite float32",
    ],
    [() => softmax(x, { scale: "1" as never }), "ERR_OPTION", "softmax: scale is string, expected a number"],
    [() => softmax(x, { causal: 1 as never }), "ERR_OPTION", "softmax: causal is number, expected a boolean"],
    [() => softmax(x, { mask: [1] as never }), "ERR_OPTION", "softmax: mask is an array, expected a Tensor"],
    [() => softmax(null as never), "ERR_OPTION", "softmax: x is null, expected a Tensor"],
    [
      () => softmaxBackward(null as never),
      "ERR_OPTION",
      /softmaxBackward: tensors is null, expected an object/,
    ],
    [() => softmax(gone), "ERR_DISPOSED", "softmax: x was disposed"],
  ]);
});

t.test("rows without columns, however many", async (t) => {
  const x = Tensor.empty([2 ** 31 - 1, 0]);
  using tape = new Tape();
  tape.watch(x);
  const y = softmax(x);
  const [dx] = tape.backward(y, Tensor.empty([2 ** 31 - 1, 0]), [x]);
  t.strictSame(dx?.shape, [2 ** 31 - 1, 0]);
  t.equal((await y.data()).length, 0);
});
