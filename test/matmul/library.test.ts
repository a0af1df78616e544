// Without cuBLASLt a GPU has no products: the call says so, names what was tried, and all else goes on.
import { Device } from "longseq";
import t from "tap";
import type { WithoutLibrary } from "../support/child/without-cublas.ts";
import { answer } from "../support/child.ts";

t.test("no cuBLASLt", { skip: Device.default.name === "cpu" && "the CPU needs no library" }, async (t) => {
  const empty = t.testdir({ empty: {} });
  const absent = `${empty}/libcublasLt.so.13`;
  for (const named of [empty, absent]) {
    const { code, message, sum } = await answer<WithoutLibrary>("without-cublas.ts", {
      environment: { LONGSEQ_CUBLAS: named },
    });
    t.equal(code, "ERR_NO_CUDA");
    t.match(message, absent, "what was tried");
    t.match(message, "LONGSEQ_CUBLAS", "what helps");
    t.strictSame(sum, [2, 3]);
  }
});
