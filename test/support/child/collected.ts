// Leaves tensors to the garbage collector (--expose-gc), and prints what the process and the device then hold.
import { setImmediate } from "node:timers/promises";
import { Device, Tensor } from "longseq";

export interface Collected {
  /** While they were held, and after. */
  tensors: [held: number, after: number];
  /** Bytes that were made and dropped without a call of the collector, and the most that were alive at once. */
  dropped: number;
  peak: number;
}

const collect = async () => {
  for (let i = 0; i < 3; i++) {
    globalThis.gc?.();
    await setImmediate();
  }
};

const device = new Device();
const held: unknown[] = Array.from({ length: 10 }, () => Tensor.zeros([1 << 20], { device }));
await device.synchronize();
const tensors = device.memory().tensors;
held.length = 0;
await collect();
await device.synchronize();
const after = device.memory().tensors;

device.resetPeak();
// V8 is told a thirty-second of a GPU's bytes.
const each = device.kind === "cuda" ? 64 << 20 : 8 << 20;
const times = 400;
for (let i = 0; i < times; i++) {
  Tensor.zeros([each], { dtype: "uint8", device });
  if (i % 10 === 0) await setImmediate();
}
const report: Collected = {
  tensors: [tensors, after],
  dropped: each * times,
  peak: device.memory().peakBytes,
};
console.log(JSON.stringify(report));
