// How tensors are made: the options, checked.
import type { Device } from "./device.ts";
import { checkOptions, failure, type OptionNames, shown, wrongKind } from "./errors.ts";
import type { DType } from "./values.ts";

/** Of what type a new tensor's elements are, and where it is. */
export interface TensorOptions {
  /** Default: float32, or for an Int32Array int32 and for a Uint8Array uint8. */
  dtype?: DType;
  /** Default: `Device.default`. */
  device?: Device;
}

export const tensorOptionNames: OptionNames<TensorOptions> = { dtype: true, device: true };

interface Normal {
  seed?: number;
  first?: number;
  mean?: number;
  std?: number;
}

const normalOptionNames: OptionNames<TensorOptions & Normal> = {
  ...tensorOptionNames,
  seed: true,
  first: true,
  mean: true,
  std: true,
};

/** What `Tensor.normal` draws, and of it the options of the tensor. */
export function checkedNormal(options: TensorOptions & Normal): Required<Normal> & { place: TensorOptions } {
  const what = "Tensor.normal";
  checkOptions(what, options, normalOptionNames);
  const { seed = 0, first = 0, mean = 0, std = 1, ...place } = options;
  for (const [name, n] of Object.entries({ seed, first })) {
    if (!Number.isSafeInteger(n) || n < 0)
      throw failure("ERR_OPTION", `${what}: ${name} is ${shown(n)}, expected an integer of 0 or more`);
  }
  for (const [name, n] of Object.entries({ mean, std })) {
    if (typeof n !== "number") throw wrongKind(`${what}: ${name}`, "a number", n);
  }
  if (!Number.isFinite(mean))
    throw failure("ERR_OPTION", `${what}: mean is ${mean}, expected a finite number`);
  if (!(std >= 0 && std < Number.POSITIVE_INFINITY))
    throw failure("ERR_OPTION", `${what}: std is ${std}, expected a finite number of 0 or more`);
  return { seed, first, mean, std, place };
}
