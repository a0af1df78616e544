// A rank in a worker thread: sums its number with the others', or leaves without a word.
import { parentPort, workerData } from "node:worker_threads";
import { Communicator, Device, Tensor } from "longseq";

export interface RankTask {
  name: string;
  rank: number;
  size: number;
  timeoutMs: number;
  /** Ends its thread where the others exchange. */
  isDeserter?: boolean;
}

const { isDeserter, ...place } = workerData as RankTask;
const device = new Device();
const communicator = Communicator.join({ ...place, device });
const first = communicator.allReduce(Tensor.from([place.rank], [1], { device })).wait();
await first.data();
if (isDeserter) process.exit(0);
const outcome = communicator
  .allGather(Tensor.from([place.rank * 2], [1], { device }))
  .wait()
  .data()
  .then(
    (values) => [...values],
    (error: Error & { code: string }) => `${error.code} ${error.message}`,
  );
parentPort?.postMessage([[...(await first.data())], await outcome]);
