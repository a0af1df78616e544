// A mask larger than LONGSEQ_MASK_BUDGET goes through a GPU in panels: with the results that it has when it is kept there.
// On the CPU the budget changes nothing.
import { join } from "node:path";
import { info, loadSafetensors, Scope } from "longseq";
import t from "tap";
import { bitsOf } from "../support/bits.ts";
import type { LargeMaskReport } from "../support/child/large-mask.ts";
import type { PanelsReport } from "../support/child/mask-panels.ts";
import { answer } from "../support/child.ts";
import { type FloatType, relativeError, unitRoundoff } from "../support/compare.ts";
import { kind } from "../support/devices.ts";

t.test("results and memory", async (t) => {
  // A panel has half of it: 24 blocks of 2 KiB.
  const budget = 96 << 10;
  const folder = t.testdir({});
  const run = (name: string, environment: NodeJS.ProcessEnv) =>
    answer<PanelsReport>("mask-panels.ts", { args: [join(folder, name)], environment });
  await run("kept", { LONGSEQ_MASK_BUDGET: "1g" });
  const { maskBytes } = await run("panels", { LONGSEQ_MASK_BUDGET: "96k" });
  await Scope.run(async () => {
    const [{ tensors: kept }, { tensors: panels }] = (await Promise.all(
      ["kept", "panels"].map((name) => loadSafetensors(join(folder, name))),
    )) as [Awaited<ReturnType<typeof loadSafetensors>>, Awaited<ReturnType<typeof loadSafetensors>>];
    t.ok(Object.keys(kept).length > 0);
    t.strictSame(Object.keys(panels).sort(), Object.keys(kept).sort());
    for (const [name, expected] of Object.entries(kept)) {
      const actual = panels[name];
      if (!actual) continue;
      const error = relativeError(await actual.data(), await expected.data());
      if (expected.dtype === "float32" || !/\/d[qkv]$/.test(name)) {
        const same = (await bitsOf(actual)).equals(await bitsOf(expected));
        t.ok(same, `${name}: the same bits, off by ${error}`);
      } else {
        // A panel's blocks of keys come in another order than all of them.
        t.ok(error < unitRoundoff[expected.dtype as FloatType], `${name}: off by ${error}`);
      }
    }
  });
  if (kind !== "cuda") return;
  const taken = Object.entries(maskBytes);
  for (const [dtype, bytes] of taken)
    t.ok(bytes <= budget, `${dtype}: ${bytes} bytes for the mask, of ${budget}`);
  // Where results come later and are larger, it takes nothing beside them.
  t.ok(taken.some(([, bytes]) => bytes > 0));
});

t.test(
  "65,536 tokens, a random quarter of the blocks partial",
  { skip: kind === "cpu" && "it takes a GPU" },
  async (t) => {
    const run = (budget: string) =>
      answer<LargeMaskReport>("large-mask.ts", { environment: { LONGSEQ_MASK_BUDGET: budget } });
    const kept = await run("1g");
    const panels = await run("16m"); // alone too: both are timed
    t.ok(panels.maskBytes > 100 << 20, `${panels.maskBytes >> 20} MiB of mask`);
    t.strictSame(panels.hashes, kept.hashes);
    for (const [name, norm] of Object.entries(panels.norms)) {
      t.ok(norm > 0 && Math.abs(norm / (kept.norms[name] ?? 0) - 1) < 1e-5, `${name}: ${norm}`);
    }
    const extra = panels.peakBytes - kept.peakBytes;
    t.ok(extra > 0 && extra <= 16 << 20, `${extra} bytes for panels`);
    for (const [name, { milliseconds }] of Object.entries({ kept, panels })) {
      t.comment(`${name}: forward ${milliseconds.forward} ms, backward ${milliseconds.backward} ms`);
    }
  },
);

t.test("what the budget is", { skip: info().cuda.gpus.length === 0 && "there is no GPU" }, async (t) => {
  for (const { memoryBytes, maskBudget } of info().cuda.gpus) {
    if (process.env.LONGSEQ_MASK_BUDGET === undefined && process.env.LONGSEQ_MEMORY_LIMIT === undefined) {
      t.equal(maskBudget, Math.floor(memoryBytes / 16));
    }
  }
});
