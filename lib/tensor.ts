import { type Device, deviceOrDefault, handleOfDevice } from "./device.ts";
import { checkOptions, failure, shown, wrongKind } from "./errors.ts";
import * as layout from "./layout.ts";
import { native, type TensorHandle } from "./native.ts";
import { Scope } from "./scope.ts";
import { record } from "./tape.ts";
import { checkedNormal, type TensorOptions, tensorOptionNames } from "./tensor-options.ts";
import {
  arrayForBits,
  arrayForValues,
  type DType,
  dtypes,
  itemBytes,
  type TensorValues,
  typedValues,
} from "./values.ts";

interface Description extends layout.Layout {
  readonly dtype: DType;
  readonly device: Device;
}

/** How often memory was given other values, for all views of it; and how often of those by an optimizer's step. */
type Writes = { count: number; steps: number };

/** A tensor of `of`'s memory, or of memory of its own. */
let wrap: (handle: TensorHandle, description: Description, of?: Tensor) => Tensor;
/** Says that a public function gives it other values, which what has saved it must hear of. */
let noteWrite: (tensor: Tensor, isStep?: boolean) => void;
/** One object for all views of one memory. */
let writesOf: (tensor: Tensor) => Readonly<Writes>;
/** Gives a disposed tensor the memory of another, which is disposed then. */
let refill: (disposed: Tensor, other: Tensor) => void;
let handleOf: (tensor: Tensor, what: string) => TensorHandle;

/**
 * A view of memory of one device: shape (up to 6 axes), strides, element type. Made and changed by operations that are
 * queued on its device; read by `await data()`. It is freed by `dispose`, by `using`, by the `Scope` it was made in, or
 * at last by the garbage collector. Views and copies are differentiable on a `Tape`.
 *
 * Whatever makes or uses a tensor throws `ERR_DISPOSED` where it or its device was disposed, a TypeError, `ERR_OPTION`,
 * for an argument of the wrong kind, and `ERR_OUT_OF_MEMORY`: at once where there is never so much, else the next await.
 *
 * @example
 * using x = Tensor.from([1, 2, 3, 4, 5, 6], [2, 3], { dtype: "bfloat16" });
 * console.log(x.shape, await x.data());
 */
export class Tensor implements Disposable {
  /** The size of each axis; [] holds one element. */
  readonly shape: readonly number[];
  /** In elements. */
  readonly strides: readonly number[];
  readonly dtype: DType;
  readonly device: Device;
  #handle: TensorHandle | undefined;
  readonly #writes: Writes;

