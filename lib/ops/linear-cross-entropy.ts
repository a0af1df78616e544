// Cross entropy fused with the projection whose logits it takes, in tiles of rows (as in Liger kernels, Hsu et al.,
// 2024, and Arctic long sequence training, Bekman et al., 2025): the logits of a tile become its loss, their own
// gradient, and what that gives to dx and dweight, before the next tile's logits take their place.
import { native } from "../native.ts";
import { Scope } from "../scope.ts";
import { isOnTape, record } from "../tape.ts";
import { handleOf, Tensor } from "../tensor.ts";
import { asContiguous, referenceTo } from "../view.ts";
import { checkedCall, type LinearCrossEntropyOptions } from "./linear-cross-entropy-options.ts";
import { crossEntropyBackward, crossEntropyForward } from "./loss.ts";
import { matmul } from "./matmul.ts";

/**
 * `crossEntropy(linear(x, weight), targets)`, without the logits of all rows in memory: they are made and used up in
 * tiles of rows. Differentiable on a `Tape`, in x and weight. The forward pass makes the gradients as well, where a tape
 * asks for them, and the backward pass multiplies them by that of the loss.
 *
 *     loss = sum_r (ln(sum_v exp l_rv) - l_rt) / count      l = x weight^T, t = targets_r
 *
 * The logits are float32 whatever the dtype is; their gradient is rounded to it once, for the two products that follow,
 * and weight's gradient is summed in float32 over all tiles. Ignored targets, and those that are neither ignored nor in
 * [0, V), do as in `crossEntropy`.
 *
 * @param x [.., C] in float32, bfloat16 or float16. Any strides; with others than row-major a copy is made.
 * @param weight [V, C], of x's dtype.
 * @param targets [..] int32.
 * @returns [] float32.
 * @throws `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DEVICE`, `ERR_OPTION`, `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`: at once, but for
 * scratch, which the next `await` on the device reports; `ERR_NO_CUDA` as `matmul`.
 *
 * @example
 * const [x, weight] = [Tensor.normal([6, 8]), Tensor.normal([100, 8], { seed: 1 })];
 * const targets = Tensor.from(Int32Array.of(0, 99, -100, 5, 5, 7), [6]);
 * using tape = new Tape();
 * tape.watch(x, weight);
 * const loss = linearCrossEntropy(x, weight, targets, { tileRows: 2 });
 * const [dx, dweight] = tape.backward(loss, Tensor.from([1], []), [x, weight]);
 * dweight?.shape; // [100, 8]
 */
export function linearCrossEntropy(
  x: Tensor,
  weight: Tensor,
  targets: Tensor,
  options: LinearCrossEntropyOptions = {},
): Tensor {
  const checked = checkedCall(x, weight, targets, options);
  const { count, dweight } = options;
  const isRecorded = isOnTape(x) || isOnTape(weight);
  return Scope.run(() => {
    const made = inTiles(x, weight, targets, {
      ...checked,
      wantsDx: isOnTape(x),
      wantsDweight: isRecorded && (isOnTape(weight) || dweight !== undefined),
    });
    const given = typeof count === "number" ? Tensor.from([count], [], { device: x.device }) : count;
    const divisor = checked.reduction === "mean" ? (given ?? made.count) : null;
    const loss = Tensor.empty([], { device: x.device });
    scale(made.loss, null, divisor, loss);
    return record("linearCrossEntropy", [loss], [x, weight], (save, hold) => {
      const saved = {
        dx: made.dx && save(made.dx),
        dweight: made.dweight && save(made.dweight),
        divisor: divisor && save(divisor),
      };
      const sum = dweight && hold(dweight);
      const { shape } = x;
      const { dtype } = weight;
      return ([dloss]) => {
        // What is saved is this step's alone, so it may be changed in its place.
        const inPlace = (gradient: Tensor) => {
          scale(gradient, dloss, saved.divisor, gradient);
          return referenceTo(gradient);
        };
        const dx = saved.dx && inPlace(saved.dx).reshape(shape);
        if (!saved.dweight) return [dx, null];
        if (sum) {
          scale(saved.dweight, dloss, saved.divisor, sum, true);
          return [dx, null];
        }
        if (dtype === "float32") return [dx, inPlace(saved.dweight)];
        const rounded = Tensor.empty(saved.dweight.shape, { dtype, device: saved.dweight.device });
        scale(saved.dweight, dloss, saved.divisor, rounded);
        return [dx, rounded];
      };
    });
  });
}

