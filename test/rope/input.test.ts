// What the rotary embedding refuses, at the call and before anything is queued.
import {
  type RotaryOptions,
  rotaryEmbedding,
  rotaryEmbeddingBackward,
  rotaryFrequencies,
  Tensor,
} from "longseq";
import t from "tap";
import { refuses } from "../support/refusals.ts";

const x = Tensor.zeros([2, 4, 3, 16]);
const gone = Tensor.zeros([4]);
gone.dispose();
const withOptions = (options: object) => () => rotaryEmbedding(x, options as RotaryOptions);
const scaled = (scaling: object) => withOptions({ scaling });

t.test("tensors and numbers", async (t) => {
  refuses(t, [
    [() => rotaryEmbedding("x" as never), "ERR_OPTION", "rotaryEmbedding: x is string, expected a Tensor"],
    [() => rotaryEmbeddingBackward(gone), "ERR_DISPOSED", "rotaryEmbedding: x was disposed"],
    [
      () => rotaryEmbedding(Tensor.zeros([4, 16])),
      "ERR_SHAPE",
      "rotaryEmbedding: x has the shape [4, 16], expected [B, S, H, D] or [T, H, D]",
    ],
    [
      () => rotaryEmbedding(Tensor.zeros([1, 2, 2, 16], { dtype: "uint8" })),
      "ERR_DTYPE",
      /x is uint8, expected float32/,
    ],
    [
      () => rotaryEmbedding(Tensor.zeros([2, 4, 4, 16]).permute(0, 1, 3, 2)),
      "ERR_SHAPE",
      /x's last axis has stride 16, expected 1/,
    ],
    [
      () => rotaryEmbedding(x, 1 as never),
      "ERR_OPTION",
      "rotaryEmbedding: options is number, expected an object",
    ],
    [
      withOptions({ interleaved: 1 }),
      "ERR_OPTION",
      "rotaryEmbedding: interleaved is number, expected a boolean",
    ],
    [withOptions({ rotaryDim: 7 }), "ERR_OPTION", "rotaryEmbedding: rotaryDim is 7, expected an even number"],
    [() => rotaryEmbedding(Tensor.zeros([1, 2, 3])), "ERR_OPTION", /rotaryDim is 3, expected an even number/],
    [withOptions({ rotaryDim: 18 }), "ERR_OPTION", "rotaryEmbedding: rotaryDim is 18, expected at most 16"],
    [
      () => rotaryEmbedding(Tensor.zeros([1, 1, 600])),
      "ERR_OPTION",
      /rotaryDim is 600, expected at most 512/,
    ],
    [withOptions({ base: 0 }), "ERR_OPTION", "rotaryEmbedding: base is 0, expected a finite number above 0"],
    [withOptions({ base: Number.NaN }), "ERR_OPTION", /base is NaN/],
    [withOptions({ base: "10000" }), "ERR_OPTION", "rotaryEmbedding: base is string, expected a number"],
    [
      withOptions({ base: 1e-300, scaling: { type: "linear", factor: 1e-300 } }),
      "ERR_OPTION",
      /a frequency is /,
    ],
    [() => rotaryFrequencies(2 ** 40), "ERR_OPTION", /rotaryDim is 1099511627776, expected at most 512/],
    [() => rotaryFrequencies(-2), "ERR_OPTION", /rotaryDim is -2/],
    [
      () => rotaryFrequencies(4, 1 as never),
      "ERR_OPTION",
      "rotaryFrequencies: options is number, expected an object",
    ],
  ]);
});

t.test("scaling", async (t) => {
  refuses(t, [
    [
      withOptions({ scaling: 2 }),
      "ERR_OPTION",
      "rotaryEmbedding: scaling: options is number, expected an object",
    ],
    [
      scaled({ type: "dynamic", factor: 2 }),
      "ERR_OPTION",
      /scaling.type is dynamic, expected "linear", "ntk" or "yarn"/,
    ],
    [
      scaled({ type: "linear" }),
      "ERR_OPTION",
      "rotaryEmbedding: scaling.factor is undefined, expected a number",
    ],
    [
      scaled({ type: "linear", factor: -1 }),
      "ERR_OPTION",
      /scaling.factor is -1, expected a finite number above 0/,
    ],
    [scaled({ type: "yarn", factor: 2 }), "ERR_OPTION", /scaling.originalLength is undefined/],
    [
      scaled({ type: "yarn", factor: 2, originalLength: 64, betaFast: 1 }),
      "ERR_OPTION",
      "rotaryEmbedding: scaling.betaFast is 1, expected more than 1 (betaSlow)",
    ],
    [
      scaled({ type: "yarn", factor: 2, originalLength: 64, attentionFactor: Number.POSITIVE_INFINITY }),
      "ERR_OPTION",
      /scaling.attentionFactor is Infinity/,
    ],
    [
      scaled({ type: "yarn", factor: 2, originalLength: 64, attentionFactor: 1e300 }),
      "ERR_OPTION",
      /not a finite float32/,
    ],
  ]);
});

t.test("positions", async (t) => {
  const int32 = (shape: readonly number[]) => Tensor.zeros(shape, { dtype: "int32" });
  refuses(t, [
    [
      withOptions({ offset: -1 }),
      "ERR_OPTION",
      "rotaryEmbedding: offset is -1, expected an integer of 0 or more",
    ],
    [withOptions({ offset: "3" }), "ERR_OPTION", "rotaryEmbedding: offset is string, expected a number"],
    [
      withOptions({ offset: 2 ** 31 }),
      "ERR_OPTION",
      "rotaryEmbedding: positions must be within 0 to 2^31 - 1",
    ],
    [
      withOptions({ offset: 1, positions: [{ start: 0, length: 4 }] }),
      "ERR_OPTION",
      "rotaryEmbedding: offset is given beside positions",
    ],
    [withOptions({ offset: 1, positions: int32([4]) }), "ERR_OPTION", /offset is given beside positions/],
    [withOptions({ positions: 4 }), "ERR_OPTION", /positions is number, expected a Tensor or an array of/],
    [withOptions({ positions: [{ start: 0 }] }), "ERR_OPTION", /positions holds a piece that is not/],
    [withOptions({ positions: [null] }), "ERR_OPTION", /positions holds a piece that is not/],
    [
      withOptions({ positions: [{ start: 0, length: 3 }] }),
      "ERR_OPTION",
      "rotaryEmbedding: positions cover 3 rows, expected 4",
    ],
    [withOptions({ positions: [{ start: -1, length: 4 }] }), "ERR_OPTION", /within 0 to 2\^31 - 1/],
    [
      withOptions({ positions: Tensor.zeros([4]) }),
      "ERR_DTYPE",
      "rotaryEmbedding: positions is float32, expected int32",
    ],
    [
      withOptions({ positions: int32([3]) }),
      "ERR_SHAPE",
      "rotaryEmbedding: positions has the shape [3], expected [4] or [2, 4]",
    ],
    [withOptions({ positions: int32([3, 4]) }), "ERR_SHAPE", /positions has the shape \[3, 4\]/],
    [withOptions({ positions: int32([]) }), "ERR_SHAPE", /positions has the shape \[\]/],
    [withOptions({ positions: gone }), "ERR_DISPOSED", "rotaryEmbedding: positions was disposed"],
  ]);
});
