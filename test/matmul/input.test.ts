// What products refuse, at the call and before anything is queued.
import { Device, linear, linearBackward, matmul, Tensor } from "longseq";
import t from "tap";
import { refuses } from "../support/refusals.ts";

const zeros = (shape: readonly number[], dtype: "float32" | "bfloat16" | "int32" = "float32") =>
  Tensor.zeros(shape, { dtype });
const [a, b] = [zeros([3, 4]), zeros([4, 5])];
const weight = zeros([5, 4]);
const gone = zeros([4, 5]);
gone.dispose();

t.test("shapes", async (t) => {
  refuses(t, [
    [
      () => matmul(zeros([4]), b),
      "ERR_SHAPE",
      "matmul: a has the shape [4], expected [.., M, K] or [B, M, K]",
    ],
    [() => matmul(a, zeros([5, 4])), "ERR_SHAPE", "matmul: b has 5 rows, expected 4 (the columns of a)"],
    [
      () => matmul(a, b, { transposeA: true, transposeB: true }),
      "ERR_SHAPE",
      "matmul: b has 5 columns, expected 3 (the rows of a)",
    ],
    [
      () => matmul(a, zeros([4])),
      "ERR_SHAPE",
      "matmul: b has the shape [4], expected [K, N], or [B, K, N] for a of three axes",
    ],
    [() => matmul(a, zeros([2, 4, 5])), "ERR_SHAPE", /b has the shape \[2, 4, 5\]/],
    [() => matmul(zeros([2, 2, 3, 4]), zeros([2, 2, 4, 5])), "ERR_SHAPE", /b has the shape \[2, 2, 4, 5\]/],
    [
      () => matmul(zeros([2, 3, 4]), zeros([3, 4, 5])),
      "ERR_SHAPE",
      "matmul: b has batch size 3, expected 2 (that of a)",
    ],
    [
      () => matmul(zeros([2, 4, 3]), b, { transposeA: true }),
      "ERR_OPTION",
      /transposeA is given for a of the shape \[2, 4, 3\]/,
    ],
    [
      () => matmul(a, b, { bias: zeros([4]) }),
      "ERR_SHAPE",
      "matmul: bias has the shape [4], expected [5] (the columns of out)",
    ],
    [() => matmul(a, b, { bias: zeros([1, 5]) }), "ERR_SHAPE", /bias has the shape \[1, 5\]/],
    [() => matmul(a, b, { out: zeros([3, 4]) }), "ERR_SHAPE", /out has the shape \[3, 4\], expected/],
    [() => matmul(a, b, { out: zeros([15]) }), "ERR_SHAPE", /out has the shape \[15\], expected 2 axes/],
    [
      () => matmul(a, b, { out: zeros([5, 3]).permute(1, 0) }),
      "ERR_SHAPE",
      "matmul: out has no contiguous rows: its last axis has stride 3, expected 1",
    ],
    [
      () => matmul(zeros([2, 3, 4]), b, { out: zeros([3, 2, 5]).permute(1, 0, 2) }),
      "ERR_SHAPE",
      /out has the shape \[2, 3, 5\], expected .* at one stride/,
    ],
    [() => matmul(zeros([2, 3, 4]), b, { out: zeros([6, 5]) }), "ERR_SHAPE", /out has the shape \[6, 5\]/],
    [
      () => linear(a, zeros([4, 5])),
      "ERR_SHAPE",
      "linear: weight has 5 columns, expected 4 (the columns of x)",
    ],
    [() => linear(a, zeros([5])), "ERR_SHAPE", "linear: weight has the shape [5], expected two axes"],
    [() => linear(zeros([]), weight), "ERR_SHAPE", "linear: x has no axis, expected [.., I]"],
    [() => linear(a, weight, zeros([4])), "ERR_SHAPE", /linear: bias has the shape \[4\], expected \[5\]/],
    [
      () => linear(a, weight, undefined, { dweight: zeros([4, 5]) }),
      "ERR_SHAPE",
      "linear: dweight has the shape [4, 5], expected [5, 4], contiguous",
    ],
    [
      () => linearBackward({ x: a, weight, dy: zeros([2, 5]) }),
      "ERR_SHAPE",
      "linear: dy has the shape [2, 5], expected that of x, [3, 4], but for its last axis",
    ],
    [() => linearBackward({ x: a, weight, dy: zeros([3, 4]) }), "ERR_SHAPE", /weight has the shape \[5, 4\]/],
    [
      () => linearBackward({ x: a, weight, dy: zeros([3, 5]), dweight: zeros([4, 5]) }),
      "ERR_SHAPE",
      "linear: dweight has the shape [4, 5], expected [5, 4] (that of weight)",
    ],
    [
      () => linearBackward({ x: a, weight, dy: zeros([3, 5]), dbias: zeros([4]) }),
      "ERR_SHAPE",
      /linear: dbias has the shape \[4\], expected \[5\]/,
    ],
  ]);
});

