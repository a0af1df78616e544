// Which kernels run, and what the option `implementation` makes of that.
import { attention, attentionKernels, Device, Tensor } from "longseq";
import t from "tap";
import { implementations, kind } from "../support/devices.ts";
import { refuses } from "../support/refusals.ts";

const [own] = implementations;

t.test("the device's own, and what is named", (t) => {
  t.equal(attentionKernels(), own, "float32");
  t.equal(attentionKernels({ implementation: own }), own);
  t.equal(attentionKernels({ implementation: "reference" }), "reference");
  t.equal(attentionKernels({ device: new Device("cpu"), dtype: "bfloat16" }), "cpu");
  t.end();
});

t.test("Hopper's are of 16 bits", { skip: kind === "cpu" }, (t) => {
  t.equal(attentionKernels({ dtype: "float32" }), "sm80");
  t.match(attentionKernels({ dtype: "bfloat16" }), /^sm(80|90)$/);
  t.equal(attentionKernels({ dtype: "float16" }), attentionKernels({ dtype: "bfloat16" }));
  t.equal(attentionKernels({ dtype: "bfloat16", implementation: "sm80" }), "sm80");
  t.end();
});

t.test("what is not there is refused", (t) => {
  const absent = kind === "cpu" ? "sm90" : "cpu";
  const message = new RegExp(`implementation "${absent}" is not there on ${kind}.* for float32`);
  t.throws(() => attentionKernels({ implementation: absent }), { code: "ERR_OPTION", message });
  const q = Tensor.zeros([1, 4, 2, 8]);
  t.throws(() => attention(q, q, q, { implementation: absent }), { code: "ERR_OPTION", message });
  t.throws(() => attentionKernels({ dtype: "int8" as "int32" }), { code: "ERR_DTYPE" });
  q.dispose();
  refuses(t, [
    [
      () => attentionKernels(null as never),
      "ERR_OPTION",
      "attentionKernels: options is null, expected an object",
    ],
    [
      () => attentionKernels({ device: "cpu" as never }),
      "ERR_OPTION",
      "attentionKernels: device is string, expected a Device",
    ],
    [() => attentionKernels({ device: null as never }), "ERR_OPTION", /device is null, expected a Device/],
    [
      () => attentionKernels({ implementation: 1 as never }),
      "ERR_OPTION",
      /implementation is number, expected/,
    ],
  ]);
  t.end();
});