/** Sums over the rows: of the losses, of those that count, and the gradients of the losses' sum. */
interface TileSums {
  loss: Tensor;
  count: Tensor;
  dx: Tensor | null;
  /** float32. */
  dweight: Tensor | null;
}

function inTiles(
  x: Tensor,
  weight: Tensor,
  targets: Tensor,
  call: { ignoreIndex: number; tileRows: number; wantsDx: boolean; wantsDweight: boolean },
): TileSums {
  const { dtype, device } = x;
  const [vocabulary = 0, columns = 0] = weight.shape;
  const rows = asRows(referenceTo(x), [targets.size, columns]);
  const labels = asRows(referenceTo(targets), [targets.size]);
  const tileRows = Math.min(call.tileRows, targets.size);
  // Queued work holds what it uses until it has run: one block for all tiles, not one each.
  const logits = Tensor.empty([tileRows, vocabulary], { device });
  const wantsAny = call.wantsDx || call.wantsDweight;
  const rounded =
    wantsAny && dtype !== "float32" ? Tensor.empty([tileRows, vocabulary], { dtype, device }) : logits;
  const dloss = Tensor.from([1], [], { device });
  const sums: TileSums = {
    loss: Tensor.zeros([], { device }),
    count: Tensor.zeros([], { device }),
    dx: call.wantsDx ? Tensor.empty(rows.shape, { dtype, device }) : null,
    dweight: call.wantsDweight ? Tensor.zeros(weight.shape, { device }) : null,
  };
  const cross = { ignoreIndex: call.ignoreIndex, reduction: "sum" } as const;
  for (let first = 0; first < targets.size; first += tileRows) {
    Scope.run(() => {
      const end = Math.min(targets.size, first + tileRows);
      const [part, target] = [rows.slice(0, first, end), labels.slice(0, first, end)];
      const tile = logits.slice(0, 0, end - first);
      matmul(part, weight, { transposeB: true, out: tile });
      const forward = crossEntropyForward(tile, target, cross);
      addTo(sums.loss, forward.loss);
      addTo(sums.count, forward.count);
      if (!wantsAny) return;
      const overwritten = { ...cross, overwriteLogits: true };
      crossEntropyBackward({ logits: tile, targets: target, ...forward, dloss }, overwritten);
      const dlogits = rounded.slice(0, 0, end - first);
      if (rounded !== logits) native.copy(handleOf(tile, "dlogits"), handleOf(dlogits, "dlogits"));
      if (sums.dx) matmul(dlogits, weight, { out: sums.dx.slice(0, first, end) });
      if (sums.dweight) matmul(dlogits, part, { transposeA: true, out: sums.dweight, accumulate: true });
    });
  }
  return sums;
}

/** What is computed in this call is on no tape, so neither are its views. */
function asRows(tensor: Tensor, shape: readonly number[]): Tensor {
  return asContiguous(tensor).reshape(shape);
}

function addTo(sum: Tensor, term: Tensor): void {
  native.add(handleOf(sum, "sum"), handleOf(term, "term"), handleOf(sum, "sum"));
}

/** y (+)= x factor / divisor, where what is null is 1, and a divisor below 1 too. */
function scale(
  x: Tensor,
  factor: Tensor | null,
  divisor: Tensor | null,
  y: Tensor,
  accumulate = false,
): void {
  native.scale(
    handleOf(x, "x"),
    factor && handleOf(factor, "factor"),
    divisor && handleOf(divisor, "divisor"),
    handleOf(y, "y"),
    accumulate,
  );
}
