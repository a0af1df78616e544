// Different ways to say the same.
import { AttentionMask, type AttentionOptions, Tensor } from "longseq";
import t from "tap";
import { differing } from "../support/bits.ts";
import { bounds, relativeError } from "../support/compare.ts";
import { implementations } from "../support/devices.ts";
import { solve } from "../support/problems.ts";

const [Sq, Sk] = [90, 150];
const input = (rows: number, heads: number, seed: number) => Tensor.normal([1, rows, heads, 24], { seed });
const tensors = { q: input(Sq, 4, 1), k: input(Sk, 2, 2), v: input(Sk, 2, 3), dout: input(Sq, 4, 4) };
const square = { ...tensors, q: input(Sk, 4, 1), dout: input(Sk, 4, 4) };
const cuts = [0, 60, 60, 61, 130, 150];
const pieces = [{ start: Sk - Sq, length: Sq }];

const same: [name: string, inputs: typeof tensors, a: AttentionOptions, b: AttentionOptions][] = [
  ["causal, as a mask", tensors, { causal: true }, { mask: AttentionMask.causal(Sq, Sk) }],
  ["causal, as a window", tensors, { causal: true }, { window: [-1, 0] }],
  ["a window, as a mask", tensors, { window: [17, 40] }, { mask: AttentionMask.window(Sq, Sk, 17, 40) }],
  ["documents, as a mask", square, { cuSeqlens: cuts }, { mask: AttentionMask.documents(cuts) }],
  ["documents, as an Int32Array", square, { cuSeqlens: cuts }, { cuSeqlens: Int32Array.from(cuts) }],
  ["documents, with the keys' own", square, { cuSeqlens: cuts }, { cuSeqlens: cuts, cuSeqlensKeys: cuts }],
  ["one document", tensors, {}, { cuSeqlens: [0, Sk] }],
  [
    "documents in causal order",
    square,
    { cuSeqlens: cuts, causal: true },
    { mask: AttentionMask.documents(cuts).and(AttentionMask.causal(Sk)) },
  ],
  ["a window that bounds nothing", tensors, {}, { window: [Sk, Sk] }],
  ["a mask that hides nothing", tensors, {}, { mask: AttentionMask.from(Sq, Sk, () => true) }],
  ["the default scale", tensors, {}, { scale: 1 / Math.sqrt(24) }],
  ["positions in full", tensors, { causal: true }, { causal: true, queryPositions: pieces }],
  [
    "positions in pieces",
    tensors,
    { window: [9, 9] },
    {
      window: [9, 9],
      queryPositions: [
        { start: 60, length: 1 },
        { start: 61, length: 0 },
        { start: 61, length: 89 },
      ],
      keyPositions: [
        { start: 0, length: 100 },
        { start: 100, length: 50 },
      ],
    },
  ],
  ["slopes of 0", tensors, {}, { alibiSlopes: Tensor.zeros([4]) }],
  ["a result in float32 of float32", tensors, {}, { outDtype: "float32" }],
  ["undefined", tensors, {}, { mask: undefined, scale: undefined, window: undefined } as object],
];

for (const [name, inputs, a, b] of same) {
  t.test(name, async (t) => {
    for (const implementation of implementations) {
      const expected = solve({ ...inputs, options: { ...a, implementation } });
      const actual = solve({ ...inputs, options: { ...b, implementation } });
      t.strictSame(await differing(actual, expected), [], implementation);
    }
  });
}

t.test("documents are separate calls", async (t) => {
  const documents = [0, 70, 70, 71, 200];
  const ofKeys = [0, 40, 45, 45, 180];
  const slopes = Tensor.from([0.1, 0.02, 0.3, 0.004], [4]);
  const [q, dout] = [1, 2].map((seed) => Tensor.normal([200, 4, 64], { seed })) as [Tensor, Tensor];
  const [k, v] = [3, 4].map((seed) => Tensor.normal([180, 2, 64], { seed })) as [Tensor, Tensor];
  const rules: AttentionOptions[] = [
    {},
    { causal: true },
    { window: [20, 5], softcap: 3 },
    { alibiSlopes: slopes },
    { alibiSlopes: slopes, causal: true },
  ];
  for (const rule of rules) {
    const cuSeqlens = { cuSeqlens: documents, cuSeqlensKeys: ofKeys };
    const whole = solve({ q, k, v, dout, options: { ...rule, ...cuSeqlens } });
    for (let d = 0; d + 1 < documents.length; d++) {
      const ofQuery = (x: Tensor) => x.slice(0, documents[d] ?? 0, documents[d + 1] ?? 0);
      const ofKey = (x: Tensor) => x.slice(0, ofKeys[d] ?? 0, ofKeys[d + 1] ?? 0);
      const alone = solve({ q: ofQuery(q), k: ofKey(k), v: ofKey(v), dout: ofQuery(dout), options: rule });
      const parts = {
        out: ofQuery(whole.out),
        logSumExp: whole.logSumExp.slice(1, documents[d] ?? 0, documents[d + 1] ?? 0),
        dq: ofQuery(whole.dq),
        dk: ofKey(whole.dk),
        dv: ofKey(whole.dv),
      };
      for (const name of Object.keys(parts) as (keyof typeof parts)[]) {
        const error = relativeError(await parts[name].data(), await alone[name].data());
        const { mask, alibiSlopes, ...shown } = rule;
        const label = `${name} of document ${d}, ${JSON.stringify(shown)}${alibiSlopes ? " ALiBi" : ""}`;
        t.ok(error < bounds.float32.result, `${label}: ${error}`);
      }
    }
  }
});
