// Each worker thread has devices and a copy of the addon's state of its own, over the process's one thread pool.
import { once } from "node:events";
import { setTimeout } from "node:timers/promises";
import { attentionBackward, attentionForward, Tensor } from "longseq";
import t from "tap";
import type { WorkerTask } from "./support/child/worker.ts";
import { work } from "./support/child.ts";

const begin = (task: WorkerTask) => work("worker.ts", task);

async function expected(seed: number): Promise<unknown[]> {
  const q = Tensor.normal([1, 400, 2, 32], { seed });
  const { out, logSumExp } = attentionForward(q, q, q, { causal: true });
  const { dk } = attentionBackward({ q, k: q, v: q, out, logSumExp, dout: q }, { causal: true });
  return [await out.data(), await dk.data()];
}

t.test("several at once give what this thread gives", async (t) => {
  const seeds = [1, 2, 3, 4];
  const workers = seeds.map((seed) => begin({ seed, isEndless: false }));
  const exits = workers.map((worker) => once(worker, "exit"));
  const results = await Promise.all(workers.map(async (worker) => (await once(worker, "message"))[0]));
  for (const [i, seed] of seeds.entries()) t.strictSame(results[i], await expected(seed), `seed ${seed}`);
  t.strictSame(
    await Promise.all(exits),
    seeds.map(() => [0]),
    "and end when nothing is waited for",
  );
});

t.test("terminated while they work", async (t) => {
  for (let round = 0; round < 3; round++) {
    const workers = [1, 2, 3].map((seed) => begin({ seed, isEndless: true }));
    await Promise.all(workers.map((worker) => once(worker, "message")));
    await setTimeout(round * 3);
    t.strictSame(await Promise.all(workers.map((worker) => worker.terminate())), [1, 1, 1]);
  }
  const q = Tensor.normal([1, 400, 2, 32], { seed: 1 });
  t.strictSame(
    [await attentionForward(q, q, q, { causal: true }).out.data()],
    (await expected(1)).slice(0, 1),
    "this thread goes on",
  );
});
