// What cross entropy refuses, with which code and which words.
import { crossEntropy, crossEntropyBackward, crossEntropyForward, Device, type DType, Tensor } from "longseq";
import t from "tap";
import { refuses } from "../support/refusals.ts";

const zeros = (shape: number[], dtype: DType = "float32") => Tensor.zeros(shape, { dtype });
const [logits, targets] = [zeros([3, 5]), zeros([3], "int32")];
const given = { logits, targets, ...crossEntropyForward(logits, targets), dloss: zeros([]) };
const gone = zeros([3, 5]);
gone.dispose();

t.test("refusals", async (t) => {
  using other = new Device();
  refuses(t, [
    [
      () => crossEntropy(zeros([]), targets),
      "ERR_SHAPE",
      "crossEntropy: logits has the shape [], expected at least one axis",
    ],
    [
      () => crossEntropy(zeros([5, 3]).permute(1, 0), targets),
      "ERR_SHAPE",
      "crossEntropy: logits's last axis has stride 3, expected 1",
    ],
    [
      () => crossEntropy(logits, zeros([4], "int32")),
      "ERR_SHAPE",
      "crossEntropy: targets has the shape [4], expected one element for each row of logits, which is [3, 5]",
    ],
    [() => crossEntropy(logits, zeros([3, 1], "int32")), "ERR_SHAPE", /targets has the shape/],
    [
      () => crossEntropy(zeros([3, 5], "int32"), targets),
      "ERR_DTYPE",
      /logits is int32, expected float32, bfloat16 or float16/,
    ],
    [() => crossEntropy(logits, zeros([3])), "ERR_DTYPE", "crossEntropy: targets is float32, expected int32"],
    [
      () => crossEntropy(logits, Tensor.zeros([3], { dtype: "int32", device: other })),
      "ERR_DEVICE",
      "crossEntropy: targets is on another device than logits",
    ],
    [
      () => crossEntropy(logits, targets, { reduction: "max" as never }),
      "ERR_OPTION",
      'crossEntropy: reduction is "max", expected "mean", "sum" or "none"',
    ],
    [
      () => crossEntropy(logits, targets, { reduction: 1 as never }),
      "ERR_OPTION",
      /reduction is number, expected a string/,
    ],
    [
      () => crossEntropy(logits, targets, { ignoreIndex: 1.5 }),
      "ERR_OPTION",
      "crossEntropy: ignoreIndex is 1.5, expected an int32",
    ],
    [
      () => crossEntropy(logits, targets, { ignoreIndex: 2 ** 31 }),
      "ERR_OPTION",
      /ignoreIndex is 2147483648, expected an int32/,
    ],
    [
      () => crossEntropy(logits, targets, { ignoreIndex: "1" as never }),
      "ERR_OPTION",
      /ignoreIndex is string, expected an int32/,
    ],
    [
      () => crossEntropy(logits, targets, { overwriteLogits: 1 as never }),
      "ERR_OPTION",
      /overwriteLogits is number, expected a boolean/,
    ],
    [
      () => crossEntropy(logits, [1] as never),
      "ERR_OPTION",
      "crossEntropy: targets is an array, expected a Tensor",
    ],
    [
      () => crossEntropyBackward(null as never),
      "ERR_OPTION",
      /crossEntropyBackward: tensors is null, expected an object/,
    ],
    [
      () => crossEntropyBackward({ ...given, dloss: zeros([3]) }),
      "ERR_SHAPE",
      "crossEntropy: dloss has the shape [3], expected one element",
    ],
    [
      () => crossEntropyBackward({ ...given, count: zeros([2]) }),
      "ERR_SHAPE",
      /count has the shape \[2\], expected one element/,
    ],
    [
      () => crossEntropyBackward({ ...given, logSumExp: zeros([5]) }),
      "ERR_SHAPE",
      /logSumExp has the shape \[5\]/,
    ],
    [
      () => crossEntropyBackward(given, { reduction: "none" }),
      "ERR_SHAPE",
      /dloss has the shape \[\], expected one element for each row/,
    ],
    [
      () => crossEntropyBackward({ ...given, dloss: zeros([], "bfloat16") }),
      "ERR_DTYPE",
      /dloss is bfloat16, expected float32/,
    ],
    [() => crossEntropy(gone, targets), "ERR_DISPOSED", "crossEntropy: logits was disposed"],
    [
      () => crossEntropyBackward({ ...given, logits: gone }),
      "ERR_DISPOSED",
      "crossEntropy: logits was disposed",
    ],
  ]);
});
