// What embedding refuses, with which code and which words.
import { Device, type DType, embedding, embeddingBackward, Tensor } from "longseq";
import t from "tap";
import { refuses } from "../support/refusals.ts";

const zeros = (shape: number[], dtype: DType = "float32") => Tensor.zeros(shape, { dtype });
const [table, indices, dy] = [zeros([5, 4]), zeros([2, 3], "int32"), zeros([2, 3, 4])];
const gone = zeros([5, 4]);
gone.dispose();

t.test("refusals", async (t) => {
  using other = new Device();
  const elsewhere = (shape: number[], dtype: DType = "float32") =>
    Tensor.zeros(shape, { dtype, device: other });
  refuses(t, [
    [
      () => embedding(zeros([5]), indices),
      "ERR_SHAPE",
      "embedding: table has the shape [5], expected two axes",
    ],
    [
      () => embedding(zeros([4, 5]).permute(1, 0), indices),
      "ERR_SHAPE",
      "embedding: table's last axis has stride 5, expected 1",
    ],
    [() => embedding(table, zeros([1, 1, 1, 1, 1, 1], "int32")), "ERR_SHAPE", /the shape has 7 axes/],
    [
      () => embedding(zeros([5, 4], "int32"), indices),
      "ERR_DTYPE",
      "embedding: table is int32, expected float32, bfloat16 or float16",
    ],
    [() => embedding(table, zeros([2])), "ERR_DTYPE", "embedding: indices is float32, expected int32"],
    [
      () => embedding(table, elsewhere([2], "int32")),
      "ERR_DEVICE",
      "embedding: indices is on another device than table",
    ],
    [() => embedding(table, [1] as never), "ERR_OPTION", "embedding: indices is an array, expected a Tensor"],
    [() => embedding(table, indices, null as never), "ERR_OPTION", /embedding: options is null/],
    [() => embedding(gone, indices), "ERR_DISPOSED", "embedding: table was disposed"],
    [() => embedding(table, indices, { dtable: gone }), "ERR_DISPOSED", "embedding: dtable was disposed"],
    [
      () => embedding(table, indices, { dtable: zeros([4, 5]) }),
      "ERR_SHAPE",
      "embedding: dtable has the shape [4, 5], expected [5, 4], contiguous",
    ],
    [
      () => embedding(table, indices, { dtable: zeros([5, 4], "bfloat16") }),
      "ERR_DTYPE",
      "embedding: dtable is bfloat16, expected float32",
    ],
    [
      () => embedding(table, indices, { dtable: elsewhere([5, 4]) }),
      "ERR_DEVICE",
      "embedding: dtable is on another device than the parameter",
    ],
    [
      () => embeddingBackward(null as never),
      "ERR_OPTION",
      /embeddingBackward: tensors.* is null, expected an object/,
    ],
    [
      () => embeddingBackward({ table, indices } as never),
      "ERR_OPTION",
      "embedding: dy is undefined, expected a Tensor",
    ],
    [
      () => embeddingBackward({ table, indices, dy: zeros([3, 2, 4]) }),
      "ERR_SHAPE",
      "embedding: dy has the shape [3, 2, 4], expected that of indices, [2, 3], and 4 (the columns of dtable)",
    ],
    [() => embeddingBackward({ table, indices, dy: zeros([2, 3, 5]) }), "ERR_SHAPE", /dy has the shape/],
    [
      () => embeddingBackward({ table, indices, dy: elsewhere([2, 3, 4]) }),
      "ERR_DEVICE",
      "embedding: dy is on another device than dtable",
    ],
    [
      () => embeddingBackward({ table, indices, dy: zeros([2, 3, 4], "int32") }),
      "ERR_DTYPE",
      "embedding: dy is int32, expected float32, bfloat16 or float16",
    ],
    [() => embeddingBackward({ table, indices, dy: gone }), "ERR_DISPOSED", "embedding: dy was disposed"],
  ]);
});

t.test("a refused call leaves nothing behind", async (t) => {
  using device = new Device();
  const [x, list] = [Tensor.zeros([5, 4], { device }), Tensor.zeros([3], { device })];
  await device.synchronize();
  const before = device.memory();
  refuses(t, [
    [() => embedding(x, list), "ERR_DTYPE", /indices is float32/],
    [() => embeddingBackward({ table: x, indices: list, dy: x }), "ERR_DTYPE", /indices is float32/],
  ]);
  await device.synchronize();
  t.match(device.memory(), { tensors: before.tensors, liveBytes: before.liveBytes });
  t.equal(dy.size, 24);
});
