// Keys and values on their way.
import { native } from "../native.ts";
import { handleOf, Tensor } from "../tensor.ts";

/** Keys and values in one tensor, [2, B, n, H, D], so that a piece is one parcel. */
export function packed(k: Tensor, v: Tensor): Tensor {
  const both = Tensor.empty([2, ...k.shape], { dtype: k.dtype, device: k.device });
  for (const [i, part] of [k, v].entries()) {
    using place = both.select(0, i);
    copyInto(place, part);
  }
  return both;
}

export function copyInto(place: Tensor, values: Tensor): void {
  native.copy(handleOf(values, "values"), handleOf(place, "place"));
}
