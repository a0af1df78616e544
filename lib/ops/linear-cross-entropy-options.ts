import { failure, type OptionNames, shown, wrongKind } from "../errors.ts";
import { handleOf, Tensor } from "../tensor.ts";
import { checkGradientSum } from "./gradient-sum.ts";
import { type CrossEntropyOptions, checkedOptions } from "./loss.ts";

/** Which rows count, what the loss is divided by, and how many rows are worked on at a time. */
export interface LinearCrossEntropyOptions extends Pick<CrossEntropyOptions, "ignoreIndex"> {
  /** "mean", the default, is over the targets that are not ignored, 0 where all are. */
  reduction?: "mean" | "sum";
  /**
   * What "mean" divides by in place of the targets that are not ignored, as where it is those of all ranks: a whole
   * number, or a tensor of one float32. Below 1 it is 1.
   */
  count?: number | Tensor;
  /** Rows whose logits exist at a time. Default: as many as make 64 MiB; on a GPU 2,048, or what 512 MiB have room for. */
  tileRows?: number;
  /**
   * Of weight's shape, float32 or weight's dtype: the backward pass of the tape adds weight's gradient to this, and
   * what it returns for weight is zeros.
   */
  dweight?: Tensor;
}

const optionNames: OptionNames<LinearCrossEntropyOptions> = {
  ignoreIndex: true,
  reduction: true,
  count: true,
  tileRows: true,
  dweight: true,
};

const operation = "linearCrossEntropy";
const tileElements = 2 ** 26 / 4;
/** Each tile's product reads and writes all of dweight's sums, which fewer rows than these do not keep a GPU busy beside. */
const gpuRows = 2048;
const gpuElements = 2 ** 29 / 4;
/** Rows of the tiles that a GPU's matrix product is made of: of more, whole ones. */
const productRows = 128;

/** Checks the call, also where there are no rows, and fills in its defaults. */
export function checkedCall(
  x: Tensor,
  weight: Tensor,
  targets: Tensor,
  options: LinearCrossEntropyOptions,
): { ignoreIndex: number; reduction: string; tileRows: number } {
  const { ignoreIndex, reduction } = checkedOptions(operation, options, optionNames);
  for (const [name, tensor] of Object.entries({ x, weight, targets })) {
    handleOf(tensor, `${operation}: ${name}`);
    if (tensor.device !== x.device) throw onAnotherDevice(name);
  }
  checkTensors(x, weight, targets);
  const { count, dweight } = options;
  if (reduction !== "mean" && reduction !== "sum") {
    throw failure("ERR_OPTION", `${operation}: reduction is "${reduction}", expected "mean" or "sum"`);
  }
  if (count !== undefined) checkCount(count, reduction, x);
  if (dweight !== undefined) checkGradientSum(operation, "dweight", dweight, weight);
  const rowsOf = (elements: number) => Math.max(1, Math.floor(elements / Math.max(1, weight.shape[0] ?? 0)));
  const enough = x.device.kind === "cuda" ? Math.min(gpuRows, rowsOf(gpuElements)) : 1;
  const most = Math.max(rowsOf(tileElements), enough);
  const { tileRows = most < productRows ? most : most - (most % productRows) } = options;
  if (!Number.isSafeInteger(tileRows) || tileRows < 1) {
    throw failure(
      "ERR_OPTION",
      `${operation}: tileRows is ${shown(tileRows)}, expected an integer of 1 or more`,
    );
  }
  return { ignoreIndex, reduction, tileRows };
}

function checkTensors(x: Tensor, weight: Tensor, targets: Tensor): void {
  if (!["float32", "bfloat16", "float16"].includes(x.dtype)) {
    throw failure("ERR_DTYPE", `${operation}: x is ${x.dtype}, expected float32, bfloat16 or float16`);
  }
  if (weight.dtype !== x.dtype)
    throw failure("ERR_DTYPE", `${operation}: weight is ${weight.dtype}, expected ${x.dtype} (that of x)`);
  if (targets.dtype !== "int32")
    throw failure("ERR_DTYPE", `${operation}: targets is ${targets.dtype}, expected int32`);
  const columns = x.shape.at(-1);
  if (columns === undefined) throw failure("ERR_SHAPE", `${operation}: x has no axis, expected [.., C]`);
  if (weight.shape.length !== 2 || weight.shape[1] !== columns) {
    throw failure(
      "ERR_SHAPE",
      `${operation}: weight has the shape [${weight.shape.join(", ")}], expected [V, ${columns}] (the columns of x)`,
    );
  }
  const rows = x.shape.slice(0, -1).join(", ");
  if (targets.shape.join(", ") !== rows) {
    throw failure(
      "ERR_SHAPE",
      `${operation}: targets has the shape [${targets.shape.join(", ")}], expected [${rows}] (the rows of x)`,
    );
  }
}

function checkCount(count: number | Tensor, reduction: string, x: Tensor): void {
  if (reduction === "sum")
    throw failure(
      "ERR_OPTION",
      `${operation}: count is given for the reduction "sum", which does not divide`,
    );
  if (typeof count === "number") {
    if (!Number.isSafeInteger(count) || count < 0)
      throw failure("ERR_OPTION", `${operation}: count is ${count}, expected an integer of 0 or more`);
    return;
  }
  if (!(count instanceof Tensor)) throw wrongKind(`${operation}: count`, "a number or a Tensor", count);
  handleOf(count, `${operation}: count`);
  if (count.dtype !== "float32")
    throw failure("ERR_DTYPE", `${operation}: count is ${count.dtype}, expected float32`);
  if (count.size !== 1)
    throw failure(
      "ERR_SHAPE",
      `${operation}: count has the shape [${count.shape.join(", ")}], expected one element`,
    );
  if (count.device !== x.device) throw onAnotherDevice("count");
}

function onAnotherDevice(name: string): Error {
  return failure("ERR_DEVICE", `${operation}: ${name} is on another device than x`);
}
