// Every operation that the bench can measure: run on small rows, with nothing left behind.
import t from "tap";
import type { Operation } from "../../lib/cli/bench/operation.ts";
import { operations } from "../../lib/cli/bench/operations.ts";
import { Device } from "../../lib/index.ts";

for (const [name, operation] of Object.entries<Operation>(operations)) {
  t.test(name, async (t) => {
    for (const dtype of ["float32", "bfloat16", "float16"] as const) {
      using device = new Device();
      const shape = { rows: 12, width: 48, headDim: 16, vocabulary: 40, dtype, device };
      const prepared = operation.prepare(shape);
      for (const pass of operation.passes) {
        const results = prepared[pass]?.() ?? [];
        const values = await Promise.all(results.map((tensor) => tensor.data()));
        t.ok(
          values.every((all) => all.every(Number.isFinite)),
          `${pass}, ${dtype}`,
        );
        const work = operation.work(shape, pass);
        t.ok(("bytes" in work ? work.bytes : work.operations) > 0);
        for (const tensor of results) tensor.dispose();
      }
      for (const input of prepared.inputs) input[Symbol.dispose]();
      await device.synchronize();
      t.equal(device.memory().tensors, 0, `${dtype}: nothing is left`);
    }
  });
}