t.test("dtypes", async (t) => {
  refuses(t, [
    [
      () => matmul(zeros([3, 4], "int32"), b),
      "ERR_DTYPE",
      "matmul: a is int32, expected float32, bfloat16 or float16",
    ],
    [
      () => matmul(a, zeros([4, 5], "bfloat16")),
      "ERR_DTYPE",
      "matmul: b is bfloat16, expected float32 (that of a)",
    ],
    [() => matmul(a, b, { bias: zeros([5], "bfloat16") }), "ERR_DTYPE", /bias is bfloat16, expected float32/],
    [
      () => matmul(a, b, { out: zeros([3, 5], "bfloat16") }),
      "ERR_DTYPE",
      "matmul: out is bfloat16, expected float32 (that of a) or float32",
    ],
    [() => linear(a, zeros([5, 4], "bfloat16")), "ERR_DTYPE", /linear: weight is bfloat16, expected float32/],
    [
      () => linear(a, weight, undefined, { dweight: zeros([5, 4], "int32") }),
      "ERR_DTYPE",
      /linear: dweight is int32, expected float32/,
    ],
  ]);
});

t.test("options, and what is no tensor", async (t) => {
  const out = zeros([3, 5]);
  const square = zeros([4, 4]);
  refuses(t, [
    [() => matmul(a, b, { accumulate: true }), "ERR_OPTION", /accumulate is given without out/],
    [() => matmul(a, b, { out, outDtype: "float32" }), "ERR_OPTION", /outDtype is given with out/],
    [
      () => matmul(a, b, { outDtype: "bfloat16" as never }),
      "ERR_OPTION",
      'matmul: outDtype is bfloat16, expected "float32"',
    ],
    [
      () => matmul(a, b, { transposeA: 1 as never }),
      "ERR_OPTION",
      "matmul: transposeA is 1, expected true or false",
    ],
    [() => matmul(square, square, { out: square }), "ERR_OPTION", "matmul: out and a overlap in memory"],
    [() => matmul(a, b, null as never), "ERR_OPTION", /matmul: options is null/],
    [() => matmul(null as never, b), "ERR_OPTION", "matmul: a is null, expected a Tensor"],
    [() => matmul(a, 3 as never), "ERR_OPTION", "matmul: b is number, expected a Tensor"],
    [() => matmul(a, b, { bias: 3 as never }), "ERR_OPTION", "matmul: bias is number, expected a Tensor"],
    [() => matmul(a, gone), "ERR_DISPOSED", "matmul: b was disposed"],
    [() => matmul(a, b, { out: gone }), "ERR_DISPOSED", "matmul: out was disposed"],
    [() => linear(a, gone), "ERR_DISPOSED", "linear: weight was disposed"],
    [
      () => linear(a, weight, undefined, { dbias: zeros([5]) }),
      "ERR_OPTION",
      "linear: dbias is given without bias",
    ],
    [() => linear(a, weight, undefined, { dweight: gone }), "ERR_DISPOSED", "linear: dweight was disposed"],
    [
      () => linearBackward(null as never),
      "ERR_OPTION",
      /^linearBackward: tensors.* is null, expected an object/,
    ],
    [
      () => linearBackward({ x: a, weight } as never),
      "ERR_OPTION",
      "linear: dy is undefined, expected a Tensor",
    ],
    [() => linearBackward({ x: a, weight, dy: gone }), "ERR_DISPOSED", "linear: dy was disposed"],
  ]);
});

t.test("two devices", async (t) => {
  using other = new Device();
  const elsewhere = Tensor.zeros([4, 5], { device: other });
  refuses(t, [
    [() => matmul(a, elsewhere), "ERR_DEVICE", "matmul: b is on another device than a"],
    [() => linear(a, elsewhere.permute(1, 0)), "ERR_DEVICE", "linear: weight is on another device than x"],
  ]);
});

t.test("a refused call leaves nothing behind, and the result as it was", async (t) => {
  using device = new Device();
  const [x, w] = [Tensor.zeros([3, 4], { device }), Tensor.zeros([5, 5], { device })];
  const out = Tensor.from([1, 2, 3], [1, 3], { device });
  await device.synchronize();
  const before = device.memory();
  refuses(t, [
    [() => matmul(x, w), "ERR_SHAPE", /b has 5 rows/],
    [() => matmul(x, w, { out }), "ERR_SHAPE", /b has 5 rows/],
    [() => linear(x, w), "ERR_SHAPE", /weight has 5 columns/],
    [() => linearBackward({ x, weight: w, dy: x }), "ERR_SHAPE", /weight has the shape/],
  ]);
  await device.synchronize();
  t.match(device.memory(), { tensors: before.tensors, liveBytes: before.liveBytes });
  t.strictSame(await out.data(), Float32Array.of(1, 2, 3));
});
