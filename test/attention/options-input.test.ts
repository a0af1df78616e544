// What attention refuses of its options, at the call and before anything is queued.
import { AttentionMask, type AttentionOptions, attention, Tensor } from "longseq";
import t from "tap";
import { refuses } from "../support/refusals.ts";

const x = Tensor.zeros([1, 4, 4, 16]);
const gone = Tensor.zeros([4]);
gone.dispose();
const goneMask = AttentionMask.causal(4);
goneMask.dispose();
const withOptions = (options: object) => () => attention(x, x, x, options as AttentionOptions);

t.test("options", async (t) => {
  refuses(t, [
    [
      withOptions({ alibiSlopes: Tensor.zeros([4], { dtype: "bfloat16" }) }),
      "ERR_DTYPE",
      "attention: alibiSlopes is bfloat16, expected float32",
    ],
    [withOptions({ outDtype: "bfloat16" }), "ERR_OPTION", /outDtype is bfloat16, expected "float32"/],
    [
      withOptions({ alibiSlopes: [1, 2] }),
      "ERR_OPTION",
      "attention: alibiSlopes is an array, expected a Tensor",
    ],
    [withOptions({ mask: x }), "ERR_OPTION", "attention: mask is object, expected an AttentionMask"],
    [withOptions({ alibiSlopes: gone }), "ERR_DISPOSED", "attention: alibiSlopes was disposed"],
    [withOptions({ mask: goneMask }), "ERR_DISPOSED", "attention: mask was disposed"],
    [withOptions({ scale: "1" }), "ERR_OPTION", "attention: scale is string, expected a number"],
    [withOptions({ scale: Number.NaN }), "ERR_OPTION", /scale is not a finite/],
    [withOptions({ scale: 1e300 }), "ERR_OPTION", /scale/],
    [withOptions({ softcap: -1 }), "ERR_OPTION", /softcap is -1, expected a finite number of 0 or more/],
    [withOptions({ softcap: Number.POSITIVE_INFINITY }), "ERR_OPTION", /softcap is inf/],
    [withOptions({ causal: 1 }), "ERR_OPTION", "attention: causal is number, expected a boolean"],
    [withOptions({ deterministic: null }), "ERR_OPTION", /deterministic is null, expected a boolean/],
    [withOptions({ window: 5 }), "ERR_OPTION", "attention: window is number, expected [left, right]"],
    [withOptions({ window: [1] }), "ERR_OPTION", "attention: window is [1], expected two integers"],
    [withOptions({ window: [0.5, 1] }), "ERR_OPTION", /window is \[0.5, 1\], expected two integers/],
    [
      withOptions({ window: [-2, 0] }),
      "ERR_OPTION",
      /window is \[-2, 0\], expected two integers of 0 to 2\^31 - 1, or -1 for unbounded/,
    ],
    [withOptions({ window: [2 ** 31, 0] }), "ERR_OPTION", /window is \[2147483648, 0\], expected two/],
    [withOptions({ window: [0, Number.POSITIVE_INFINITY] }), "ERR_OPTION", /window is \[0, Infinity\]/],
    [
      withOptions({ alibiSlopes: Tensor.zeros([3]) }),
      "ERR_SHAPE",
      "attention: alibiSlopes has the shape [3], expected [4] (the heads of q)",
    ],
    [
      withOptions({ mask: AttentionMask.causal(4, 5) }),
      "ERR_SHAPE",
      "attention: mask is [4, 5], expected [4, 4]",
    ],
    [
      withOptions({ implementation: "fast" }),
      "ERR_OPTION",
      /implementation "fast" is not there on (cpu|cuda)/,
    ],
    [
      withOptions({ implementation: "sm90" }),
      "ERR_OPTION",
      /implementation "sm90" is not there on (cpu|cuda)/,
    ],
    [withOptions({ implementation: 1 }), "ERR_OPTION", /implementation is number, expected a string/],
  ]);
});

t.test("documents and positions", async (t) => {
  refuses(t, [
    [withOptions({ cuSeqlens: "0,4" }), "ERR_OPTION", /cuSeqlens is string, expected an Int32Array/],
    [withOptions({ cuSeqlens: [0, 1.5, 4] }), "ERR_OPTION", /cuSeqlens holds a number that is no integer/],
    [withOptions({ cuSeqlens: [] }), "ERR_OPTION", /cuSeqlens must start with 0/],
    [withOptions({ cuSeqlens: [1, 4] }), "ERR_OPTION", /cuSeqlens must start with 0/],
    [withOptions({ cuSeqlens: [0, 3, 2, 4] }), "ERR_OPTION", "attention: cuSeqlens falls from 3 to 2"],
    [withOptions({ cuSeqlens: [0, 5] }), "ERR_OPTION", /cuSeqlens ends at 5, expected 4/],
    [
      withOptions({ cuSeqlensKeys: [0, 4] }),
      "ERR_OPTION",
      "attention: cuSeqlensKeys is given without cuSeqlens",
    ],
    [
      withOptions({ cuSeqlens: [0, 4], cuSeqlensKeys: [0, 1, 4] }),
      "ERR_OPTION",
      /cuSeqlensKeys has 3 entries, expected 2/,
    ],
    [withOptions({ queryPositions: 4 }), "ERR_OPTION", /queryPositions is number, expected an array of/],
    [
      withOptions({ queryPositions: [{ start: 0 }] }),
      "ERR_OPTION",
      /queryPositions holds a piece that is not/,
    ],
    [withOptions({ queryPositions: [null] }), "ERR_OPTION", /queryPositions holds a piece that is not/],
    [
      withOptions({ queryPositions: [{ start: 0, length: 3 }] }),
      "ERR_OPTION",
      "attention: queryPositions cover 3 rows, expected 4",
    ],
    [
      withOptions({ queryPositions: [{ start: -1, length: 4 }] }),
      "ERR_OPTION",
      /queryPositions must be ascending/,
    ],
    [withOptions({ queryPositions: [{ start: 2 ** 31, length: 4 }] }), "ERR_OPTION", /within 0 to 2\^31 - 1/],
    [
      withOptions({
        queryPositions: [
          { start: 4, length: 2 },
          { start: 0, length: 2 },
        ],
      }),
      "ERR_OPTION",
      /queryPositions must be ascending, disjoint/,
    ],
    [
      withOptions({ keyPositions: [{ start: 0, length: 4 }] }),
      "ERR_OPTION",
      "attention: keyPositions is given without queryPositions",
    ],
  ]);
});
