// Under LONGSEQ_MEMORY_LIMIT=24m: what does not fit is refused, at the call or on the queue, and all goes on.
import { attention, attentionForward, Device, info, Tensor } from "longseq";

type Failure = [code: string, message: string];

export interface OutOfMemory {
  limit: number;
  /** Null: it fitted. */
  tensor: Failure | null;
  scratch: Failure | null;
  read: Failure | null;
  /** What comes after the failed operation. */
  later: number[];
}

const device = new Device();
async function failureOf(call: () => unknown): Promise<Failure | null> {
  try {
    await call();
  } catch (error) {
    const { code, message } = error as { code: string; message: string };
    return [code, message];
  }
  return null;
}

const tensor = await failureOf(() => Tensor.zeros([7 << 20], { device }));
// The copies of the keys and values in the order that the kernels read: as large again as both.
const q = Tensor.normal([1, 8, 1, 256], { device });
const k = Tensor.normal([1, 12_000, 1, 256], { device });
const result = attentionForward(q, k, k);
const scratch = await failureOf(() => device.synchronize());
const again = attention(q, k, k);
const read = await failureOf(() => again.data());
for (const held of [result.out, result.logSumExp, again, q, k]) held.dispose();
await device.synchronize();
const small = Tensor.from([1, 2, 3, 4, 5, 6, 7, 8], [1, 1, 1, 8], { device });
const later = [...(await attention(small, small, small).data())];
small.dispose();
const report: OutOfMemory = {
  limit: info().cpu.memoryLimit,
  tensor,
  scratch,
  read,
  later,
};
console.log(JSON.stringify(report));
