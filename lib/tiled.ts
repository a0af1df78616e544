import { type Recomputed, run, runAgain } from "./checkpoint.ts";
import { failure, shown, wrongKind } from "./errors.ts";
import { checkSameShape } from "./layout.ts";
import { native } from "./native.ts";
import { Scope } from "./scope.ts";
import { isOnTape, record } from "./tape.ts";
import { handleOf, Tensor } from "./tensor.ts";
import { asContiguous, referenceTo } from "./view.ts";

/**
 * Runs `work` on tiles of x's rows, one after the other, each as a `checkpoint`, and joins the results: an MLP's
 * intermediates then exist for one tile at a time (tiled MLP of Arctic long sequence training, Bekman et al., 2025).
 * Differentiable on a `Tape`, in x and the shared tensors, whose gradients are summed in float32 over the tiles and
 * rounded once.
 *
 *     y = [work(x[.., 0:n, :], ..shared); work(x[.., n:2n, :], ..shared); ..]
 *
 * @param work of rows [.., n, C], contiguous: gives [.., n, C'], each row from its own row alone. As in `checkpoint` it
 * must be a function of its inputs.
 * @param x [.., S, C].
 * @param tiles how many, as equal as they can be, or the rows of each but the last. There is one at least, and none is
 * empty where x has rows.
 * @param shared what else `work` uses and gradients are wanted of: parameters.
 * @returns [.., S, C'], of the dtype of work's results.
 * @throws the errors of `checkpoint`; `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DEVICE` where results cannot be joined; `ERR_OPTION`
 * for other tiles.
 *
 * @example
 * const x = Tensor.normal([1, 1000, 16]);
 * const [up, down] = [Tensor.normal([64, 16], { seed: 1 }), Tensor.normal([16, 64], { seed: 2 })];
 * const y = tiled((rows, a, b) => linear(gelu(linear(rows, a)), b), x, { rows: 128 }, up, down);
 * y.shape; // [1, 1000, 16]
 */
export function tiled<Shared extends Tensor[]>(
  work: Recomputed<[rows: Tensor, ...shared: Shared]>,
  x: Tensor,
  tiles: number | { rows: number },
  ...shared: Shared
): Tensor {
  if (typeof work !== "function") throw wrongKind("tiled: work", "a function", work);
  handleOf(x, "tiled: x");
  for (const [at, tensor] of shared.entries()) handleOf(tensor, `tiled: shared tensor ${at}`);
  const axis = x.shape.length - 2;
  if (axis < 0)
    throw failure("ERR_SHAPE", `tiled: x has the shape [${x.shape.join(", ")}], expected [.., S, C]`);
  const parts = partsOf(x.shape[axis] ?? 0, tiles);
  const y = Scope.run(() => {
    const rows = referenceTo(x);
    return joined(parts, axis, (part) => run("tiled", work, [rowsOf(rows, axis, part), ...shared]), rows);
  });
  return record("tiled", [y], [x, ...shared], (save) => {
    const rows = save(x);
    const saved = shared.map(save) as Shared;
    const wanted = [x, ...shared].map(isOnTape);
    return ([dy]) => {
      const dx = wanted[0] ? Tensor.empty(rows.shape, { dtype: rows.dtype, device: rows.device }) : null;
      const sums: (Tensor | null)[] = saved.map(() => null);
      for (const part of parts) {
        Scope.run((scope) => {
          const [drows = null, ...gradients] = runAgain(
            "tiled",
            work,
            [rowsOf(rows, axis, part), ...saved],
            rowsOf(dy, axis, part),
            wanted,
          );
          if (dx) put(drows, dx.slice(axis, part.begin, part.end));
          for (const [at, gradient] of gradients.entries()) {
            const sum = sums[at];
            if (gradient && sum) addTo(sum, gradient);
            else if (gradient) sums[at] = scope.keep(gradient.to("float32"));
          }
        });
      }
      return [dx, ...sums.map((sum, at) => sum && rounded(sum, saved[at]))];
    };
  });
}

interface Part {
  begin: number;
  end: number;
}

function partsOf(size: number, tiles: number | { rows: number }): Part[] {
  if (typeof tiles === "number") {
    const count = Math.max(1, Math.min(checkedCount("tiles", tiles), size));
    const start = (part: number) => Math.floor((part * size) / count);
    return Array.from({ length: count }, (_, part) => ({ begin: start(part), end: start(part + 1) }));
  }
  if (typeof tiles !== "object" || tiles === null)
    throw wrongKind("tiled: tiles", "a number or { rows }", tiles);
  const rows = checkedCount("tiles.rows", tiles.rows);
  const count = Math.max(1, Math.ceil(size / rows));
  return Array.from({ length: count }, (_, part) => ({
    begin: part * rows,
    end: Math.min(size, (part + 1) * rows),
  }));
}

function checkedCount(name: string, count: number): number {
  if (typeof count !== "number") throw wrongKind(`tiled: ${name}`, "an integer of 1 or more", count);
  if (!Number.isSafeInteger(count) || count < 1)
    throw failure("ERR_OPTION", `tiled: ${name} is ${shown(count)}, expected an integer of 1 or more`);
  return count;
}

function rowsOf(tensor: Tensor, axis: number, { begin, end }: Part): Tensor {
  const rows = tensor.slice(axis, begin, end);
  return asContiguous(rows);
}

/** Each part's result in its place of one tensor. */
function joined(parts: readonly Part[], axis: number, resultOf: (part: Part) => Tensor, x: Tensor): Tensor {
  let whole: Tensor | undefined;
  for (const part of parts) {
    Scope.run((scope) => {
      const result = resultOf(part);
      const { dtype, device } = result;
      const columns = whole?.shape.at(-1) ?? result.shape.at(-1) ?? 0;
      checkResult(result, x.shape.with(axis, part.end - part.begin).with(-1, columns), whole);
      whole ??= scope.keep(Tensor.empty(x.shape.with(-1, columns), { dtype, device }));
      put(result, whole.slice(axis, part.begin, part.end));
    });
  }
  return whole as Tensor;
}

function checkResult(result: Tensor, expected: readonly number[], whole: Tensor | undefined): void {
  const what = "tiled: the result of work";
  checkSameShape(what, result.shape, expected);
  if (whole === undefined) return;
  if (result.dtype !== whole.dtype)
    throw failure(
      "ERR_DTYPE",
      `${what} is ${result.dtype}, expected ${whole.dtype} (that of the first tile)`,
    );
  if (result.device !== whole.device)
    throw failure("ERR_DEVICE", `${what} is on another device than that of the first tile`);
}

/** Null: zeros. */
function put(values: Tensor | null, place: Tensor): void {
  if (values) native.copy(handleOf(values, "values"), handleOf(place, "place"));
  else native.fill(handleOf(place, "place"), 0);
}

function addTo(sum: Tensor, term: Tensor): void {
  native.scale(handleOf(term, "term"), null, null, handleOf(sum, "sum"), true);
}

function rounded(sum: Tensor, like: Tensor | undefined): Tensor {
  return like === undefined || like.dtype === sum.dtype ? sum : sum.to(like.dtype);
}
