import { Tensor } from "longseq";
import t from "tap";

t.test("bad input", async (t) => {
  const x = Tensor.zeros([2, 3]);
  const disposed = Tensor.zeros([1]);
  disposed.dispose();
  const refused: [call: () => unknown, code: string, type: ErrorConstructor, message: RegExp][] = [
    [() => Tensor.from([1, 2], [3]), "ERR_SHAPE", RangeError, /2 values, expected 3/],
    [
      () => Tensor.from("12" as never, [2]),
      "ERR_OPTION",
      TypeError,
      /^Tensor.from: values is string, expected/,
    ],
    [() => Tensor.from(Uint16Array.of(1), [1]), "ERR_DTYPE", TypeError, /name the dtype/],
    [
      () => Tensor.from(new BigInt64Array(1) as never, [1]),
      "ERR_OPTION",
      TypeError,
      /expected a typed array/,
    ],
    [
      () => Tensor.zeros([2], { dtype: "float64" as never }),
      "ERR_DTYPE",
      TypeError,
      /dtype is float64, expected/,
    ],
    [
      () => Tensor.zeros([2], { device: {} as never }),
      "ERR_OPTION",
      TypeError,
      /device is object, expected a Device/,
    ],
    [() => Tensor.zeros(3 as never), "ERR_OPTION", TypeError, /shape is number, expected an array/],
    [() => Tensor.zeros([-1]), "ERR_SHAPE", RangeError, /axis 0 of the shape is -1/],
    [() => Tensor.zeros([1.5]), "ERR_SHAPE", RangeError, /axis 0 of the shape is 1.5/],
    [() => Tensor.zeros([Number.NaN]), "ERR_SHAPE", RangeError, /is NaN/],
    [() => Tensor.zeros(["2" as never]), "ERR_SHAPE", RangeError, /axis 0 of the shape is 2/],
    [() => Tensor.zeros([1, 1, 1, 1, 1, 1, 1]), "ERR_SHAPE", RangeError, /7 axes/],
    [() => Tensor.zeros([2 ** 50, 2 ** 50]), "ERR_OUT_OF_MEMORY", Error, /2\^60/],
    [() => Tensor.zeros([2 ** 45]), "ERR_OUT_OF_MEMORY", Error, /out of memory: asked for \d+ MiB/],
    [() => Tensor.normal([1], { seed: -1 }), "ERR_OPTION", RangeError, /seed is -1/],
    [() => x.slice(2, 0, 1), "ERR_SHAPE", RangeError, /axis is 2, expected 0 to 1/],
    [() => x.slice("length" as never, 0, 1), "ERR_SHAPE", RangeError, /axis is length/],
    [() => x.slice(-1, 0, 1), "ERR_SHAPE", RangeError, /axis is -1/],
    [() => x.slice(1, 1, 4), "ERR_SHAPE", RangeError, /\[1, 4\) is not within axis 1 of size 3/],
    [() => x.slice(1, 2, 1), "ERR_SHAPE", RangeError, /not within/],
    [() => x.select(0, 2), "ERR_SHAPE", RangeError, /select: 2 is not within axis 0 of size 2/],
    [() => x.permute(0, 0), "ERR_SHAPE", RangeError, /permute: \[0, ?0\]/],
    [() => x.permute(1), "ERR_SHAPE", RangeError, /no order of the 2 axes/],
    [() => x.reshape([4]), "ERR_SHAPE", RangeError, /4 elements, expected 6/],
    [() => x.permute(1, 0).reshape([6]), "ERR_SHAPE", RangeError, /not contiguous/],
    [() => x.to("int64" as never), "ERR_DTYPE", TypeError, /dtype is int64/],
    [() => x.write([1]), "ERR_SHAPE", RangeError, /1 values, expected 6/],
    [() => disposed.slice(0, 0, 1), "ERR_DISPOSED", Error, /was disposed/],
    [() => disposed.select(0, 0), "ERR_DISPOSED", Error, /was disposed/],
    [() => disposed.permute(0), "ERR_DISPOSED", Error, /was disposed/],
    [() => disposed.reshape([1]), "ERR_DISPOSED", Error, /was disposed/],
    [() => disposed.to("int32"), "ERR_DISPOSED", Error, /was disposed/],
    [() => disposed.contiguous(), "ERR_DISPOSED", Error, /was disposed/],
    [() => disposed.write([1]), "ERR_DISPOSED", Error, /write: the tensor was disposed/],
  ];
  for (const [call, code, type, message] of refused) {
    const label = call.toString();
    try {
      call();
      t.fail(label);
    } catch (error) {
      t.ok(error instanceof type, label);
      t.match(error, { code, message }, label);
    }
  }
  await t.rejects(disposed.data(), { code: "ERR_DISPOSED", message: "data: the tensor was disposed" });
  await t.rejects(disposed.bits(), { code: "ERR_DISPOSED", message: "bits: the tensor was disposed" });
  t.strictSame(await x.data(), new Float32Array(6), "a refused call changes nothing");
});
