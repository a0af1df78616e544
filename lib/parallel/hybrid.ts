// Ulysses within, ring across (USP; Fang and Zhao, 2024): neighbouring ranks, which are near each other, divide the
// heads; their groups divide the sequence.
import { checkOptions, failure, shown } from "../errors.ts";
import type { Communicator } from "./communicator.ts";
import { attend } from "./core.ts";
import { ringAttention } from "./ring.ts";
import { SequenceShard } from "./shard.ts";
import { checkCommunicator, replicated, type Strategy } from "./strategy.ts";
import { ulyssesAttention } from "./ulysses.ts";

/** How many ranks divide the heads among them. */
export interface HybridOptions {
  /** A divisor of the ranks: so many neighbours, on one node, say, are a group. Others go around the ring. */
  ulysses: number;
}

/**
 * Ranks u g to u g + u - 1 are group g. The groups are a zigzag ring; within one, attention sees its rows and a part of
 * the heads on each rank.
 *
 * @param length tokens of the whole sequence; any number.
 * @throws `ERR_OPTION` where `ulysses` is no divisor of the ranks.
 * @example
 * const ranks = Communicator.local([1, 2, 3, 4].map(() => new Device("cpu")));
 * ranks.map((all) => hybrid(all, 16, { ulysses: 2 }).shard.positions().join())[1]; // "12,13,14,15"
 */
export function hybrid(communicator: Communicator, length: number, options: HybridOptions): Strategy {
  checkCommunicator("hybrid", communicator);
  checkOptions("hybrid", options, { ulysses: true });
  const { rank, size } = communicator;
  const { ulysses: width } = options;
  if (!Number.isSafeInteger(width) || width < 1 || size % width !== 0) {
    throw failure(
      "ERR_OPTION",
      `hybrid: ulysses is ${shown(width)}, expected a divisor of ${size} (the ranks)`,
    );
  }
  const [group, place] = [Math.floor(rank / width), rank % width];
  const shard = SequenceShard.zigzag(length, size, rank, width);
  const neighbours = Array.from({ length: width }, (_, i) => group * width + i);
  const across = Array.from({ length: size / width }, (_, i) => i * width + place);
  const rings = across.map((_, i) => SequenceShard.zigzag(length, size / width, i).pieces);
  // One chunk of heads: with several, the all-to-all of one would run beside the ring of another. Every rank calls both
  // in the same order, so our queues would not wait in a circle; but those of two communicators reach the GPU in any
  // order, and NCCL may hang where it is not the same on all ranks. Nor is there much to gain: neighbours are near, and
  // each chunk would go around the ring, between nodes, on its own.
  const core = ulyssesAttention(
    communicator.group(neighbours),
    neighbours.map((peer) => shard.of(peer).size),
    ringAttention(communicator.group(across), rings),
    1,
  );
  return {
    name: "hybrid",
    ...replicated(shard, (x) => communicator.allReduce(x).wait()),
    attend: (q, k, v, given, keep) => attend(core, shard, q, k, v, given, keep),
  };
}
