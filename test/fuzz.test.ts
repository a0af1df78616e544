// Nothing in a call may end the process, whatever it is given.
import t from "tap";
import type { FuzzReport } from "./support/child/fuzz.ts";
import { answer } from "./support/child.ts";
import { root } from "./support/devices.ts";

t.test("garbage in every argument and option", async (t) => {
  const seed = Math.floor(Math.random() * 2 ** 31);
  const runs = 4000;
  t.comment(`seed ${seed}`);
  const { calls, refused, uncoded, untried, result } = await answer<FuzzReport>("fuzz.ts", {
    args: [root, String(seed), String(runs)],
    environment: { LONGSEQ_MEMORY_LIMIT: "64m" },
  });
  t.strictSame(uncoded.slice(0, 5), [], "what is refused is refused with a code");
  t.strictSame(untried, [], "everything that the package has is called");
  t.equal(result.length, 8);
  for (const [i, value] of result.entries()) t.ok(Math.abs(value - i - 1) < 1e-5, "it still works");
  t.ok(refused > 0.5 * calls && refused < 0.97 * calls, `${refused} of ${calls} calls were refused`);
});
