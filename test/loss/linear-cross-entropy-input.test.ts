// What linearCrossEntropy refuses, with which code and which words.
import { Device, type DType, linearCrossEntropy, Tensor } from "longseq";
import t from "tap";
import { refuses } from "../support/refusals.ts";

const zeros = (shape: number[], dtype: DType = "float32") => Tensor.zeros(shape, { dtype });
const [x, weight, targets] = [zeros([2, 3, 4]), zeros([5, 4]), zeros([2, 3], "int32")];
const gone = zeros([5, 4]);
gone.dispose();

t.test("refusals", async (t) => {
  using other = new Device();
  const elsewhere = Tensor.zeros([5, 4], { device: other });
  const loss = (options: object) => () => linearCrossEntropy(x, weight, targets, options);
  refuses(t, [
    [
      () => linearCrossEntropy(zeros([]), weight, targets),
      "ERR_SHAPE",
      "linearCrossEntropy: x has no axis, expected [.., C]",
    ],
    [
      () => linearCrossEntropy(x, zeros([4, 5]), targets),
      "ERR_SHAPE",
      "linearCrossEntropy: weight has the shape [4, 5], expected [V, 4] (the columns of x)",
    ],
    [() => linearCrossEntropy(x, zeros([4]), targets), "ERR_SHAPE", /weight has the shape \[4\]/],
    [
      () => linearCrossEntropy(x, weight, zeros([6], "int32")),
      "ERR_SHAPE",
      "linearCrossEntropy: targets has the shape [6], expected [2, 3] (the rows of x)",
    ],
    [
      () => linearCrossEntropy(zeros([2, 3, 4], "int32"), weight, targets),
      "ERR_DTYPE",
      "linearCrossEntropy: x is int32, expected float32, bfloat16 or float16",
    ],
    [
      () => linearCrossEntropy(x, zeros([5, 4], "bfloat16"), targets),
      "ERR_DTYPE",
      "linearCrossEntropy: weight is bfloat16, expected float32 (that of x)",
    ],
    [
      () => linearCrossEntropy(x, weight, zeros([2, 3])),
      "ERR_DTYPE",
      "linearCrossEntropy: targets is float32, expected int32",
    ],
    [
      () => linearCrossEntropy(x, elsewhere, targets),
      "ERR_DEVICE",
      "linearCrossEntropy: weight is on another device than x",
    ],
    [
      loss({ reduction: "none" }),
      "ERR_OPTION",
      'linearCrossEntropy: reduction is "none", expected "mean" or "sum"',
    ],
    [loss({ reduction: 1 }), "ERR_OPTION", "linearCrossEntropy: reduction is number, expected a string"],
    [loss({ ignoreIndex: 0.5 }), "ERR_OPTION", "linearCrossEntropy: ignoreIndex is 0.5, expected an int32"],
    [
      loss({ tileRows: 0 }),
      "ERR_OPTION",
      "linearCrossEntropy: tileRows is 0, expected an integer of 1 or more",
    ],
    [loss({ tileRows: "1" }), "ERR_OPTION", /tileRows is 1, expected an integer/],
    [
      loss({ count: 1, reduction: "sum" }),
      "ERR_OPTION",
      'linearCrossEntropy: count is given for the reduction "sum", which does not divide',
    ],
    [loss({ count: -1 }), "ERR_OPTION", "linearCrossEntropy: count is -1, expected an integer of 0 or more"],
    [
      loss({ count: "1" }),
      "ERR_OPTION",
      "linearCrossEntropy: count is string, expected a number or a Tensor",
    ],
    [
      loss({ count: zeros([2]) }),
      "ERR_SHAPE",
      "linearCrossEntropy: count has the shape [2], expected one element",
    ],
    [
      loss({ count: zeros([], "int32") }),
      "ERR_DTYPE",
      "linearCrossEntropy: count is int32, expected float32",
    ],
    [
      loss({ count: Tensor.zeros([], { device: other }) }),
      "ERR_DEVICE",
      "linearCrossEntropy: count is on another device than x",
    ],
    [
      loss({ dweight: zeros([4, 5]) }),
      "ERR_SHAPE",
      "linearCrossEntropy: dweight has the shape [4, 5], expected [5, 4], contiguous",
    ],
    [
      loss({ dweight: zeros([5, 4], "bfloat16") }),
      "ERR_DTYPE",
      "linearCrossEntropy: dweight is bfloat16, expected float32",
    ],
    [() => linearCrossEntropy(x, weight, targets, null as never), "ERR_OPTION", /options is null/],
    [
      () => linearCrossEntropy(x, 1 as never, targets),
      "ERR_OPTION",
      "linearCrossEntropy: weight is number, expected a Tensor",
    ],
    [() => linearCrossEntropy(x, gone, targets), "ERR_DISPOSED", "linearCrossEntropy: weight was disposed"],
    [loss({ dweight: gone }), "ERR_DISPOSED", "linearCrossEntropy: dweight was disposed"],
  ]);
});
