import { type Device, deviceOrDefault, handleOfDevice } from "./device.ts";
import { checkOptions, failure, shown, wrongKind } from "./errors.ts";
import {
  checkedShape,
  elements,
  isRowMajor,
  type Layout,
  permuted,
  reshaped,
  rowMajor,
  selected,
  sliced,
  type View,
} from "./layout.ts";
import { native, type TensorHandle } from "./native.ts";
import { Scope } from "./scope.ts";
import { record } from "./tape.ts";
import { type DType, dtypes, itemBytes, newArray, type TensorValues, typedValues } from "./values.ts";

export interface TensorOptions {
  /** Default: float32, or for an Int32Array int32 and for a Uint8Array uint8. */
  dtype?: DType;
  /** Default: `Device.default`. */
  device?: Device;
}

interface Description extends Layout {
  readonly dtype: DType;
  readonly device: Device;
}

let wrap: (handle: TensorHandle, description: Description) => Tensor;
let handleOf: (tensor: Tensor, what: string) => TensorHandle;

/**
 * A view of memory of one device: shape, strides, element type. Made and changed by operations that are queued on its
 * device; read by `await data()`. It is freed by `dispose`, by `using`, by the `Scope` it was made in, or at last by
 * the garbage collector.
 *
 * @example
 * using x = Tensor.from([1, 2, 3, 4, 5, 6], [2, 3], { dtype: "bfloat16" });
 * console.log(x.shape, await x.data());
 */
export class Tensor implements Disposable {
  readonly shape: readonly number[];
  /** In elements. */
  readonly strides: readonly number[];
  readonly dtype: DType;
  readonly device: Device;
  #handle: TensorHandle | undefined;

