// Comparing results bit for bit.
import type { Tensor } from "longseq";
import { kind } from "./devices.ts";

export async function bitsOf(tensor: Tensor): Promise<Buffer> {
  const bits = await tensor.bits();
  return Buffer.from(bits.buffer, bits.byteOffset, bits.byteLength);
}

/**
 * The names of the tensors in `expected` whose bits differ from those in `actual`. Where attention was not asked to be
 * `deterministic`, a GPU adds up the dq of 16-bit tensors in an order of its own: that is left out.
 */
export async function differing(
  actual: Readonly<Record<string, Tensor>>,
  expected: Readonly<Record<string, Tensor>>,
  { deterministic = false } = {},
): Promise<string[]> {
  const found: string[] = [];
  for (const [name, tensor] of Object.entries(expected)) {
    if (kind === "cuda" && name === "dq" && tensor.dtype !== "float32" && !deterministic) continue;
    const other = actual[name];
    if (other === undefined || !(await bitsOf(other)).equals(await bitsOf(tensor))) found.push(name);
  }
  return found;
}
