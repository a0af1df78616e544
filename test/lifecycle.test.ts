// Leaving while work is queued, memory that nobody holds any more, and memory over many calls.
import t from "tap";
import type { Collected } from "./support/child/collected.ts";
import type { Way } from "./support/child/exit.ts";
import type { ManyCalls } from "./support/child/many-calls.ts";
import { answer, run } from "./support/child.ts";

const exits: [way: Way, code: number][] = [
  ["process.exit", 7],
  ["process.exit after an await", 7],
  ["an uncaught error", 1],
  ["nothing awaited", 0],
  ["all awaited", 0],
];
for (const [way, code] of exits) {
  t.test(`the process ends while devices work: ${way}`, async (t) => {
    const ended = await run("exit.ts", { args: [way] });
    t.match(ended, { code, signal: null });
    t.match(ended.stderr, code === 1 ? /on purpose/ : /^$/);
  });
}

t.test("the garbage collector frees what is dropped, and knows its size", async (t) => {
  // Its own pace is slower on a busy machine, but half of the heap's limit is the most that V8 lets live outside of it.
  const { tensors, dropped, peak } = await answer<Collected>("collected.ts", {
    flags: ["--expose-gc", "--max-old-space-size=256"],
  });
  t.strictSame(tensors, [10, 0]);
  t.ok(peak < dropped / 4, `${peak} of ${dropped} bytes lived at once, without a call of the collector`);
});

t.test("10,000 calls leave nothing behind", async (t) => {
  const { calls, residentBytes, liveBytes, tensors } = await answer<ManyCalls>("many-calls.ts");
  t.equal(calls, 10_000);
  t.equal(liveBytes[1], liveBytes[0]);
  t.equal(tensors[1], tensors[0]);
  const grown = residentBytes[1] - residentBytes[0];
  // One tensor a call would be 48 MiB; how far calls are ahead of their work, and JavaScript's own heap, vary.
  t.ok(grown < 40 << 20, `${grown} bytes in 8,000 calls`);
});
