// The ways of sequence parallelism, by name.
import { type Communicator, hybrid, megatron, ring, type Strategy, ulysses, zigzag } from "longseq";

export const ways = ["megatron", "ulysses", "ring", "zigzag", "hybrid"] as const;
export type Way = (typeof ways)[number];

export function strategyOf(way: Way, communicator: Communicator, length: number): Strategy {
  if (way === "megatron") return megatron(communicator, length);
  if (way === "ulysses") return ulysses(communicator, length);
  if (way === "ring") return ring(communicator, length);
  if (way === "zigzag") return zigzag(communicator, length);
  return hybrid(communicator, length, { ulysses: communicator.size % 2 === 0 ? 2 : 1 });
}
