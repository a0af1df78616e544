// Under LONGSEQ_MEMORY_LIMIT=24m: an operation finds no scratch, and what it should have made is sent on. Prints as JSON
// which reads fail, by their error's code.
import { attention, Device, Tensor } from "longseq";

export interface TransferFailure {
  there: string;
  here: string;
  /** After both were told. */
  later: number[];
}

async function codeOf(read: Promise<unknown>): Promise<string> {
  try {
    await read;
    return "none";
  } catch (error) {
    return String((error as { code?: unknown }).code);
  }
}

const [here, other] = [new Device("cpu"), new Device("cpu")];
const q = Tensor.normal([1, 8, 1, 256], { device: here });
const k = Tensor.normal([1, 12_000, 1, 256], { device: here });
const copy = attention(q, k, k).toDevice(other);
const report: TransferFailure = {
  there: await codeOf(copy.data()),
  here: await codeOf(here.synchronize()),
  later: [...(await Tensor.from([1, 2], [2], { device: here }).toDevice(other).data())],
};
console.log(JSON.stringify(report));
