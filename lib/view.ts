import { type Device, handleOfDevice } from "./device.ts";
import { rowMajor } from "./layout.ts";
import { native, type TensorPlace } from "./native.ts";
import { Scope } from "./scope.ts";
import { handleOf, type Tensor, wrap } from "./tensor.ts";
import { type DType, dtypes } from "./values.ts";

/** A tensor of another shape that begins where this one does, with the same strides. */
export function viewAs(tensor: Tensor, shape: readonly number[]): Tensor {
  const { strides, dtype, device } = tensor;
  const handle = native.tensorView(handleOf(tensor, "the tensor"), 0, shape, strides);
  return wrap(handle, { shape, strides, dtype, device }, tensor);
}

/** A second tensor of the same memory, which lives on when the first one is disposed. No scope owns it. */
export function alias(tensor: Tensor): Tensor {
  const made = viewAs(tensor, tensor.shape);
  Scope.current?.disown(made);
  return made;
}

/** A tensor of the same memory that is on no tape, and belongs to the scope here. */
export function referenceTo(tensor: Tensor): Tensor {
  return viewAs(tensor, tensor.shape);
}

/** Rows of an axis as an argument of the addon, for whose one call no view is made. */
export function placeOf(
  tensor: Tensor,
  { start, length }: { start: number; length: number },
  axis = 1,
): TensorPlace {
  const whole = handleOf(tensor, "the tensor");
  return length === tensor.shape[axis] ? whole : [whole, axis, start, start + length];
}

/** The tensor itself, or a copy in row-major order where it is not. */
export function asContiguous(tensor: Tensor): Tensor {
  return tensor.isContiguous ? tensor : tensor.contiguous();
}

/** Of memory that another rank lends it in an exchange: until then nothing that is queued may use it. */
export function borrowed(
  shape: readonly number[],
  { dtype, device }: { dtype: DType; device: Device },
): Tensor {
  const handle = native.tensorBorrowed(handleOfDevice(device), dtypes.indexOf(dtype), shape);
  return wrap(handle, { shape, strides: rowMajor(shape), dtype, device });
}
