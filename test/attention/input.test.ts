// What attention refuses of its tensors, at the call and before anything is queued.
import { attention, attentionBackward, attentionForward, Device, mergeAttention, Tensor } from "longseq";
import t from "tap";
import { type Refused, refuses } from "../support/refusals.ts";

const device = new Device();
const zeros = (shape: readonly number[], dtype: "float32" | "bfloat16" | "int32" = "float32") =>
  Tensor.zeros(shape, { dtype, device });
const x = zeros([1, 4, 4, 16]);
const gone = zeros([1, 4, 4, 16]);
gone.dispose();
const { out, logSumExp } = attentionForward(x, x, x);
const given = { q: x, k: x, v: x, out, logSumExp, dout: x };

t.test("shapes", async (t) => {
  refuses(t, [
    [
      () => attention(zeros([4, 16]), x, x),
      "ERR_SHAPE",
      "attention: q has the shape [4, 16], expected [B, Sq, Hq, D] or [T, Hq, D]",
    ],
    [
      () => attention(zeros([1, 4, 4, 12]), x, x),
      "ERR_SHAPE",
      "attention: q has head dimension 12, expected a multiple of 8 up to 256",
    ],
    [
      () => attention(zeros([1, 4, 4, 264]), x, x),
      "ERR_SHAPE",
      /q has head dimension 264, expected a multiple of 8 up to 256/,
    ],
    [() => attention(zeros([1, 4, 4, 0]), x, x), "ERR_SHAPE", /q has head dimension 0/],
    [
      () => attention(zeros([1, 4, 4, 128]), zeros([1, 4, 4, 64]), x),
      "ERR_SHAPE",
      "attention: k has head dimension 64, expected 128 (that of q)",
    ],
    [
      () => attention(x, zeros([2, 4, 4, 16]), x),
      "ERR_SHAPE",
      "attention: k has batch size 2, expected 1 (that of q)",
    ],
    [
      () => attention(x, zeros([4, 4, 16]), x),
      "ERR_SHAPE",
      "attention: k has the shape [4, 4, 16], expected 4 axes as q has",
    ],
    [
      () => attention(x, zeros([1, 4, 3, 16]), zeros([1, 4, 3, 16])),
      "ERR_SHAPE",
      "attention: q has 4 heads, expected a multiple of 3 (the heads of k)",
    ],
    [
      () => attention(x, zeros([1, 4, 0, 16]), zeros([1, 4, 0, 16])),
      "ERR_SHAPE",
      /q has 4 heads, expected a multiple of 0/,
    ],
    [
      () => attention(x, x, zeros([1, 5, 4, 16])),
      "ERR_SHAPE",
      "attention: v has the shape [1, 5, 4, 16], expected [1, 4, 4, 16] (that of k)",
    ],
    [
      () => attention(x.permute(0, 1, 3, 2), x, x),
      "ERR_SHAPE",
      /q's head dimension has stride 16, expected 1/,
    ],
  ]);
});

t.test("dtypes", async (t) => {
  refuses(t, [
    [
      () => attention(zeros([1, 4, 4, 16], "int32"), x, x),
      "ERR_DTYPE",
      "attention: q is int32, expected float32, bfloat16 or float16",
    ],
    [
      () => attention(x, zeros([1, 4, 4, 16], "bfloat16"), x),
      "ERR_DTYPE",
      "attention: k is bfloat16, expected float32 (that of q)",
    ],
    [
      () => attention(x, x, zeros([1, 4, 4, 16], "bfloat16")),
      "ERR_DTYPE",
      "attention: v is bfloat16, expected float32 (that of q)",
    ],
  ]);
});

