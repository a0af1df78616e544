// The same bits run after run and at every number of threads, and right on every instruction set.
import { info } from "longseq";
import t from "tap";
import type { ProductReport } from "../support/child/product-bits.ts";
import { answer } from "../support/child.ts";

const report = (environment: NodeJS.ProcessEnv, ...args: string[]) =>
  answer<ProductReport>("product-bits.ts", { environment, args });

t.test("runs and thread counts", async (t) => {
  let expected: ProductReport | undefined;
  for (const threads of [1, 2, 5]) {
    const given = await report({ LONGSEQ_THREADS: String(threads) });
    expected ??= given;
    t.equal(given.threads, threads);
    for (const [name, [first, second]] of Object.entries(given.hashes)) {
      t.equal(second, first, `${name}, again, ${threads} threads`);
      t.equal(first, expected.hashes[name]?.[0], `${name}, ${threads} threads`);
    }
  }
});

t.test("instruction sets", async (t) => {
  const sets = ["base", "avx2", "avx512", "avx512bf16"];
  for (const set of sets.slice(0, sets.indexOf(info().cpu.instructionSet) + 1)) {
    const { instructionSet, wrong } = await report({ LONGSEQ_ISA: set }, "errors");
    t.equal(instructionSet, set);
    t.strictSame(wrong, [], set);
  }
});