  static {
    wrap = (handle, description, of) =>
      new Tensor(handle, description, of ? of.#writes : { count: 0, steps: 0 });
    noteWrite = (tensor, isStep = false) => {
      tensor.#writes.count++;
      if (isStep) tensor.#writes.steps++;
    };
    writesOf = (tensor) => tensor.#writes;
    refill = (disposed, other) => {
      disposed.#handle = handleOf(other, "the tensor");
      other.#handle = undefined;
    };
    handleOf = (tensor, what) => {
      if (!(#handle in Object(tensor))) throw wrongKind(what, "a Tensor", tensor);
      if (tensor.#handle === undefined) throw failure("ERR_DISPOSED", `${what} was disposed`);
      return tensor.#handle;
    };
  }

  private constructor(handle: TensorHandle, { shape, strides, dtype, device }: Description, writes: Writes) {
    this.#handle = handle;
    this.#writes = writes;
    this.shape = shape;
    this.strides = strides;
    this.dtype = dtype;
    this.device = device;
    Scope.current?.adopt(this);
  }

  /**
   * A tensor of the values, in row-major order, rounded to nearest even where the dtype is narrower. Integers are
   * made by cutting to whole numbers, and saturate. A Uint16Array holds the bits of a 16-bit dtype, which must be named.
   * @throws `ERR_SHAPE` where the shape and the number of values differ; `ERR_DTYPE`.
   * @example
   * await Tensor.from([1, 2.7, 300], [3], { dtype: "uint8" }).data(); // [1, 2, 255]
   */
  static from(values: TensorValues, shape: readonly number[], options: TensorOptions = {}): Tensor {
    checkOptions("Tensor.from", options, tensorOptionNames);
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

  /**
   * A tensor whose values are whatever the memory held.
   * @throws `ERR_SHAPE`, also for more than 6 axes; `ERR_DTYPE`.
   * @example
   * Tensor.empty([2, 3], { dtype: "float16" }).bytes; // 12
   */
  static empty(shape: readonly number[], options: TensorOptions = {}): Tensor {
    checkOptions("Tensor", options, tensorOptionNames);
    const dtype = options.dtype ?? "float32";
    const index = dtypes.indexOf(dtype);
    if (index < 0)
      throw failure("ERR_DTYPE", `Tensor: dtype is ${shown(dtype)}, expected ${dtypes.join(", ")}`);
    const device = deviceOrDefault("Tensor", options.device);
    const sizes = layout.checkedShape("Tensor", shape);
    const handle = native.tensorEmpty(handleOfDevice(device), index, sizes);
    return wrap(handle, { shape: sizes, strides: layout.rowMajor(sizes), dtype, device });
  }

  /**
   * A tensor of zeros; errors as `empty`.
   * @example
   * await Tensor.zeros([3]).data(); // [0, 0, 0]
   */
  static zeros(shape: readonly number[], options: TensorOptions = {}): Tensor {
    const tensor = Tensor.empty(shape, options);
    native.fill(handleOf(tensor, "Tensor.zeros"), 0);
    return tensor;
  }

  /**
   * Independent normal numbers (Philox 4x32-10, Salmon et al., 2011; Box and Muller): by seed and index alone.
   * @param options seed: an integer of 0 or more (default 0); first: the index of the first element (0), for a part of
   * what is a larger tensor; mean (0) and std, the standard deviation (1).
   * @throws `ERR_OPTION` for another seed or first, a mean that is not finite, a std that is not or is below 0; the errors
   * of `empty`.
   * @example
   * const weight = Tensor.normal([512, 64], { seed: 1, std: 0.02, dtype: "bfloat16" });
   * const lastRow = Tensor.normal([1, 64], { seed: 1, first: 511 * 64, std: 0.02, dtype: "bfloat16" });
   */
  static normal(
    shape: readonly number[],
    options: TensorOptions & { seed?: number; first?: number; mean?: number; std?: number } = {},
  ): Tensor {
    const { seed, first, mean, std, place } = checkedNormal(options);
    const tensor = Tensor.empty(shape, place);
    native.fillNormal(handleOf(tensor, "Tensor.normal"), seed, first, mean, std);
    return tensor;
  }

  /** Elements. */
  get size(): number {
    return layout.elements(this.shape);
  }
  /** Bytes of its elements, whether or not views share them. */
  get bytes(): number {
    return this.size * itemBytes[this.dtype];
  }
  /** Whether `dispose` was called. */
  get disposed(): boolean {
    return this.#handle === undefined;
  }
  /** Whether the elements lie in row-major order without gaps. */
  get isContiguous(): boolean {
    return layout.isRowMajor(this);
  }

  /**
   * The elements [start, end) of an axis: a view.
   * @throws `ERR_SHAPE` where the axis has no such elements.
   * @example
   * await Tensor.from([1, 2, 3, 4], [2, 2]).slice(1, 0, 1).data(); // [1, 3]
   */
  slice(axis: number, start: number, end: number): Tensor {
    return this.#part("slice", layout.sliced(this, axis, start, end), (dx) => dx.slice(axis, start, end));
  }

  /**
   * One element of an axis, the axis gone: a view.
   * @throws `ERR_SHAPE` where the axis has no such element.
   * @example
   * await Tensor.from([1, 2, 3, 4], [2, 2]).select(0, 1).data(); // [3, 4]
   */
  select(axis: number, index: number): Tensor {
    return this.#part("select", layout.selected(this, axis, index), (dx) => dx.select(axis, index));
  }

  /**
   * The axes in another order: a view.
   * @throws `ERR_SHAPE` where the axes are not all named once.
   * @example
   * Tensor.zeros([1, 128, 4, 64]).permute(0, 2, 1, 3).shape; // [1, 4, 128, 64]
   */
  permute(...axes: readonly number[]): Tensor {
    const view = this.#view(layout.permuted(this, axes));
    const inverse = axes.map((_, axis) => axes.indexOf(axis));
    return record("permute", [view], [this], () => ([gradient]) => [gradient.permute(...inverse)]);
  }

  /**
   * The same elements in row-major order under another shape: a view, so the tensor must be contiguous.
   * @throws `ERR_SHAPE` where it is not, or the shape has another number of elements.
   * @example
   * Tensor.zeros([2, 6]).reshape([3, 4]).shape; // [3, 4]
   */
  reshape(shape: readonly number[]): Tensor {
    const view = this.#view(layout.reshaped(this, shape));
    const { shape: whole } = this;
    return record("reshape", [view], [this], () => ([gradient]) => [
      (gradient.isContiguous ? gradient : gradient.contiguous()).reshape(whole),
    ]);
  }

  /**
   * A copy in another dtype, rounded to nearest even; to integers, cut to whole ones and saturated, NaN as 0.
   * @throws `ERR_DTYPE`.
   * @example
   * await Tensor.from([1.7, -3], [2]).to("uint8").data(); // [1, 0]
   */
  to(dtype: DType): Tensor {
    const { dtype: from } = this;
    return record("to", [this.#copy(dtype)], [this], () => ([gradient]) => [gradient.to(from)]);
  }

  /**
   * A copy on another device, in row-major order; it is queued there behind the values' way, so this returns at once.
   * What is queued on either device keeps its order, and the tensor may be written or disposed right after the call.
   * @throws (from the next await on `device`) also the first error of what is queued on the tensor's own device.
   * @example
   * using other = new Device("cpu");
   * await Tensor.from([1, 2], [2]).toDevice(other).data(); // [1, 2]
   */
  toDevice(device: Device): Tensor {
    const { device: from } = this;
    const copy = this.#copyOn(deviceOrDefault("toDevice", device));
    return record("toDevice", [copy], [this], () => ([gradient]) => [gradient.toDevice(from)]);
  }

  /**
   * A copy in row-major order.
   * @example
   * Tensor.zeros([2, 3]).permute(1, 0).contiguous().strides; // [2, 1]
   */
  contiguous(): Tensor {
    return this.to(this.dtype);
  }

  /**
   * Replaces the values, in the queue's order, by others: given as to `from`, or those of a tensor of this shape, rounded
   * as by `to`, from whatever device. The array or tensor may be changed as soon as this returns. What an operation on a
   * tape has saved must stay as it is until `backward`, which is refused otherwise; a write itself is on no tape.
   * @throws `ERR_SHAPE` where the number of values, or the shape, is not the tensor's; `ERR_DTYPE`.
   * @example
   * const weight = Tensor.zeros([2]);
   * weight.write([1, 2]);
   * weight.write(Tensor.from([3, 4], [2])); // as loading a checkpoint does
   */
  write(values: TensorValues | Tensor): void {
    const handle = handleOf(this, "write: the tensor");
    if (#handle in Object(values)) this.#copyFrom(values as Tensor, handle);
    else native.tensorWrite(handle, typedValues("write", values as TensorValues, this.dtype));
    noteWrite(this);
  }

  /**
   * The values, in row-major order, once what is queued before has run. 16-bit floats come widened.
   * @throws (as a rejection) also the first error of what is queued.
   * @example
   * await Tensor.from([1, 2], [2], { dtype: "float16" }).data(); // [1, 2]
   */
  async data(): Promise<Float32Array | Int32Array | Uint8Array> {
    return native.tensorRead(handleOf(this, "data: the tensor"), arrayForValues(this.dtype, this.size));
  }

  /**
   * The one value of a tensor that holds one, as `data` gives it.
   * @throws (as a rejection) `ERR_SHAPE` where it holds none or several; also the first error of what is queued.
   * @example
   * await Tensor.from([3], []).item(); // 3
   */
  async item(): Promise<number> {
    if (this.size !== 1) throw failure("ERR_SHAPE", `item: the tensor has ${this.size} values, expected one`);
    const [value] = await this.data();
    return value as number;
  }

  /**
   * As `data`, but the stored bits: a Uint16Array for 16-bit floats, a Uint32Array for float32 and int32.
   * @example
   * await Tensor.from([1], [1], { dtype: "bfloat16" }).bits(); // [16256]
   */
  async bits(): Promise<Uint32Array | Uint16Array | Uint8Array> {
    return native.tensorRead(handleOf(this, "bits: the tensor"), arrayForBits(this.dtype, this.size));
  }

  /** Lets the memory go, once what is queued has run and no view of it is left. Twice is harmless. */
  dispose(): void {
    if (this.#handle !== undefined) native.tensorDispose(this.#handle);
    this.#handle = undefined;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #copyFrom(source: Tensor, handle: TensorHandle): void {
    const from = handleOf(source, "write: values");
    layout.checkSameShape("write: values", source.shape, this.shape);
    const { device } = this;
    const isNear = source.device === device;
    // A copy has no order within itself: what shares this memory is taken out of it first.
    const isApart = isNear && source.#writes !== this.#writes;
    using apart = isApart ? undefined : isNear ? source.#copy(this.dtype) : source.#copyOn(device);
    native.copy(apart ? handleOf(apart, "write: values") : from, handle);
  }

  #copy(dtype: DType): Tensor {
    const source = handleOf(this, "the tensor");
    const copy = Tensor.empty(this.shape, { dtype, device: this.device });
    native.copy(source, handleOf(copy, "copy"));
    return copy;
  }

  #copyOn(device: Device): Tensor {
    const { shape, dtype } = this;
    const there = handleOfDevice(device);
    using whole = this.isContiguous ? undefined : this.#copy(dtype);
    const handle = native.tensorTransfer(handleOf(whole ?? this, "toDevice: the tensor"), there);
    return wrap(handle, { shape, strides: layout.rowMajor(shape), dtype, device });
  }

  #view({ offset, shape, strides }: layout.View): Tensor {
    const handle = native.tensorView(handleOf(this, "the tensor"), offset, shape, strides);
    return wrap(handle, { shape, strides, dtype: this.dtype, device: this.device }, this);
  }

  /** Its gradient is zeros, but for that part. */
  #part(operation: string, place: layout.View, partOf: (dx: Tensor) => Tensor): Tensor {
    const { shape, dtype, device } = this;
    return record(operation, [this.#view(place)], [this], () => ([gradient]) => {
      const dx = Tensor.zeros(shape, { dtype, device });
      using part = partOf(dx);
      native.copy(handleOf(gradient, "gradient"), handleOf(part, "gradient"));
      return [dx];
    });
  }
}

export { handleOf, noteWrite, refill, wrap, writesOf };
