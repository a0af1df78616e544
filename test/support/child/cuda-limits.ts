// On a GPU: what does not fit, under LONGSEQ_MEMORY_LIMIT or without, is refused, and all goes on. Prints it as JSON.
import { Device, Tensor } from "longseq";

export interface CudaLimits {
  /** Of a tensor at the call; of the memory that a queued conversion needs, at the next await. */
  tensor: [code: string, message: string] | null;
  queued: [code: string, message: string] | null;
  /** What the device holds when all is gone, and what is computed then. */
  liveBytes: number;
  later: number[];
}

async function failureOf(call: () => unknown): Promise<CudaLimits["tensor"]> {
  try {
    await call();
    return null;
  } catch (error) {
    const { code, message } = error as { code: string; message: string };
    return [code, message];
  }
}

const device = new Device("cuda");
const limit = 2 ** 20 * Number(process.argv[2]);
const tensor = await failureOf(() => Tensor.empty([limit + 1], { dtype: "uint8", device }));
// What is written as another type is converted on the GPU, from memory of its own there: a quarter of the tensor's.
const count = Math.floor(limit * 0.22);
const x = Tensor.empty([count], { device });
x.write(new Uint8Array(count));
const queued = await failureOf(() => device.synchronize());
x.dispose();
await device.synchronize();
const { liveBytes } = device.memory();
const later = [...(await Tensor.from([1, 2, 3], [3], { device }).to("float16").data())];
const report: CudaLimits = { tensor, queued, liveBytes, later };
console.log(JSON.stringify(report));
