// What is sent and received, and where it belongs.
import { Tensor } from "../tensor.ts";
import { copyInto } from "./key-values.ts";
import type { Parcel } from "./link.ts";

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