t.test("no tensors, and disposed ones", async (t) => {
  refuses(t, [
    [() => attention(null as never, x, x), "ERR_OPTION", "attention: q is null, expected a Tensor"],
    [() => attention(x, [1] as never, x), "ERR_OPTION", "attention: k is an array, expected a Tensor"],
    [() => attention(x, x, { ...x } as never), "ERR_OPTION", "attention: v is object, expected a Tensor"],
    [() => attention(gone, x, x), "ERR_DISPOSED", "attention: q was disposed"],
    [() => attention(x, gone, x), "ERR_DISPOSED", "attention: k was disposed"],
    [() => attentionForward(x, x, gone), "ERR_DISPOSED", "attention: v was disposed"],
    ...(["q", "k", "v", "out", "logSumExp", "dout", "dlogSumExp"] as const).map(
      (name): Refused => [
        () => attentionBackward({ ...given, [name]: gone }),
        "ERR_DISPOSED",
        `attention: ${name} was disposed`,
      ],
    ),
    [() => mergeAttention([{ out: gone, logSumExp }]), "ERR_DISPOSED", /mergeAttention: .*out was disposed/],
    [
      () => mergeAttention([{ out, logSumExp: gone }]),
      "ERR_DISPOSED",
      /mergeAttention: .*logSumExp was disposed/,
    ],
  ]);
});

t.test("the backward pass's own", async (t) => {
  refuses(t, [
    [
      () => attentionBackward({ ...given, out: zeros([1, 3, 4, 16]) }),
      "ERR_SHAPE",
      /out has the shape \[1, 3, 4, 16\], expected \[1, 4, 4, 16\] \(that of q\)/,
    ],
    [() => attentionBackward({ ...given, dout: zeros([1, 4, 4, 8]) }), "ERR_SHAPE", /dout has the shape/],
    [
      () => attentionBackward({ ...given, dout: zeros([1, 4, 4, 16], "bfloat16") }),
      "ERR_DTYPE",
      "attention: dout is bfloat16, expected float32 (that of out)",
    ],
    [
      () => attentionBackward({ ...given, logSumExp: zeros([1, 4, 3]) }),
      "ERR_SHAPE",
      /logSumExp has the shape \[1, 4, 3\], expected \[B, Hq, Sq\] = \[1, 4, 4\]/,
    ],
    [
      () => attentionBackward({ ...given, logSumExp: zeros([1, 4, 4], "bfloat16") }),
      "ERR_DTYPE",
      "attention: logSumExp is bfloat16, expected float32",
    ],
    [
      () => attentionBackward({ ...given, dlogSumExp: zeros([4, 3]) }),
      "ERR_SHAPE",
      /dlogSumExp has the shape/,
    ],
  ]);
});

t.test("merging", async (t) => {
  refuses(t, [
    [() => mergeAttention([]), "ERR_OPTION", "mergeAttention: there are no parts"],
    [() => mergeAttention(null as never), "ERR_OPTION", /^mergeAttention: parts is null, expected an array/],
    [() => mergeAttention([null as never]), "ERR_OPTION", /^mergeAttention: a part's out is undefined/],
    [
      () => mergeAttention([{ out, logSumExp: zeros([1, 4, 3]) }]),
      "ERR_SHAPE",
      /^mergeAttention: logSumExp has/,
    ],
    [
      () => mergeAttention([given, { out: zeros([1, 3, 4, 16]), logSumExp }]),
      "ERR_SHAPE",
      /^mergeAttention: a part's out has the shape \[1, 3, 4, 16\], expected \[1, 4, 4, 16\]/,
    ],
    [
      () => mergeAttention([{ out: zeros([1, 4, 4, 16], "int32"), logSumExp }]),
      "ERR_DTYPE",
      /a part's out is int32, expected float32, bfloat16 or float16/,
    ],
  ]);
});

t.test("a refused call leaves nothing behind", async (t) => {
  using quiet = new Device();
  const [q, short] = [
    Tensor.zeros([1, 4, 4, 16], { device: quiet }),
    Tensor.zeros([1, 4, 4, 8], { device: quiet }),
  ];
  const forward = attentionForward(q, q, q);
  await quiet.synchronize();
  const before = quiet.memory();
  refuses(t, [
    [() => attention(q, q, q, { window: [-2, 0] }), "ERR_OPTION", /window/],
    [() => attentionBackward({ q, k: q, v: q, ...forward, dout: short }), "ERR_SHAPE", /dout/],
    [() => mergeAttention([{ ...forward, logSumExp: q }]), "ERR_SHAPE", /logSumExp/],
  ]);
  await quiet.synchronize();
  t.match(quiet.memory(), { tensors: before.tensors, liveBytes: before.liveBytes });
});
