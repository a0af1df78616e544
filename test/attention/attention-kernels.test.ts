// Which kernels run, and what the option `implementation` makes of that.
import { attention, attentionKernels, Device, Tensor } from "longseq";
import t from "tap";
import { implementations, kind } from "../support/devices.ts";

const [own] = implementations;

t.test("the device's own, and what is named", (t) => {
  t.equal(attentionKernels(), own, "float32");
  t.equal(attentionKernels({ implementation: own }), own);
  t.equal(attentionKernels({ implementation: "reference" }), "reference");
  t.equal(attentionKernels({ device: new Device("cpu"), dtype: "bfloat16", pass: "backward" }), "cpu");
  t.end();
});

t.test("Hopper's are of 16 bits, and sm80's stand in where they have none", { skip: kind === "cpu" }, (t) => {
  const best = attentionKernels({ dtype: "bfloat16" });
  t.match(best, /^sm(80|90)$/);
  t.equal(attentionKernels({ dtype: "float16", headDim: 128, pass: "backward" }), best);
  t.equal(attentionKernels({ dtype: "bfloat16", headDim: 256, pass: "backward" }), "sm80");
  t.equal(attentionKernels({ dtype: "bfloat16", pass: "backward", deterministic: true }), "sm80");
  t.end();
});

t.test("what is not there is refused", (t) => {
  const absent = kind === "cpu" ? "sm90" : "cpu";
  const message = new RegExp(`implementation "${absent}" is not there on ${kind}.* for float32`);
  t.throws(() => attentionKernels({ implementation: absent }), { code: "ERR_OPTION", message });
  const q = Tensor.zeros([1, 4, 2, 8]);
  t.throws(() => attention(q, q, q, { implementation: absent }), { code: "ERR_OPTION", message });
  t.throws(() => attentionKernels({ dtype: "int8" as "int32" }), { code: "ERR_DTYPE" });
  t.throws(() => attentionKernels({ pass: "both" as "forward" }), { code: "ERR_OPTION" });
  q.dispose();
  t.end();
});
