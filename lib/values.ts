// What tensors are made from: element types and values, checked.
import { failure, wrongKind } from "./errors.ts";

/** An element's type. Sums and softmax run in float32 whatever the inputs' type is. */
export type DType = "float32" | "bfloat16" | "float16" | "int32" | "uint8";
/** In the order of the addon's own. */
export const dtypes: readonly DType[] = ["float32", "bfloat16", "float16", "int32", "uint8"];
export const itemBytes: Readonly<Record<DType, number>> = {
  float32: 4,
  bfloat16: 2,
  float16: 2,
  int32: 4,
  uint8: 1,
};

/** What a tensor can be made from. A Uint16Array holds the bits of 16-bit floats. */
export type TensorValues =
  | Float32Array
  | Float64Array
  | Int32Array
  | Uint8Array
  | Uint16Array
  | readonly number[];

/** The values as an array that the addon takes. */
export function typedValues(
  what: string,
  values: TensorValues,
  dtype: DType | undefined,
): Exclude<TensorValues, Float64Array | readonly number[]> {
  if (Array.isArray(values)) checkNumbers(what, values);
  if (Array.isArray(values) || values instanceof Float64Array) {
    return dtype === "int32" ? saturated(values) : Float32Array.from(values);
  }
  if (values instanceof Uint16Array && dtype !== "bfloat16" && dtype !== "float16") {
    throw failure(
      "ERR_DTYPE",
      `${what}: a Uint16Array holds the bits of bfloat16 or float16: name the dtype`,
    );
  }
  if (
    values instanceof Float32Array ||
    values instanceof Int32Array ||
    values instanceof Uint8Array ||
    values instanceof Uint16Array
  ) {
    return values;
  }
  throw wrongKind(
    `${what}: values`,
    "a Float32Array, Float64Array, Int32Array, Uint8Array, Uint16Array or an array of numbers",
    values,
  );
}

/** What is none would become a NaN, or an error of JavaScript's own. */
function checkNumbers(what: string, values: readonly unknown[]): void {
  for (let at = 0; at < values.length; at++) {
    if (typeof values[at] !== "number") throw wrongKind(`${what}: values[${at}]`, "a number", values[at]);
  }
}

/** Not by way of float32, which has 24 bits only. */
function saturated(values: Float64Array | readonly number[]): Int32Array {
  return Int32Array.from(values, (value) => Math.min(Math.max(value, -(2 ** 31)), 2 ** 31 - 1));
}

/** What a tensor's values are read into: 16-bit floats widened. */
export function arrayForValues(dtype: DType, length: number): Float32Array | Int32Array | Uint8Array {
  if (dtype === "int32") return newArray(Int32Array, length);
  return dtype === "uint8" ? newArray(Uint8Array, length) : newArray(Float32Array, length);
}

/** What its stored bits are read into. */
export function arrayForBits(dtype: DType, length: number): Uint32Array | Uint16Array | Uint8Array {
  const bytes = itemBytes[dtype];
  if (bytes === 1) return newArray(Uint8Array, length);
  return bytes === 2 ? newArray(Uint16Array, length) : newArray(Uint32Array, length);
}

/** An array to read into, which JavaScript may refuse to make. */
export function newArray<T>(type: new (length: number) => T, length: number): T {
  try {
    return new type(length);
  } catch (cause) {
    throw failure("ERR_OUT_OF_MEMORY", `out of memory: an array of ${length} elements`, { cause });
  }
}
