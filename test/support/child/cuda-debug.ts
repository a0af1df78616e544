// On a GPU, with LONGSEQ_CUDA_DEBUG or without: whether an operation has run when its call returns, and where the error of
// one that finds no memory appears. Under LONGSEQ_MEMORY_LIMIT=64m. Prints it as JSON.
import { attention, Device, Tensor } from "longseq";

export interface CudaDebug {
  /** Milliseconds of the call, and of the wait behind it. */
  call: number;
  wait: number;
  where: "call" | "await" | "nowhere";
  code: string;
}

const device = new Device("cuda");
const q = Tensor.normal([1, 600, 1, 64], { device });
await device.synchronize();
const start = performance.now();
attention(q, q, q, { implementation: "reference" });
const call = performance.now() - start;
await device.synchronize();
const wait = performance.now() - start - call;

let where: CudaDebug["where"] = "nowhere";
let code = "";
// 56 MiB, and 14 on the way to their conversion.
const count = 14 << 20;
const x = Tensor.empty([count], { device });
try {
  x.write(new Uint8Array(count));
  where = "await";
  await device.synchronize();
  where = "nowhere";
} catch (error) {
  if (where === "nowhere") where = "call";
  code = String((error as { code?: unknown }).code);
}
const report: CudaDebug = { call, wait, where, code };
console.log(JSON.stringify(report));
