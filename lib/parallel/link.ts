// A rank's queue of exchanges.
import type { Device } from "../device.ts";
import { wrongKind } from "../errors.ts";
import { type CommunicatorHandle, native } from "../native.ts";
import { handleOf, Tensor } from "../tensor.ts";
import type { LocalWatch } from "./local-watch.ts";
import { Pending } from "./pending.ts";

/** A tensor on its way: contiguous, of the communicator's device. */
export interface Parcel {
  /** The rank that it goes to, or comes from. */
  peer: number;
  tensor: Tensor;
}

export function checkParcels(name: string, parcels: readonly Parcel[]): void {
  if (!Array.isArray(parcels)) throw wrongKind(`exchange: ${name}`, "an array of { peer, tensor }", parcels);
}

export class Link {
  readonly rank: number;
  readonly size: number;
  readonly device: Device;
  readonly handle: CommunicatorHandle;
  readonly watch: LocalWatch | undefined;

  constructor(handle: CommunicatorHandle, rank: number, size: number, device: Device, watch?: LocalWatch) {
    this.handle = handle;
    this.rank = rank;
    this.size = size;
    this.device = device;
    this.watch = watch;
  }

  /** Runs `work`, which queues what is to be done behind what the device has to do so far. */
  start<T>(work: () => void, result: T): Pending<T> {
    native.communicatorFollow(this.handle);
    work();
    const fence = native.communicatorFence(this.handle);
    this.watch?.note(this.rank);
    return new Pending(() => {
      native.communicatorJoin(this.handle, fence);
      return result;
    });
  }

  exchange(send: readonly Parcel[], receive: readonly Parcel[]): void {
    const handles = (parcels: readonly Parcel[]) =>
      parcels.map((parcel) => handleOf(parcel?.tensor, "exchange: a parcel's tensor"));
    const peers = (parcels: readonly Parcel[]) => parcels.map(({ peer }) => peer);
    native.communicatorExchange(this.handle, handles(send), peers(send), handles(receive), peers(receive));
  }

  sum(terms: readonly Tensor[], y: Tensor): void {
    const handles = terms.map((term) => handleOf(term, "a term"));
    native.communicatorSum(this.handle, handles, handleOf(y, "the sum"));
  }

  empty(shape: readonly number[], like: Tensor, dtype?: "float32"): Tensor {
    return Tensor.empty(shape, { dtype: dtype ?? like.dtype, device: this.device });
  }

  peers(): number[] {
    return Array.from({ length: this.size }, (_, peer) => peer);
  }

  others(): number[] {
    return this.peers().filter((peer) => peer !== this.rank);
  }
}
