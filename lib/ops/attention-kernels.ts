import { type Device, deviceOrDefault, handleOfDevice } from "../device.ts";
import { checkOptions, failure, shown, wrongKind } from "../errors.ts";
import { native } from "../native.ts";
import { type DType, dtypes } from "../values.ts";
import type { AttentionOptions } from "./attention-options.ts";

/**
 * Which kernels `attention` runs, forward and backward, for calls of many queries: "sm90" on Hopper (H100, H200) for
 * bfloat16 and float16, "sm80" for float32 there and on every other GPU, "cpu" on the CPU.
 *
 * @param of What it depends on. `implementation` is the option of that name.
 * @throws `ERR_DTYPE`; `ERR_OPTION`, also where there is no such implementation there.
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
  checkOptions("attentionKernels", of, { device: true, dtype: true, implementation: true });
  const { dtype = "float32", implementation = null } = of;
  const device = deviceOrDefault("attentionKernels", of.device);
  if (implementation !== null && typeof implementation !== "string")
    throw wrongKind("attentionKernels: implementation", "a string", implementation);
  if (implementation === "reference") return implementation;
  const index = dtypes.indexOf(dtype);
  if (index < 0) {
    throw failure("ERR_DTYPE", `attentionKernels: dtype is ${shown(dtype)}, expected ${dtypes.join(", ")}`);
  }
  const name = native.attentionKernels(handleOfDevice(device), index, implementation);
  return name as "cpu" | "sm80" | "sm90";
}
