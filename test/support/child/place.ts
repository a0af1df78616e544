// A rank of a launch: meets the others, and says where all of them are.
import { broadcast, exchange, rankFromEnvironment } from "longseq";

export interface Place {
  rank: number;
  size: number;
  localRank: number;
  localSize: number;
  source: string;
  /** Of all ranks, in their order. */
  processes: number[];
  id: number[];
}

const { rank, size, localRank, localSize, source } = rankFromEnvironment();
const processes = await exchange(JSON.stringify(process.pid), { timeoutMs: 30_000 });
const id = await broadcast(rank === 0 ? Uint8Array.from({ length: 128 }, (_, i) => 255 - i) : undefined);
const place: Place = {
  rank,
  size,
  localRank,
  localSize,
  source,
  processes: processes.map(Number),
  id: [...id],
};
console.log(JSON.stringify(place));
