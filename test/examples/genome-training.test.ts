import { mkdtempSync } from "node:fs";
import { join } from "node:path";
import { Communicator, Device } from "longseq";
import t from "tap";
import { type Settings, train } from "../../examples/genome-training.ts";

const folder = t.testdir({});
const settings = (steps: number, checkpoint?: string): Settings => ({
  genome: "test/data/lambda_phage_NC_001416.fa.gz",
  model: { kind: "llama", hidden: 16, heads: 2, layers: 1, vocabulary: 5 },
  length: 130,
  steps,
  learningRate: 5e-3,
  ...(checkpoint !== undefined && { checkpoint }),
});

async function trained(ranks: number, given: Settings) {
  const devices = Array.from({ length: ranks }, () => new Device());
  const communicators = Communicator.local(devices);
  const result = await train(communicators, given);
  for (const communicator of communicators) communicator.dispose();
  const left = devices.map((device) => device.memory().tensors);
  for (const device of devices) device.dispose();
  return { ...result, left };
}

t.test("training over ranks goes on from a checkpoint, at any number of them", async (t) => {
  const straight = await trained(2, settings(12));
  t.ok(
    straight.losses.slice(-3).every((loss) => loss < 0.95 * (straight.losses[0] ?? 0)),
    "it learns",
  );
  t.strictSame(straight.left, [0, 0], "nothing is left behind");

  const checkpoint = mkdtempSync(join(folder, "checkpoint-"));
  const begun = await trained(2, settings(8, checkpoint));
  const ended = await trained(2, settings(12, checkpoint));
  t.strictSame([...begun.losses, ...ended.losses], straight.losses, "the same bits");
  t.equal(ended.heldOut, straight.heldOut);

  const other = await trained(3, settings(14, checkpoint));
  const alone = await trained(1, settings(14));
  for (const [step, loss] of other.losses.entries()) {
    const expected = alone.losses[12 + step] ?? 0;
    t.ok(Math.abs(loss - expected) < 1e-4, `step ${12 + step} of three ranks: ${loss}, of one ${expected}`);
  }
});
