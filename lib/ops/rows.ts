// What operations on rows share: results like their inputs, and gradients as rows.
import { Tensor } from "../tensor.ts";

export function emptyLike({ shape, dtype, device }: Tensor): Tensor {
  return Tensor.empty(shape, { dtype, device });
}

/** float32, one element for each row. */
export function emptyStatistic({ shape, device }: Tensor): Tensor {
  return Tensor.empty(shape.slice(0, -1), { device });
}

/** The tensor, or a copy where its rows have gaps between their elements: gradients come as other operations left them. */
export function withDenseRows(tensor: Tensor): Tensor {
  return (tensor.shape.at(-1) ?? 0) <= 1 || tensor.strides.at(-1) === 1 ? tensor : tensor.contiguous();
}
