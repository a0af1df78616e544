// The same bits, whoever computes them: run after run, and at every number of threads.
import t from "tap";
import type { BitsReport } from "../support/child/result-bits.ts";
import { answer } from "../support/child.ts";

t.test("runs and thread counts", async (t) => {
  const counts = [1, 2, 3, 5];
  const reports: BitsReport[] = [];
  for (const threads of counts) {
    reports.push(await answer("result-bits.ts", { environment: { LONGSEQ_THREADS: String(threads) } }));
  }
  t.strictSame(
    reports.map(({ threads }) => threads),
    counts,
  );
  const [expected] = reports;
  for (const { threads, hashes } of reports) {
    for (const [name, [first, second]] of Object.entries(hashes)) {
      t.equal(second, first, `${name}, again, ${threads} threads`);
      t.equal(first, expected?.hashes[name]?.[0], `${name}, ${threads} threads`);
    }
  }
});
