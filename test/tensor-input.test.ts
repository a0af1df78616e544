import { Tensor } from "longseq";
import t from "tap";
import { refuses } from "./support/refusals.ts";

t.test("bad input", async (t) => {
  const x = Tensor.zeros([2, 3]);
  const disposed = Tensor.zeros([1]);
  disposed.dispose();
  refuses(t, [
    [() => Tensor.from([1, 2], [3]), "ERR_SHAPE", /2 values, expected 3/],
    [() => Tensor.from("12" as never, [2]), "ERR_OPTION", /^Tensor.from: values is string, expected/],
    [() => Tensor.from(Uint16Array.of(1), [1]), "ERR_DTYPE", /name the dtype/],
    [
      () => Tensor.from(new Int8Array(2) as never, [2]),
      "ERR_OPTION",
      "Tensor.from: values is object, expected a Float32Array, Float64Array, Int32Array, Uint8Array, Uint16Array or an array",
    ],
    [
      () => Tensor.from([1n as never], [1]),
      "ERR_OPTION",
      "Tensor.from: values[0] is bigint, expected a number",
    ],
    [() => Tensor.from([0, "1" as never], [2]), "ERR_OPTION", /values\[1\] is string, expected a number/],
    [() => Tensor.from(new Array(2), [2]), "ERR_OPTION", /values\[0\] is undefined, expected a number/],
    [() => Tensor.zeros([2], { dtype: "float64" as never }), "ERR_DTYPE", /dtype is float64, expected/],
    [() => Tensor.zeros([2], { device: {} as never }), "ERR_OPTION", /device is object, expected a Device/],
    [() => Tensor.zeros(3 as never), "ERR_OPTION", /shape is number, expected an array/],
    [() => Tensor.zeros([-1]), "ERR_SHAPE", /axis 0 of the shape is -1/],
    [() => Tensor.zeros([1.5]), "ERR_SHAPE", /axis 0 of the shape is 1.5/],
    [() => Tensor.zeros([Number.NaN]), "ERR_SHAPE", /is NaN/],
    [() => Tensor.zeros(["2" as never]), "ERR_SHAPE", /axis 0 of the shape is 2/],
    [() => Tensor.zeros([1, 1, 1, 1, 1, 1, 1]), "ERR_SHAPE", /7 axes/],
    [() => Tensor.zeros([2 ** 50, 2 ** 50]), "ERR_OUT_OF_MEMORY", /2\^60/],
    [() => Tensor.zeros([2 ** 45]), "ERR_OUT_OF_MEMORY", /out of memory: asked for \d+ MiB/],
    [() => Tensor.normal([1], { seed: -1 }), "ERR_OPTION", /seed is -1/],
    [() => Tensor.normal([1], { first: 0.5 }), "ERR_OPTION", /first is 0.5/],
    [() => Tensor.normal([1], { std: -1 }), "ERR_OPTION", /std is -1, expected a finite number of 0 or more/],
    [() => Tensor.normal([1], { std: Number.NaN }), "ERR_OPTION", /std is NaN/],
    [() => Tensor.normal([1], { std: Number.POSITIVE_INFINITY }), "ERR_OPTION", /std is Infinity/],
    [() => Tensor.normal([1], { std: "1" as never }), "ERR_OPTION", /std is string, expected a number/],
    [() => Tensor.normal([1], { mean: Number.NaN }), "ERR_OPTION", /mean is NaN, expected a finite number/],
    [() => x.slice(2, 0, 1), "ERR_SHAPE", /axis is 2, expected 0 to 1/],
    [() => x.slice("length" as never, 0, 1), "ERR_SHAPE", /axis is length/],
    [() => x.slice(-1, 0, 1), "ERR_SHAPE", /axis is -1/],
    [() => x.slice(1, 1, 4), "ERR_SHAPE", /\[1, 4\) is not within axis 1 of size 3/],
    [() => x.slice(1, 2, 1), "ERR_SHAPE", /not within/],
    [() => x.select(0, 2), "ERR_SHAPE", /select: 2 is not within axis 0 of size 2/],
    [() => x.permute(0, 0), "ERR_SHAPE", /permute: \[0, ?0\]/],
    [() => x.permute(1), "ERR_SHAPE", /no order of the 2 axes/],
    [() => x.reshape([4]), "ERR_SHAPE", /4 elements, expected 6/],
    [() => x.permute(1, 0).reshape([6]), "ERR_SHAPE", /not contiguous/],
    [() => x.to("int64" as never), "ERR_DTYPE", /dtype is int64/],
    [() => x.write([1]), "ERR_SHAPE", /1 values, expected 6/],
    [() => x.write([1n as never]), "ERR_OPTION", "write: values[0] is bigint, expected a number"],
    [() => x.write(x.permute(1, 0)), "ERR_SHAPE", "write: values has the shape [3, 2], expected [2, 3]"],
    [() => x.write(Tensor.zeros([6])), "ERR_SHAPE", /shape \[6\], expected \[2, 3\]/],
    [() => x.write(disposed), "ERR_DISPOSED", "write: values was disposed"],
    [() => disposed.slice(0, 0, 1), "ERR_DISPOSED", /was disposed/],
    [() => disposed.select(0, 0), "ERR_DISPOSED", /was disposed/],
    [() => disposed.permute(0), "ERR_DISPOSED", /was disposed/],
    [() => disposed.reshape([1]), "ERR_DISPOSED", /was disposed/],
    [() => disposed.to("int32"), "ERR_DISPOSED", /was disposed/],
    [() => disposed.contiguous(), "ERR_DISPOSED", /was disposed/],
    [() => disposed.write([1]), "ERR_DISPOSED", /write: the tensor was disposed/],
  ]);
  await t.rejects(disposed.data(), { code: "ERR_DISPOSED", message: "data: the tensor was disposed" });
  await t.rejects(disposed.bits(), { code: "ERR_DISPOSED", message: "bits: the tensor was disposed" });
  t.strictSame(await x.data(), new Float32Array(6), "a refused call changes nothing");
});
