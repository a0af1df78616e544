import { Device, handleOfDevice } from "../device.ts";
import { failure, shown } from "../errors.ts";
import { native } from "../native.ts";
import { type DType, dtypes } from "../values.ts";
import type { AttentionOptions } from "./attention-options.ts";

/**
 * Which kernels `attention` runs, forward and backward, for calls of many queries: "sm90" on Hopper (H100, H200) for
 * bfloat16 and float16, "sm80" for float32 there and on every other GPU, "cpu" on the CPU.
 *
 * @param of What it depends on. `implementation` is the option of that name.
 * @throws `ERR_DTYPE`, `ERR_OPTION` (no such implementation there), and `ERR_KIND` where the device is none.
 *
 * @example
 * console.log(attentionKernels({ dtype: "bfloat16" }));
 */
export function attentionKernels(
  of: {
    device?: Device;
    dtype?: DType;
    implementation?: AttentionOptions["implementation"] | undefined;
  } = {},
): NonNullable<AttentionOptions["implementation"]> {
  const { device = Device.default, dtype = "float32", implementation } = of;
  if (implementation === "reference") return implementation;
  const index = dtypes.indexOf(dtype);
  if (index < 0) {
    throw failure("ERR_DTYPE", `attentionKernels: dtype is ${shown(dtype)}, expected ${dtypes.join(", ")}`);
  }
  const name = native.attentionKernels(handleOfDevice(device), index, implementation ?? null);
  return name as "cpu" | "sm80" | "sm90";
}
