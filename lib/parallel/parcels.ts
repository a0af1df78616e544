// What is sent and received, and where it belongs.
import { Tensor } from "../tensor.ts";
import { copyInto } from "./key-values.ts";
import type { Parcel } from "./link.ts";

/** The rank so far ahead of this one, or behind it; fewer than there are. */
export function peerAt({ rank, size }: { rank: number; size: number }, ahead: number): number {
  return (rank + ahead + size) % size;
}

/** Those that have elements: where there are none, neither side sends or waits. */
export function filled(parcels: readonly Parcel[]): Parcel[] {
  return parcels.filter(({ tensor }) => tensor.size > 0);
}

/** A parcel that is received, and where its values belong. */
export interface Landing extends Parcel {
  place: Tensor;
}

/** Received in the place itself where that is contiguous, else beside it. */
export function landing(peer: number, place: Tensor): Landing {
  const { shape, dtype, device } = place;
  return { peer, place, tensor: place.isContiguous ? place : Tensor.empty(shape, { dtype, device }) };
}

/** Brings what was received to its place. Both tensors are let go. */
export function land({ tensor, place }: Landing): void {
  if (tensor !== place) {
    copyInto(place, tensor);
    tensor.dispose();
  }
  place.dispose();
}
