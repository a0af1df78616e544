import type { Device } from "./device.ts";
import { native } from "./native.ts";
import { handleOf, Tensor } from "./tensor.ts";
import { type DType, dtypes } from "./values.ts";

/**
 * How fast a device multiplies and adds at most, in 10^12 floating-point operations a second over all threads: a loop
 * of the products that `dtype` is multiplied by, from register to register. Takes about a tenth of a second.
 */
export async function measurePeak(device: Device, dtype: DType): Promise<number> {
  using y = Tensor.empty([1], { device });
  native.measurePeak(handleOf(y, "measurePeak"), dtypes.indexOf(dtype));
  const [teraflops = 0] = await y.data();
  return teraflops;
}
