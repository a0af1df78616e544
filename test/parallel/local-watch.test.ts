// Ranks of one thread of which some were not called are told of, once; those that are merely slow are not.
import { once } from "node:events";
import { setTimeout } from "node:timers/promises";
import { Tensor } from "longseq";
import t from "tap";
import { LocalWatch } from "../../lib/parallel/local-watch.ts";
import { localRanks } from "../support/ranks.ts";

t.test("ranks that stay behind", async (t) => {
  const watch = new LocalWatch(4, 20);
  const heard = once(process, "warning");
  for (const rank of [0, 1, 0, 2]) watch.note(rank);
  await setTimeout(60); // for its own timer keeps no process
  const [warning] = await heard;
  t.match(warning, {
    code: "RANKS_WAIT",
    message: /^Communicator.local: ranks 1, 2, 3 have made fewer/,
  });
  let others = 0;
  const count = () => others++;
  process.on("warning", count);
  watch.note(0);
  await setTimeout(60);
  process.off("warning", count);
  t.equal(others, 0, "once");
});

t.test("nothing is said where all come, where they go on, or where one has left", async (t) => {
  const warnings: Error[] = [];
  const note = (warning: Error) => warnings.push(warning);
  process.on("warning", note);
  const even = new LocalWatch(2, 20);
  for (const rank of [0, 1]) even.note(rank);
  const ended = new LocalWatch(2, 20);
  ended.note(0);
  ended.end();
  const slow = new LocalWatch(2, 40);
  for (let turn = 0; turn < 8; turn++) {
    slow.note(0);
    await setTimeout(10);
  }
  slow.note(1);
  slow.end();
  const [first, second] = localRanks(2, { timeoutMs: 50 });
  if (first && second)
    await t.rejects(
      first
        .allReduce(Tensor.zeros([1], { device: first.device }))
        .wait()
        .data(),
      { code: "ERR_COMM" },
    );
  await setTimeout(60);
  process.off("warning", note);
  t.strictSame(warnings, []);
});
