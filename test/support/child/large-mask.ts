// Attention of 65,536 tokens (or as many as the first argument says) under a mask of which a random quarter of the blocks has random bits, the rest nothing:
// prints what it takes, and hashes of the results.
import { createHash } from "node:crypto";
import { AttentionMask, attentionBackward, attentionForward, Device, globalNorm, Tensor } from "longseq";
import { bitsOf } from "../bits.ts";

export interface LargeMaskReport {
  /** Of the mask, on the host. */
  maskBytes: number;
  /** Of both directions, inputs and results included. */
  peakBytes: number;
  milliseconds: { forward: number; backward: number };
  hashes: Record<string, string>;
  /** Of the gradients, which need not be the same bits. */
  norms: Record<string, number>;
}

const [S, H, D, block] = [Number(process.argv[2] ?? 65_536), 16, 128, 128];
const blocks = S / block;

/** Random numbers that are the same each time. */
let state = 1;
function random(): number {
  state = Math.imul(state, 0x915f77f5) + 0x6a09e667;
  return (state ^ (state >>> 15)) >>> 0;
}

function quarter(): AttentionMask {
  const bits = Uint8Array.from({ length: 64 * block }, () => random() & 1);
  const values = new Uint8Array(S * S);
  for (let row = 0; row < blocks; row++) {
    const partial = Array.from({ length: blocks }, (_, column) => column).filter(() => random() % 4 === 0);
    for (let query = row * block; query < (row + 1) * block; query++) {
      for (const column of partial) {
        const from = random() % (63 * block);
        values.set(bits.subarray(from, from + block), query * S + column * block);
      }
    }
  }
  return AttentionMask.dense(values, S, S);
}

const device = Device.default;
const mask = quarter();
const [q, k, v, dout] = [1, 2, 3, 4].map((seed) =>
  Tensor.normal([1, S, H, D], { seed, dtype: "bfloat16" }),
) as [Tensor, Tensor, Tensor, Tensor];
const report: LargeMaskReport = {
  maskBytes: mask.bytes,
  peakBytes: 0,
  milliseconds: { forward: 0, backward: 0 },
  hashes: {},
  norms: {},
};
// The second time everything is there that is made once.
for (let round = 0; round < 2; round++) {
  device.resetPeak();
  const start = device.mark();
  const { out, logSumExp } = attentionForward(q, k, v, { mask });
  const between = device.mark();
  const gradients = attentionBackward({ q, k, v, out, logSumExp, dout }, { mask });
  const end = device.mark();
  const [forward, backward] = await Promise.all([between.since(start), end.since(between)]);
  report.milliseconds = { forward, backward };
  report.peakBytes = device.memory().peakBytes;
  for (const [name, tensor] of Object.entries({ out, logSumExp })) {
    report.hashes[name] = createHash("sha256")
      .update(await bitsOf(tensor))
      .digest("hex");
  }
  for (const [name, tensor] of Object.entries(gradients)) {
    using norm = globalNorm([tensor]);
    report.norms[name] = Number((await norm.data())[0]);
    tensor.dispose();
  }
  out.dispose();
  logSumExp.dispose();
}
console.log(JSON.stringify(report));
