import { checkOptions, type OptionNames } from "../errors.ts";
import { native } from "../native.ts";
import { record } from "../tape.ts";
import { handleOf, noteWrite, Tensor } from "../tensor.ts";
import { checkGradientSum } from "./gradient-sum.ts";
import { inDtype } from "./matmul.ts";
import { queued } from "./queued.ts";
import { withDenseRows } from "./rows.ts";

/** Where `embedding` puts the gradient of its table on the backward pass. */
export interface EmbeddingOptions {
  /**
   * Of table's shape, float32 or table's dtype: the backward pass of the tape adds table's gradient to this, and what
   * it returns for table is zeros. For gradients that are summed over many calls, in float32.
   */
  dtable?: Tensor;
}

const embeddingOptionNames: OptionNames<EmbeddingOptions> = { dtable: true };

/**
 * The rows of a table that indices name, as tokens name their vectors. Differentiable on a `Tape`, in the table.
 *
 *     y_r = table_t      t = indices_r
 *
 * An index outside [0, V) gives a row of NaN, and no gradient: indices are known on the device alone, when the call has
 * long returned. No memory is read or written for it.
 *
 * @param table [V, C] in float32, bfloat16 or float16. Any stride between its rows.
 * @param indices [..] int32, at most 5 axes of any strides.
 * @returns [.., C], of table's dtype.
 * @throws `ERR_SHAPE`, `ERR_DTYPE`, `ERR_DEVICE` (tensors of two devices), `ERR_OPTION`, `ERR_DISPOSED`,
 * `ERR_OUT_OF_MEMORY`: at once, but for scratch, which the next `await` on the device reports.
 *
 * @example
 * const table = Tensor.from([1, 2, 3, 4, 5, 6], [3, 2]);
 * using tape = new Tape();
 * tape.watch(table);
 * const y = embedding(table, Tensor.from(Int32Array.of(2, 0, 2), [3]));
 * await y.data(); // [5, 6, 1, 2, 5, 6]
 * const [dtable] = tape.backward(y, Tensor.from([1, 2, 3, 4, 5, 6], [3, 2]), [table]);
 * await dtable?.data(); // [3, 4, 0, 0, 6, 8]
 */
export function embedding(table: Tensor, indices: Tensor, options: EmbeddingOptions = {}): Tensor {
  checkOptions("embedding", options, embeddingOptionNames);
  const { dtable } = options;
  const operands = [handleOf(table, "embedding: table"), handleOf(indices, "embedding: indices")] as const;
  if (dtable !== undefined) checkGradientSum("embedding", "dtable", dtable, table);
  const { shape, dtype, device } = table;
  const y = Tensor.empty([...indices.shape, shape[1] ?? 0], { dtype, device });
  queued([y], () => native.embedding(...operands, handleOf(y, "y")));
  return record("embedding", [y], [table], (save, hold) => {
    const saved = save(indices);
    const sum = dtable && hold(dtable);
    return ([dy]) => {
      const made = rowsSummed(saved, dy, sum, { shape, dtype, device });
      return [sum ? null : made];
    };
  });
}

/**
 * The gradient of sum(y * dy) in the table, y being `embedding(table, indices)`. Deterministic: the same bits at any
 * thread count, and on every device.
 *
 *     dtable_v = sum of dy_r over the rows r with indices_r = v
 *
 * A sum takes its rows in ascending order, in float32, in parts of 64 whose sums it then adds up; it is rounded once.
 *
 * @param tensors table and indices as they went into `embedding`, the gradient dy [.., C], and where that is to be added
 * to what is there already, dtable, float32 or of table's dtype.
 * @returns dtable: the one given, or new, of table's shape and dtype.
 * @throws the errors of `embedding`.
 *
 * @example
 * const [table, indices] = [Tensor.zeros([3, 2]), Tensor.from(Int32Array.of(1, -1, 1), [3])];
 * const dtable = embeddingBackward({ table, indices, dy: Tensor.from([1, 2, 3, 4, 5, 6], [3, 2]) });
 * await dtable.data(); // [0, 0, 6, 8, 0, 0]
 */
export function embeddingBackward(tensors: {
  table: Tensor;
  indices: Tensor;
  dy: Tensor;
  dtable?: Tensor;
}): Tensor {
  checkOptions("embeddingBackward: tensors", tensors);
  const { table, indices, dy, dtable } = tensors;
  for (const [name, tensor] of Object.entries({ table, indices, dy })) handleOf(tensor, `embedding: ${name}`);
  if (dtable !== undefined) checkGradientSum("embedding", "dtable", dtable, table);
  const sum = rowsSummed(indices, dy, dtable, table);
  if (dtable) noteWrite(dtable);
  return sum;
}

function rowsSummed(
  indices: Tensor,
  given: Tensor,
  sum: Tensor | undefined,
  { shape, dtype, device }: Pick<Tensor, "shape" | "dtype" | "device">,
): Tensor {
  const dtable = sum ?? Tensor.empty(shape, { dtype, device });
  return queued(sum ? [] : [dtable], () => {
    const dy = withDenseRows(dtable.dtype === "float32" ? given : inDtype(given, dtable.dtype));
    native.embeddingBackward(
      handleOf(dy, "embedding: dy"),
      handleOf(indices, "embedding: indices"),
      handleOf(dtable, "embedding: dtable"),
      sum !== undefined,
    );
    return dtable;
  });
}
