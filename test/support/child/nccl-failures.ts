// A rank over NCCL under `longseq launch`, of which the second gets a signal of its own after some steps ("SIGKILL",
// "SIGSTOP"), or one never comes ("absent"); "none": all goes well. Says which process it is, and how it ends.
import { Communicator, Device, rankFromEnvironment, Tensor } from "longseq";

export type Trial = "none" | "absent" | "SIGKILL" | "SIGSTOP";

const how = process.argv[2] as Trial;
const steps = 8;
const { rank, size, localRank } = rankFromEnvironment();
// The launcher asks all to end when one has failed: here it is asked what a rank hears by itself.
process.on("SIGTERM", () => {});
console.log(`pid ${process.pid}`);
try {
  const device = new Device(`cuda:${localRank}`);
  const place = { rank, size: how === "absent" ? size + 1 : size };
  const communicator = await Communicator.nccl({ ...place, device, timeoutMs: 5000 });
  const x = Tensor.zeros([1 << 24], { device });
  for (let step = 0; step < steps; step++) {
    // The other's GPU is then in a step that this one does not come to.
    if (step === steps - 1 && rank === 1 && how.startsWith("SIG")) process.kill(process.pid, how);
    const sum = communicator.allReduce(x).wait();
    await sum.data();
    sum.dispose();
  }
  console.log("done");
  communicator.dispose();
} catch (error) {
  const { code, message } = error as { code?: unknown; message: string };
  console.log(`${code}: ${message}`);
  process.exit(3);
}
