// Parts of tensors as arguments of the addon.
import t from "tap";
import { Tensor } from "../lib/index.ts";
import { native, type TensorPlace } from "../lib/native.ts";
import { handleOf } from "../lib/tensor.ts";
import { placeOf } from "../lib/view.ts";
import { refuses } from "./support/refusals.ts";

t.test("a part is what a view would be", async (t) => {
  const x = Tensor.normal([3, 7, 2], { seed: 1 });
  for (const [axis, start, length] of [
    [0, 1, 2],
    [1, 0, 7],
    [1, 3, 4],
    [2, 1, 1],
    [1, 7, 0],
  ] as const) {
    const view = x.slice(axis, start, start + length);
    const read = Tensor.zeros(view.shape);
    native.copy(placeOf(x, { start, length }, axis), handleOf(read, "read"));
    t.strictSame(await read.data(), await view.data());
    const written = Tensor.zeros(x.shape);
    native.copy(handleOf(view, "view"), placeOf(written, { start, length }, axis));
    t.strictSame(await written.slice(axis, start, start + length).data(), await view.data());
    t.equal((await written.data()).filter((value) => value !== 0).length, view.size);
  }
});

t.test("what is no part is refused", async (t) => {
  const x = Tensor.zeros([3, 7]);
  const handle = handleOf(x, "x");
  const copy = (part: readonly unknown[]) => () => native.copy(part as unknown as TensorPlace, handle);
  const disposed = Tensor.zeros([3]);
  const gone = handleOf(disposed, "gone");
  disposed.dispose();
  refuses(t, [
    [copy([handle, 2, 0, 1]), "ERR_SHAPE", "argument 1: axis is 2, expected 0 to 1"],
    [copy([handle, -1, 0, 1]), "ERR_SHAPE", "argument 1: axis is -1, expected 0 to 1"],
    [copy([handle, 1, 3, 8]), "ERR_SHAPE", "argument 1: [3, 8) is not within axis 1 of size 7"],
    [copy([handle, 1, 3, 2]), "ERR_SHAPE", "argument 1: [3, 2) is not within axis 1 of size 7"],
    [copy([handle, 1, -1, 2]), "ERR_SHAPE", "argument 1: [-1, 2) is not within axis 1 of size 7"],
    [copy([gone, 0, 0, 1]), "ERR_DISPOSED", "argument 1: a tensor that was disposed"],
  ]);
  for (const [part, expected] of [
    [[handle, 1, 0.5, 2], "an integer"],
    [[handle, 1, 0], "a tensor or [tensor, axis, start, end]"],
    [[7, 1, 0, 1], "a tensor"],
  ] as const) {
    t.throws(copy(part), new TypeError(`argument 1: expected ${expected}`));
  }
});
