// The activation before an MLP's second product, some of it at a time.
import type { Device } from "../device.ts";
import { failure, shown } from "../errors.ts";
import { native } from "../native.ts";
import { handleOf, Tensor } from "../tensor.ts";
import type { Activation } from "./activation.ts";

/** From `begin` to before `end`. */
export interface Part {
  begin: number;
  end: number;
}

/** A quarter of a feed-forward of 4 h columns is as much as the residual stream, which is there beside it anyway. */
const mostParts = 4;
/**
 * Elements of a product's result that keep the device busy: on a GPU those of 512 thread blocks, four on each
 * multiprocessor, of which the last round is not much of the time; on a CPU those of a task for each of some cores.
 */
const leastElements: Readonly<Record<Device["kind"], number>> = { cuda: 2 ** 24, cpu: 2 ** 16 };
/** Rows or columns that products are cut by within. */
const unit = 256;

/** Parts of so many rows or columns, for products whose results have `others` elements in each of these. */
export function partsOf(size: number, others: number, { kind }: Device): Part[] {
  const count = Math.min(mostParts, Math.max(1, Math.floor((size * others) / leastElements[kind])));
  const step = count === 1 ? size : unit * Math.ceil(size / count / unit);
  const parts = Math.max(1, Math.ceil(size / Math.max(1, step)));
  return Array.from({ length: parts }, (_, at) => ({
    begin: at * step,
    end: Math.min(size, (at + 1) * step),
  }));
}

/** Of a product activation(x) weight^T, before anything is made for it. */
export function checkActivated(operation: string, activation: Activation, x: Tensor, weight: Tensor): void {
  handleOf(x, `${operation}: x`);
  handleOf(weight, `${operation}: weight`);
  if (activation !== "gelu" && activation !== "swiglu") {
    throw failure(
      "ERR_OPTION",
      `${operation}: activation is ${shown(activation)}, expected "gelu" or "swiglu"`,
    );
  }
  if (weight.shape.length === 2 && activatedColumns(activation, x) === weight.shape[1]) return;
  throw failure(
    "ERR_SHAPE",
    `${operation}: x is [${x.shape}] and weight [${weight.shape}], expected [.., ${activation === "gelu" ? "" : "2 "}F] and [O, F]`,
  );
}

/** Columns that the activation of x has. */
function activatedColumns(activation: Activation, x: Tensor): number {
  const columns = x.shape.at(-1) ?? 0;
  return activation === "gelu" ? columns : columns / 2;
}

/**
 * Memory for one part after the other: gives a view of it for the part's shape. Taken once, since what a device's queue
 * has yet to come to is not let go until then.
 */
export function roomFor(elements: number, { dtype, device }: Tensor): (shape: readonly number[]) => Tensor {
  const room = Tensor.empty([elements], { dtype, device });
  return (shape) =>
    room
      .slice(
        0,
        0,
        shape.reduce((a, b) => a * b, 1),
      )
      .reshape(shape);
}

/** Rows or columns of the largest. */
export function widest(parts: readonly Part[]): number {
  return Math.max(0, ...parts.map(({ begin, end }) => end - begin));
}

/** Some columns of activation(x), to y. */
export function activateInto(activation: Activation, x: Tensor, columns: Part, y: Tensor): void {
  const [first, second] = operandsOf(activation, x, columns);
  const out = handleOf(y, "y");
  if (second === undefined) native.geluForward(first, null, true, out);
  else native.swigluForward(first, second, out);
}

/** From the gradient of some columns of activation(x) to that of x, which takes x's place. */
export function differentiateInPlace(activation: Activation, x: Tensor, columns: Part, dy: Tensor): void {
  const [first, second] = operandsOf(activation, x, columns);
  const given = handleOf(dy, "dy");
  if (second === undefined) native.geluBackward(first, null, true, given, first, null);
  else native.swigluBackward(first, second, given, first, second);
}

type Handle = ReturnType<typeof handleOf>;

function operandsOf(activation: Activation, x: Tensor, { begin, end }: Part): [Handle, Handle?] {
  const axis = x.shape.length - 1;
  const from = (first: number) => handleOf(x.slice(axis, first + begin, first + end), "x");
  return activation === "gelu" ? [from(0)] : [from(0), from(activatedColumns(activation, x))];
}
