// 10,000 attention calls with their reads, and what the process holds after the first and after the last ones: as JSON.
import {
  AttentionMask,
  attention,
  attentionBackward,
  attentionForward,
  Device,
  Scope,
  Tape,
  Tensor,
} from "longseq";

export interface ManyCalls {
  calls: number;
  residentBytes: [warm: number, end: number];
  liveBytes: [start: number, end: number];
  tensors: [start: number, end: number];
}

const device = new Device();
const q = Tensor.normal([1, 48, 2, 16], { device });
const dout = Tensor.normal([1, 48, 2, 16], { device });
await device.synchronize();
const start = device.memory();

const bits = Uint8Array.from({ length: 48 * 48 }, (_, i) => (i % 7 === 0 ? 1 : 0));
let calls = 0;
async function some(rounds: number): Promise<void> {
  for (let round = 0; round < rounds; round++) {
    await Scope.run(async () => {
      using mask = AttentionMask.dense(bits, 48, 48);
      const { out, logSumExp } = attentionForward(q, q, q, { mask });
      attentionBackward({ q, k: q, v: q, out, logSumExp, dout }, { mask });
      using tape = new Tape();
      tape.watch(q);
      tape.backward(attention(q, q, q, { causal: true }), dout, [q]);
      calls += 4;
      if (round % 25 === 0) await out.data();
    });
  }
}

await some(500);
await device.synchronize();
const warm = process.memoryUsage.rss();
await some(2000);
await device.synchronize();
const { liveBytes, tensors } = device.memory();
const report: ManyCalls = {
  calls,
  residentBytes: [warm, process.memoryUsage.rss()],
  liveBytes: [start.liveBytes, liveBytes],
  tensors: [start.tensors, tensors],
};
console.log(JSON.stringify(report));
