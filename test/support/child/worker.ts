// What a worker thread of workers.test.ts does: attention on a device of its own, or work that does not end.
import { parentPort, workerData } from "node:worker_threads";
import { attention, attentionBackward, attentionForward, Device, Tensor } from "longseq";

export interface WorkerTask {
  seed: number;
  /** Queues work without an end, and reports when it has begun. */
  isEndless: boolean;
}

const { seed, isEndless } = workerData as WorkerTask;
const device = new Device();
const q = Tensor.normal([1, 400, 2, 32], { device, seed });
if (isEndless) {
  const reads: Promise<unknown>[] = [];
  const more = () => {
    for (let i = 0; i < 20; i++) reads.push(attention(q, q, q).data());
  };
  more();
  await reads[0];
  setInterval(more, 1);
  parentPort?.postMessage("begun");
} else {
  const { out, logSumExp } = attentionForward(q, q, q, { causal: true });
  const { dk } = attentionBackward({ q, k: q, v: q, out, logSumExp, dout: q }, { causal: true });
  parentPort?.postMessage([await out.data(), await dk.data()]);
}
