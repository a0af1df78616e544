// What norms refuse, with which code and which words, before anything is queued.
import {
  addLayerNorm,
  addRmsNorm,
  Device,
  type DType,
  layerNorm,
  layerNormBackward,
  layerNormForward,
  rmsNorm,
  rmsNormBackward,
  Tensor,
} from "longseq";
import t from "tap";
import { refuses } from "../support/refusals.ts";

const zeros = (shape: number[], dtype: DType = "float32") => Tensor.zeros(shape, { dtype });
const [x, weight] = [zeros([3, 4]), zeros([4])];
const gone = zeros([3, 4]);
gone.dispose();
const { mean, reciprocalDeviation } = layerNormForward(x, weight, weight);
const given = { x, weight, mean, reciprocalDeviation, dout: x };

t.test("shapes", async (t) => {
  refuses(t, [
    [() => rmsNorm(x, zeros([2])), "ERR_SHAPE", "rmsNorm: weight has 2 values, expected 4 (the rows of x)"],
    [
      () => layerNorm(x, weight, zeros([5])),
      "ERR_SHAPE",
      "layerNorm: bias has 5 values, expected 4 (the rows of x)",
    ],
    [
      () => layerNorm(x, zeros([1, 4]), null),
      "ERR_SHAPE",
      /layerNorm: weight has the shape \[1, 4\], expected \[4\]/,
    ],
    [
      () => layerNorm(x, zeros([4, 2]).select(1, 0), null),
      "ERR_SHAPE",
      /weight has the shape \[4\], expected \[4\] without gaps/,
    ],
    [
      () => rmsNorm(zeros([]), weight),
      "ERR_SHAPE",
      "rmsNorm: x has the shape [], expected at least one axis",
    ],
    [
      () => rmsNorm(zeros([4, 4]).permute(1, 0), weight),
      "ERR_SHAPE",
      "rmsNorm: x's last axis has stride 4, expected 1",
    ],
    [
      () => addRmsNorm(x, zeros([4, 3]), weight),
      "ERR_SHAPE",
      "rmsNorm: residual has the shape [4, 3], expected [3, 4] (that of x)",
    ],
    [() => addLayerNorm(x, zeros([4]), weight, null), "ERR_SHAPE", /layerNorm: residual has the shape \[4\]/],
    [
      () => layerNormBackward({ ...given, dout: zeros([3, 5]) }),
      "ERR_SHAPE",
      /layerNorm: dout has the shape/,
    ],
    [
      () => layerNormBackward({ ...given, dsum: zeros([2, 4]) }),
      "ERR_SHAPE",
      /layerNorm: dsum has the shape/,
    ],
    [
      () => layerNormBackward({ ...given, mean: zeros([4]) }),
      "ERR_SHAPE",
      /layerNorm: mean has the shape \[4\], expected one element for each row/,
    ],
    [
      () => rmsNormBackward({ ...given, reciprocalDeviation: zeros([3, 1]) }),
      "ERR_SHAPE",
      /rmsNorm: reciprocalDeviation has the shape/,
    ],
  ]);
});

t.test("dtypes, devices, options, kinds", async (t) => {
  using other = new Device();
  refuses(t, [
    [
      () => rmsNorm(zeros([3, 4], "int32"), weight),
      "ERR_DTYPE",
      "rmsNorm: x is int32, expected float32, bfloat16 or float16",
    ],
    [
      () => rmsNorm(x, zeros([4], "bfloat16")),
      "ERR_DTYPE",
      "rmsNorm: weight is bfloat16, expected float32 (that of x)",
    ],
    [
      () => rmsNorm(zeros([3, 4], "bfloat16"), zeros([4], "float16")),
      "ERR_DTYPE",
      "rmsNorm: weight is float16, expected float32 or bfloat16 (that of x)",
    ],
    [
      () => layerNorm(x, weight, zeros([4], "float16")),
      "ERR_DTYPE",
      "layerNorm: bias is float16, expected float32 (that of weight)",
    ],
    [() => addRmsNorm(x, zeros([3, 4], "bfloat16"), weight), "ERR_DTYPE", /rmsNorm: residual is bfloat16/],
    [
      () => layerNormBackward({ ...given, mean: zeros([3], "bfloat16") }),
      "ERR_DTYPE",
      "layerNorm: mean is bfloat16, expected float32",
    ],
    [
      () => rmsNorm(x, Tensor.zeros([4], { device: other })),
      "ERR_DEVICE",
      "rmsNorm: weight is on another device than x",
    ],
    [
      () => addRmsNorm(x, Tensor.zeros([3, 4], { device: other }), weight),
      "ERR_DEVICE",
      /rmsNorm: residual is on another device/,
    ],
    [
      () => rmsNorm(x, weight, { eps: -1 }),
      "ERR_OPTION",
      "rmsNorm: eps is -1, expected a finite number of 0 or more",
    ],
    [() => layerNorm(x, weight, null, { eps: Number.NaN }), "ERR_OPTION", /layerNorm: eps is/],
    [() => layerNorm(x, weight, null, { eps: 1e300 }), "ERR_OPTION", /layerNorm: eps is/],
    [
      () => rmsNorm(x, weight, { eps: "1" as never }),
      "ERR_OPTION",
      "rmsNorm: eps is string, expected a number",
    ],
    [() => rmsNorm(x, weight, null as never), "ERR_OPTION", "rmsNorm: options is null, expected an object"],
    [
      () => layerNorm(x, weight, undefined as never),
      "ERR_OPTION",
      "layerNorm: bias is undefined, expected a Tensor",
    ],
    [() => rmsNorm([1] as never, weight), "ERR_OPTION", "rmsNorm: x is an array, expected a Tensor"],
    [
      () => addRmsNorm(x, undefined as never, weight),
      "ERR_OPTION",
      "rmsNorm: residual is undefined, expected a Tensor",
    ],
    [
      () => rmsNormBackward(null as never),
      "ERR_OPTION",
      "rmsNormBackward: tensors is null, expected an object of Tensors",
    ],
    [
      () => layerNormBackward({ ...given, mean: undefined as never }),
      "ERR_OPTION",
      "layerNorm: mean is undefined, expected a Tensor",
    ],
    [() => rmsNorm(gone, weight), "ERR_DISPOSED", "rmsNorm: x was disposed"],
    [() => addLayerNorm(x, gone, weight, null), "ERR_DISPOSED", "layerNorm: residual was disposed"],
    [() => layerNormBackward({ ...given, dout: gone }), "ERR_DISPOSED", "layerNorm: dout was disposed"],
  ]);
});

t.test("a refused call leaves nothing behind", async (t) => {
  using quiet = new Device();
  const [rows, short] = [Tensor.zeros([3, 4], { device: quiet }), Tensor.zeros([3], { device: quiet })];
  await quiet.synchronize();
  const before = quiet.memory();
  refuses(t, [
    [() => addLayerNorm(rows, rows, short, null), "ERR_SHAPE", /weight/],
    [() => rmsNormBackward({ ...given, x: rows, dout: rows, weight: short }), "ERR_DEVICE", /another device/],
  ]);
  await quiet.synchronize();
  t.match(quiet.memory(), { tensors: before.tensors, liveBytes: before.liveBytes });
});
