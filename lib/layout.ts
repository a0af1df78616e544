// Where a tensor's elements are: shapes, strides, and the views that can be made of them.
import { failure, shown, wrongKind } from "./errors.ts";

export interface Layout {
  readonly shape: readonly number[];
  /** In elements. */
  readonly strides: readonly number[];
}

export interface View extends Layout {
  /** From the first element of what it is a view of. */
  readonly offset: number;
}

export function rowMajor(shape: readonly number[]): number[] {
  const strides = shape.map(() => 1);
  for (let axis = shape.length - 2; axis >= 0; axis--)
    strides[axis] = (strides[axis + 1] ?? 1) * (shape[axis + 1] ?? 1);
  return strides;
}

export function isRowMajor({ shape, strides }: Layout): boolean {
  const expected = rowMajor(shape);
  return strides.every((stride, axis) => shape[axis] === 1 || stride === expected[axis]);
}

export function checkedShape(what: string, shape: readonly number[]): readonly number[] {
  if (!Array.isArray(shape)) throw wrongKind(`${what}: shape`, "an array of sizes", shape);
  for (const [axis, size] of shape.entries()) {
    if (!Number.isSafeInteger(size) || size < 0) {
      throw failure(
        "ERR_SHAPE",
        `${what}: axis ${axis} of the shape is ${shown(size)}, expected an integer of 0 or more`,
      );
    }
  }
  return [...shape] as number[];
}

export function checkSameShape(what: string, shape: readonly number[], expected: readonly number[]): void {
  if (shape.join() === expected.join()) return;
  throw failure(
    "ERR_SHAPE",
    `${what} has the shape [${shape.join(", ")}], expected [${expected.join(", ")}]`,
  );
}

export function sliced({ shape, strides }: Layout, axis: number, start: number, end: number): View {
  const size = sizeOf("slice", shape, axis);
  if (!Number.isInteger(start) || !Number.isInteger(end) || start < 0 || end < start || end > size) {
    throw failure(
      "ERR_SHAPE",
      `slice: [${shown(start)}, ${shown(end)}) is not within axis ${axis} of size ${size}`,
    );
  }
  return { offset: start * (strides[axis] ?? 0), shape: shape.with(axis, end - start), strides };
}

export function selected({ shape, strides }: Layout, axis: number, index: number): View {
  const size = sizeOf("select", shape, axis);
  if (!Number.isInteger(index) || index < 0 || index >= size) {
    throw failure("ERR_SHAPE", `select: ${shown(index)} is not within axis ${axis} of size ${size}`);
  }
  return {
    offset: index * (strides[axis] ?? 0),
    shape: shape.toSpliced(axis, 1),
    strides: strides.toSpliced(axis, 1),
  };
}

export function permuted({ shape, strides }: Layout, axes: readonly number[]): View {
  if (axes.length !== shape.length || !shape.every((_, axis) => axes.includes(axis))) {
    throw failure("ERR_SHAPE", `permute: ${shown(axes)} is no order of the ${shape.length} axes`);
  }
  const pick = (values: readonly number[]) => axes.map((axis) => values[axis] ?? 0);
  return { offset: 0, shape: pick(shape), strides: pick(strides) };
}

export function reshaped(layout: Layout, shape: readonly number[]): View {
  const sizes = checkedShape("reshape", shape);
  const [before, after] = [elements(layout.shape), elements(sizes)];
  if (after !== before) {
    throw failure("ERR_SHAPE", `reshape: ${shown(sizes)} has ${after} elements, expected ${before}`);
  }
  if (!isRowMajor(layout)) throw failure("ERR_SHAPE", "reshape: the tensor is not contiguous; copy it first");
  return { offset: 0, shape: sizes, strides: rowMajor(sizes) };
}

export function elements(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

function sizeOf(what: string, shape: readonly number[], axis: number): number {
  const size = Number.isInteger(axis) ? shape[axis] : undefined;
  if (size === undefined) {
    throw failure("ERR_SHAPE", `${what}: axis is ${shown(axis)}, expected 0 to ${shape.length - 1}`);
  }
  return size;
}
