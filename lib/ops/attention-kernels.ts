import { Device, handleOfDevice } from "../device.ts";
import { failure, shown } from "../errors.ts";
import { native } from "../native.ts";
import { type DType, dtypes } from "../values.ts";
import type { AttentionOptions } from "./attention-options.ts";

/**
 * Which kernels `attention` runs, for a call of many queries: on Hopper (H100, H200) "sm90" for bfloat16 and float16,
 * but for gradients of D above 128 or asked to be deterministic; "sm80" on every other GPU and for the rest; "cpu".
 *
 * @param of What it depends on. `implementation` is the option of that name: "sm90" stands for sm80's where it has none.
 * @throws `ERR_DTYPE`, `ERR_OPTION` (no such implementation there, or pass), and `ERR_KIND` where the device is none.
 *
 * @example
 * console.log(attentionKernels({ dtype: "bfloat16", headDim: 128, pass: "backward" }));
 */
export function attentionKernels(
  of: {
    device?: Device;
    dtype?: DType;
    headDim?: number;
    pass?: "forward" | "backward";
    deterministic?: boolean;
    implementation?: AttentionOptions["implementation"] | undefined;
  } = {},
): NonNullable<AttentionOptions["implementation"]> {
  const { device = Device.default, dtype = "float32", headDim = 64, pass = "forward" } = of;
  const { deterministic = false, implementation } = of;
  if (implementation === "reference") return implementation;
  const index = dtypes.indexOf(dtype);
  if (index < 0) {
    throw failure("ERR_DTYPE", `attentionKernels: dtype is ${shown(dtype)}, expected ${dtypes.join(", ")}`);
  }
  const name = native.attentionKernels(
    handleOfDevice(device),
    index,
    headDim,
    pass,
    deterministic,
    implementation ?? null,
  );
  return name as "cpu" | "sm80" | "sm90";
}
