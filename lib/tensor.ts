import { type Device, deviceOrDefault, handleOfDevice } from "./device.ts";
import { failure, wrongKind } from "./errors.ts";
import { native, type TensorHandle } from "./native.ts";
import { Scope } from "./scope.ts";
import { record } from "./tape.ts";
import {
  checkedShape,
  type DType,
  dtypes,
  itemBytes,
  rowMajor,
  type TensorValues,
  typedValues,
} from "./values.ts";

export interface TensorOptions {
  /** Default: float32, or for an Int32Array int32 and for a Uint8Array uint8. */
  dtype?: DType;
  /** Default: `Device.default`. */
  device?: Device;
}

interface Layout {
  readonly shape: readonly number[];
  readonly strides: readonly number[];
  readonly dtype: DType;
  readonly device: Device;
}

let wrap: (handle: TensorHandle, layout: Layout) => Tensor;
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
    wrap = (handle, layout) => new Tensor(handle, layout);
    handleOf = (tensor, what) => {
      if (!(tensor instanceof Tensor)) throw wrongKind(what, "a Tensor", tensor);
      if (tensor.#handle === undefined) throw failure("ERR_DISPOSED", `${what} was disposed`);
      return tensor.#handle;
    };
  }

  private constructor(handle: TensorHandle, layout: Layout) {
    this.#handle = handle;
    this.shape = layout.shape;
    this.strides = layout.strides;
    this.dtype = layout.dtype;
    this.device = layout.device;
    Scope.current?.adopt(this);
  }

  /**
   * A tensor of the values, in row-major order, rounded to nearest even where the dtype is narrower.
   * @throws `ERR_SHAPE` where the shape and the number of values differ; `ERR_DTYPE`; `ERR_OUT_OF_MEMORY`.
   */
  static from(values: TensorValues, shape: readonly number[], options: TensorOptions = {}): Tensor {
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
    const dtype = options.dtype ?? "float32";
    const index = dtypes.indexOf(dtype);
    if (index < 0)
      throw failure("ERR_DTYPE", `Tensor: dtype is ${String(dtype)}, expected ${dtypes.join(", ")}`);
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
    const { seed = 0, mean = 0, std = 1 } = options;
    if (!Number.isSafeInteger(seed) || seed < 0) {
      throw failure("ERR_OPTION", `Tensor.normal: seed is ${seed}, expected an integer of 0 or more`);
    }
    const tensor = Tensor.empty(shape, options);
    native.fillNormal(handleOf(tensor, "Tensor.normal"), seed, mean, std);
    return tensor;
  }

  /** Elements. */
  get size(): number {
    return this.shape.reduce((product, n) => product * n, 1);
  }
  get bytes(): number {
    return this.size * itemBytes[this.dtype];
  }
  get disposed(): boolean {
    return this.#handle === undefined;
  }
  get isContiguous(): boolean {
    const expected = rowMajor(this.shape);
    return this.strides.every((stride, axis) => this.shape[axis] === 1 || stride === expected[axis]);
  }

  /** The elements [start, end) of an axis: a view. */
  slice(axis: number, start: number, end: number): Tensor {
    const size = this.#axis("slice", axis);
    if (!Number.isInteger(start) || !Number.isInteger(end) || start < 0 || end < start || end > size) {
      throw failure("ERR_SHAPE", `slice: [${start}, ${end}) is not within axis ${axis} of size ${size}`);
    }
    const shape = this.shape.with(axis, end - start);
    const view = this.#view(start * (this.strides[axis] ?? 0), shape, this.strides);
    const { shape: whole, dtype, device } = this;
    return record("slice", [view], [this], () => ([gradient]) => {
      const dx = Tensor.zeros(whole, { dtype, device });
      using part = dx.slice(axis, start, end);
      native.copy(handleOf(gradient, "slice"), handleOf(part, "slice"));
      return [dx];
    });
  }

  /** One element of an axis, the axis gone: a view. */
  select(axis: number, index: number): Tensor {
    const size = this.#axis("select", axis);
    if (!Number.isInteger(index) || index < 0 || index >= size) {
      throw failure("ERR_SHAPE", `select: ${index} is not within axis ${axis} of size ${size}`);
    }
    using part = this.slice(axis, index, index + 1);
    const without = (sizes: readonly number[]) => sizes.filter((_, i) => i !== axis);
    const view = part.#view(0, without(part.shape), without(part.strides));
    return record("select", [view], [part], () => ([gradient]) => [
      gradient.contiguous().reshape(part.shape),
    ]);
  }

  /** The axes in another order: a view. */
  permute(...axes: readonly number[]): Tensor {
    const inverse = this.shape.map((_, axis) => axes.indexOf(axis));
    if (axes.length !== this.shape.length || inverse.includes(-1)) {
      throw failure("ERR_SHAPE", `permute: [${axes}] is no order of the ${this.shape.length} axes`);
    }
    const pick = (sizes: readonly number[]) => axes.map((axis) => sizes[axis] ?? 0);
    const view = this.#view(0, pick(this.shape), pick(this.strides));
    return record("permute", [view], [this], () => ([gradient]) => [gradient.permute(...inverse)]);
  }

  /** The same elements in row-major order under another shape: a view, so the tensor must be contiguous. */
  reshape(shape: readonly number[]): Tensor {
    const sizes = checkedShape("reshape", shape);
    const size = sizes.reduce((product, n) => product * n, 1);
    if (size !== this.size) {
      throw failure("ERR_SHAPE", `reshape: [${sizes}] has ${size} elements, expected ${this.size}`);
    }
    if (!this.isContiguous)
      throw failure("ERR_SHAPE", "reshape: the tensor is not contiguous; copy it first");
    const { shape: whole } = this;
    const view = this.#view(0, sizes, rowMajor(sizes));
    return record("reshape", [view], [this], () => ([gradient]) => [gradient.contiguous().reshape(whole)]);
  }

  /** A copy in another dtype. Integers saturate, NaN becomes 0 in them. */
  to(dtype: DType): Tensor {
    const from = this.dtype;
    const copy = this.#copy(dtype);
    return record("to", [copy], [this], () => ([gradient]) => [gradient.to(from)]);
  }

  /** A copy in row-major order. */
  contiguous(): Tensor {
    const copy = this.#copy(this.dtype);
    return record("contiguous", [copy], [this], () => ([gradient]) => [gradient.contiguous()]);
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
    if (this.dtype === "int32") return native.tensorRead(handle, this.#array(Int32Array));
    if (this.dtype === "uint8") return native.tensorRead(handle, this.#array(Uint8Array));
    return native.tensorRead(handle, this.#array(Float32Array));
  }

  /** The stored bits, in row-major order: a Uint16Array for 16-bit floats, a Uint32Array for float32 and int32. */
  async bits(): Promise<Uint32Array | Uint16Array | Uint8Array> {
    const handle = handleOf(this, "bits: the tensor");
    const bytes = itemBytes[this.dtype];
    if (bytes === 4) return native.tensorRead(handle, this.#array(Uint32Array));
    return native.tensorRead(handle, bytes === 2 ? this.#array(Uint16Array) : this.#array(Uint8Array));
  }

  /** Lets the memory go, once what is queued has run and no view of it is left. Twice is harmless. */
  dispose(): void {
    if (this.#handle !== undefined) native.tensorDispose(this.#handle);
    this.#handle = undefined;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #axis(what: string, axis: number): number {
    const size = Number.isInteger(axis) ? this.shape[axis] : undefined;
    if (size === undefined) {
      throw failure("ERR_SHAPE", `${what}: axis is ${axis}, expected 0 to ${this.shape.length - 1}`);
    }
    return size;
  }

  #view(offset: number, shape: readonly number[], strides: readonly number[]): Tensor {
    const handle = native.tensorView(handleOf(this, "the tensor"), offset, shape, strides);
    return wrap(handle, { shape, strides, dtype: this.dtype, device: this.device });
  }

  #copy(dtype: DType): Tensor {
    const source = handleOf(this, "the tensor");
    const copy = Tensor.empty(this.shape, { dtype, device: this.device });
    native.copy(source, handleOf(copy, "copy"));
    return copy;
  }

  #array<T>(type: new (length: number) => T): T {
    try {
      return new type(this.size);
    } catch (cause) {
      throw failure("ERR_OUT_OF_MEMORY", `out of memory: an array of ${this.size} elements`, { cause });
    }
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
