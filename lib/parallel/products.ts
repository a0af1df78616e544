// A product's parts: rows of some ranks, columns of this one.
import { native } from "../native.ts";
import type { LinearOptions } from "../ops/linear.ts";
import { asMatrix } from "../ops/matmul.ts";
import { handleOf, Tensor } from "../tensor.ts";

/** For x weight^T of so many rows of each sequence: [B, rows, O]. */
export function emptyProduct(x: Tensor, rows: number, weight: Tensor, { outDtype }: LinearOptions): Tensor {
  const { shape, dtype, device } = x;
  return Tensor.empty([shape[0] ?? 1, rows, weight.shape[0] ?? 0], { dtype: outDtype ?? dtype, device });
}

/** Batch by batch, since a peer's rows of several batches do not lie in one go. */
function eachBatch(a: Tensor, b: Tensor, work: (a: Tensor, b: Tensor) => void): void {
  for (let batch = 0; batch < (a.shape[0] ?? 0); batch++) work(a.select(0, batch), b.select(0, batch));
}

export function linearInto(rows: Tensor, weight: Tensor, bias: Tensor | undefined, place: Tensor): void {
  const parameters = [
    handleOf(weight, "linear: weight"),
    bias ? handleOf(bias, "linear: bias") : null,
  ] as const;
  eachBatch(rows, place, (x, y) => {
    native.linear(handleOf(x, "linear: x"), ...parameters, handleOf(y, "linear: y"));
  });
}

export function productInto(rows: Tensor, weight: Tensor, place: Tensor): void {
  const right = handleOf(weight, "linear: weight");
  eachBatch(rows, place, (a, out) => {
    native.matmul(handleOf(a, "linear: dy"), right, null, handleOf(out, "linear: dx"), false, false, false);
  });
}

/** dy^T x, added to `total` where there is one; null then. */
export function weightGradient(
  dy: Tensor,
  x: Tensor,
  weight: Tensor,
  total: Tensor | undefined,
): Tensor | null {
  const out = total ?? Tensor.empty(weight.shape, { dtype: weight.dtype, device: weight.device });
  weightGradientInto(dy, x, out, total !== undefined);
  return total ? null : out;
}

/** dy^T x, in `out` or added to it. */
export function weightGradientInto(dy: Tensor, x: Tensor, out: Tensor, isSummed: boolean): void {
  native.matmul(
    handleOf(asMatrix(dy), "linear: dy"),
    handleOf(asMatrix(x), "linear: x"),
    null,
    handleOf(out, "linear: dweight"),
    true,
    false,
    isSummed,
  );
}