  static {
    wrap = (handle, description) => new Tensor(handle, description);
    handleOf = (tensor, what) => {
      if (!(#handle in Object(tensor))) throw wrongKind(what, "a Tensor", tensor);
      if (tensor.#handle === undefined) throw failure("ERR_DISPOSED", `${what} was disposed`);
      return tensor.#handle;
    };
  }

  private constructor(handle: TensorHandle, { shape, strides, dtype, device }: Description) {
    this.#handle = handle;
    this.shape = shape;
    this.strides = strides;
    this.dtype = dtype;
    this.device = device;
    Scope.current?.adopt(this);
  }

  /**
   * A tensor of the values, in row-major order, rounded to nearest even where the dtype is narrower.
   * @throws `ERR_SHAPE` where the shape and the number of values differ; `ERR_DTYPE`; `ERR_OUT_OF_MEMORY`.
   */
  static from(values: TensorValues, shape: readonly number[], options: TensorOptions = {}): Tensor {
    checkOptions("Tensor.from", options);
    const array = typedValues("Tensor.from", values, options.dtype);
    const inferred =
      array instanceof Int32Array ? "int32" : array instanceof Uint8Array ? "uint8" : "float32";
    const tensor = Tensor.empty(shape, { ...options, dtype: options.dtype ?? inferred });
    try {
      tensor.write(array);
    } catch (error) {
      tensor.dispose();
      throw error;
    }
    return tensor;
  }

  /** A tensor whose values are whatever the memory held. */
  static empty(shape: readonly number[], options: TensorOptions = {}): Tensor {
    checkOptions("Tensor", options);
    const dtype = options.dtype ?? "float32";
    const index = dtypes.indexOf(dtype);
    if (index < 0)
      throw failure("ERR_DTYPE", `Tensor: dtype is ${shown(dtype)}, expected ${dtypes.join(", ")}`);
    const device = deviceOrDefault("Tensor", options.device);
    const sizes = checkedShape("Tensor", shape);
    const handle = native.tensorEmpty(handleOfDevice(device), index, sizes);
    return wrap(handle, { shape: sizes, strides: rowMajor(sizes), dtype, device });
  }

  static zeros(shape: readonly number[], options: TensorOptions = {}): Tensor {
    const tensor = Tensor.empty(shape, options);
    native.fill(handleOf(tensor, "Tensor.zeros"), 0);
    return tensor;
  }

  /** Independent normal numbers: a function of seed and index alone, on every device. */
  static normal(
    shape: readonly number[],
    options: TensorOptions & { seed?: number; mean?: number; std?: number } = {},
  ): Tensor {
    checkOptions("Tensor.normal", options);
    const { seed = 0, mean = 0, std = 1 } = options;
    if (!Number.isSafeInteger(seed) || seed < 0) {
      throw failure("ERR_OPTION", `Tensor.normal: seed is ${shown(seed)}, expected an integer of 0 or more`);
    }
    const tensor = Tensor.empty(shape, options);
    native.fillNormal(handleOf(tensor, "Tensor.normal"), seed, mean, std);
    return tensor;
  }

  /** Elements. */
  get size(): number {
    return elements(this.shape);
  }
  get bytes(): number {
    return this.size * itemBytes[this.dtype];
  }
  get disposed(): boolean {
    return this.#handle === undefined;
  }
  get isContiguous(): boolean {
    return isRowMajor(this);
  }

  /** The elements [start, end) of an axis: a view. */
  slice(axis: number, start: number, end: number): Tensor {
    const view = this.#view(sliced(this, axis, start, end));
    return record(
      "slice",
      [view],
      [this],
      this.#putBack((dx) => dx.slice(axis, start, end)),
    );
  }

  /** One element of an axis, the axis gone: a view. */
  select(axis: number, index: number): Tensor {
    const view = this.#view(selected(this, axis, index));
    return record(
      "select",
      [view],
      [this],
      this.#putBack((dx) => dx.select(axis, index)),
    );
  }

  /** The axes in another order: a view. */
  permute(...axes: readonly number[]): Tensor {
    const view = this.#view(permuted(this, axes));
    const inverse = axes.map((_, axis) => axes.indexOf(axis));
    return record("permute", [view], [this], () => ([gradient]) => [gradient.permute(...inverse)]);
  }

  /** The same elements in row-major order under another shape: a view, so the tensor must be contiguous. */
  reshape(shape: readonly number[]): Tensor {
    const view = this.#view(reshaped(this, shape));
    const { shape: whole } = this;
    return record("reshape", [view], [this], () => ([gradient]) => [gradient.contiguous().reshape(whole)]);
  }

  /** A copy in another dtype. Integers saturate, NaN becomes 0 in them. */
  to(dtype: DType): Tensor {
    const { shape, dtype: from, device } = this;
    const source = handleOf(this, "the tensor");
    const copy = Tensor.empty(shape, { dtype, device });
    native.copy(source, handleOf(copy, "copy"));
    return record("to", [copy], [this], () => ([gradient]) => [gradient.to(from)]);
  }

  /** A copy in row-major order. */
  contiguous(): Tensor {
    return this.to(this.dtype);
  }

  /**
   * Replaces the values, once what is queued before has run. The array may be changed as soon as this returns.
   * @throws `ERR_SHAPE` where the number of values is not the tensor's.
   */
  write(values: TensorValues): void {
    native.tensorWrite(handleOf(this, "write: the tensor"), typedValues("write", values, this.dtype));
  }

  /** The values, in row-major order, once what is queued before has run. 16-bit floats come widened. */
  async data(): Promise<Float32Array | Int32Array | Uint8Array> {
    const handle = handleOf(this, "data: the tensor");
    if (this.dtype === "int32") return native.tensorRead(handle, newArray(Int32Array, this.size));
    if (this.dtype === "uint8") return native.tensorRead(handle, newArray(Uint8Array, this.size));
    return native.tensorRead(handle, newArray(Float32Array, this.size));
  }

  /** The stored bits, in row-major order: a Uint16Array for 16-bit floats, a Uint32Array for float32 and int32. */
  async bits(): Promise<Uint32Array | Uint16Array | Uint8Array> {
    const handle = handleOf(this, "bits: the tensor");
    const bytes = itemBytes[this.dtype];
    if (bytes === 4) return native.tensorRead(handle, newArray(Uint32Array, this.size));
    if (bytes === 2) return native.tensorRead(handle, newArray(Uint16Array, this.size));
    return native.tensorRead(handle, newArray(Uint8Array, this.size));
  }

  /** Lets the memory go, once what is queued has run and no view of it is left. Twice is harmless. */
  dispose(): void {
    if (this.#handle !== undefined) native.tensorDispose(this.#handle);
    this.#handle = undefined;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #view({ offset, shape, strides }: View): Tensor {
    const handle = native.tensorView(handleOf(this, "the tensor"), offset, shape, strides);
    return wrap(handle, { shape, strides, dtype: this.dtype, device: this.device });
  }

  /** The gradient of taking a part: zeros, but for that part. */
  #putBack(partOf: (dx: Tensor) => Tensor): () => (gradients: [Tensor, ...Tensor[]]) => Tensor[] {
    const { shape, dtype, device } = this;
    return () =>
      ([gradient]) => {
        const dx = Tensor.zeros(shape, { dtype, device });
        using part = partOf(dx);
        native.copy(handleOf(gradient, "gradient"), handleOf(part, "gradient"));
        return [dx];
      };
  }
}

/** A second tensor of the same memory, which lives on when the first one is disposed. No scope owns it. */
export function alias(tensor: Tensor): Tensor {
  const { shape, strides, dtype, device } = tensor;
  const handle = native.tensorView(handleOf(tensor, "the tensor"), 0, shape, strides);
  const made = wrap(handle, { shape, strides, dtype, device });
  Scope.current?.disown(made);
  return made;
}

export { handleOf };
