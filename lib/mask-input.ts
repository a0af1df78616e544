// What AttentionMask's arguments may be.
import { type ErrorCode, failure, wrongKind } from "./errors.ts";
import { native } from "./native.ts";

export function integer(what: string, value: number, code: ErrorCode): void {
  if (typeof value !== "number") throw wrongKind(what, "an integer", value);
  if (!Number.isSafeInteger(value)) throw failure(code, `${what} is ${value}, expected an integer`);
}

export function sizesOf(what: string, queries: number, keys: number): [queries: number, keys: number] {
  integer(`${what}: queries`, queries, "ERR_SHAPE");
  integer(`${what}: keys`, keys, "ERR_SHAPE");
  return [queries, keys];
}

/** Only booleans: a promise, of an async function, would be true for every pair. */
export function bit(value: boolean, what: () => string): 0 | 1 {
  if (typeof value !== "boolean") throw wrongKind(what(), "a boolean", value);
  return value ? 1 : 0;
}

export function bitsOf(what: string, values: readonly boolean[]): Uint8Array<ArrayBuffer> {
  if (!Array.isArray(values))
    throw wrongKind(`${what}: values`, "a Uint8Array or an array of booleans", values);
  const bits = byteArray(what, values.length);
  for (const [at, value] of (values as readonly boolean[]).entries()) {
    bits[at] = bit(value, () => `${what}: values[${at}]`);
  }
  return bits;
}

/** Refused above the limit on memory too: the system would grant it, and end the process when it is written. */
export function byteArray(what: string, length: number): Uint8Array<ArrayBuffer> {
  try {
    if (length <= native.info().cpu.memoryLimit) return new Uint8Array(length);
  } catch {
    // Longer than JavaScript lets an array be.
  }
  throw failure("ERR_OUT_OF_MEMORY", `${what}: out of memory, an array of ${length} bytes`);
}
