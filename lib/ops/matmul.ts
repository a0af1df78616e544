import { checkOptions, failure, type OptionNames, shown } from "../errors.ts";
import { native } from "../native.ts";
import { record } from "../tape.ts";
import { handleOf, noteWrite, Tensor } from "../tensor.ts";
import type { DType } from "../values.ts";
import { asContiguous } from "../view.ts";
import { queued } from "./queued.ts";

/** How operands are read, and where the product goes. */
export interface MatmulOptions {
  /** The last two axes of a are in the other order: [K, M], or [B, K, M]. */
  transposeA?: boolean;
  /** The last two axes of b are in the other order: [N, K], or [B, N, K]. */
  transposeB?: boolean;
  /** [N], of a's dtype: added to every row. */
  bias?: Tensor;
  /** The result's dtype, where it is to be wider than the operands'. */
  outDtype?: "float32";
  /** Where the result goes: of its shape, of a's dtype or float32, its last axis contiguous, apart from the operands. */
  out?: Tensor;
  /** Adds to `out` what would else replace it, as a gradient is summed. */
  accumulate?: boolean;
}

const matmulOptionNames: OptionNames<MatmulOptions> = {
  transposeA: true,
  transposeB: true,
  bias: true,
  outDtype: true,
  out: true,
  accumulate: true,
};

/**
 * The matrix product, `op(a) op(b) + bias`. Differentiable on a `Tape`, but where `out` is given.
 *
 * Products and sums are float32 whatever the operands are (bfloat16 and float16 on the tensor cores of a GPU; float32
 * is not cut to tf32), and the result is rounded once. On a GPU it runs on cuBLASLt, which must be installed.
 *
 * @param a [.., M, K], or a batch [B, M, K]; float32, bfloat16 or float16. Any strides: an operand with neither of its
 * last two axes contiguous is copied first.
 * @param b [K, N], which all of a is multiplied by, or a batch [B, K, N]; of a's dtype.
 * @returns [.., M, N], of a's dtype; or `out`.
 * @throws `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DEVICE`, `ERR_OPTION`, `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`; `ERR_NO_CUDA` on
 * a GPU where cuBLASLt cannot be opened: the message says what was tried (`LONGSEQ_CUBLAS` names its file or folder).
 *
 * @example
 * const a = Tensor.from([1, 2, 3, 4, 5, 6], [2, 3]);
 * const b = Tensor.from([1, 0, 2, 0, 1, 1], [2, 3]);
 * await matmul(a, b, { transposeB: true }).data(); // [7, 5, 16, 11]
 */
export function matmul(a: Tensor, b: Tensor, options: MatmulOptions = {}): Tensor {
  checkOptions("matmul", options, matmulOptionNames);
  const { transposeA = false, transposeB = false, bias, out, accumulate = false, outDtype } = options;
  for (const [name, value] of Object.entries({ transposeA, transposeB, accumulate })) {
    if (typeof value !== "boolean")
      throw failure("ERR_OPTION", `matmul: ${name} is ${shown(value)}, expected true or false`);
  }
  if (accumulate && out === undefined)
    throw failure("ERR_OPTION", "matmul: accumulate is given without out, to which to add");
  if (out !== undefined && outDtype !== undefined)
    throw failure("ERR_OPTION", "matmul: outDtype is given with out, whose dtype it is");
  checkOutDtype("matmul", outDtype);
  const operands = [
    handleOf(a, "matmul: a"),
    handleOf(b, "matmul: b"),
    bias === undefined ? null : handleOf(bias, "matmul: bias"),
  ] as const;
  if (out !== undefined) {
    native.matmul(...operands, handleOf(out, "matmul: out"), transposeA, transposeB, accumulate);
    noteWrite(out);
    return out;
  }
  const rows = a.shape.at(transposeA ? -1 : -2) ?? 0;
  const columns = b.shape.at(transposeB ? -2 : -1) ?? 0;
  const result = Tensor.empty([...a.shape.slice(0, -2), rows, columns], {
    dtype: outDtype ?? a.dtype,
    device: a.device,
  });
  queued([result], () => native.matmul(...operands, handleOf(result, "out"), transposeA, transposeB, false));
  return record("matmul", [result], bias === undefined ? [a, b] : [a, b, bias], (save) => {
    const [left, right] = [save(a), save(b)];
    return ([gradient], [ofA, ofB, ofBias]) => {
      const dy = inDtype(gradient, left.dtype);
      return [
        ofA ? gradientOfA(right, dy, { transposeA, transposeB }) : null,
        ofB ? gradientOfB(left, right, dy, { transposeA, transposeB }) : null,
        ...(bias ? [ofBias ? rowsSummed(dy) : null] : []),
      ];
    };
  });
}

interface Transposed {
  transposeA: boolean;
  transposeB: boolean;
}

function gradientOfA(b: Tensor, dy: Tensor, { transposeA, transposeB }: Transposed): Tensor {
  return transposeA
    ? matmul(b, dy, { transposeA: transposeB, transposeB: true })
    : matmul(dy, b, { transposeB: !transposeB });
}

function gradientOfB(a: Tensor, b: Tensor, dy: Tensor, { transposeA, transposeB }: Transposed): Tensor {
  // One b for all of a: its gradient is that of all rows.
  const [left, right] = b.shape.length === 2 ? [asMatrix(a), asMatrix(dy)] : [a, dy];
  return transposeB
    ? matmul(right, left, { transposeA: true, transposeB: transposeA })
    : matmul(left, right, { transposeA: !transposeA });
}

export function checkOutDtype(what: string, outDtype: unknown): void {
  if (outDtype !== undefined && outDtype !== "float32")
    throw failure("ERR_OPTION", `${what}: outDtype is ${shown(outDtype)}, expected "float32"`);
}

export function inDtype(tensor: Tensor, dtype: DType): Tensor {
  return tensor.dtype === dtype ? tensor : tensor.to(dtype);
}

/** [.., C] as [R, C]. */
export function asMatrix(tensor: Tensor): Tensor {
  if (tensor.shape.length === 2) return tensor;
  const columns = tensor.shape.at(-1) ?? 1;
  const rows = tensor.shape.slice(0, -1).reduce((a, b) => a * b, 1);
  return asContiguous(tensor).reshape([rows, columns]);
}

function rowsSummed(tensor: Tensor): Tensor {
  const sum = Tensor.empty([tensor.shape.at(-1) ?? 0], { dtype: tensor.dtype, device: tensor.device });
  native.columnSum(handleOf(tensor, "gradient"), handleOf(sum, "sum"));
  return sum;
}
