// What a rank of a ring sends and receives in one step of the ranks.
import type { TensorPlace } from "../native.ts";
import { Tensor } from "../tensor.ts";
import type { DType } from "../values.ts";
import { asContiguous } from "../view.ts";
import type { Communicator } from "./communicator.ts";
import type { Parcel } from "./link.ts";
import { filled, peerAt } from "./parcels.ts";
import type { Pending } from "./pending.ts";
import { release } from "./portions.ts";
import type { Rows } from "./ring-meeting.ts";
import type { RingStep } from "./ring-plan.ts";

/** [B, n, H, D] each: keys and values, or their gradients. */
export type KeyValues = readonly [k: Tensor, v: Tensor];
/** The same for one call of the addon. */
export type KeyPlaces = readonly [k: TensorPlace, v: TensorPlace];

export function pair<T>([k, v]: KeyValues, make: (x: Tensor) => T): readonly [k: T, v: T] {
  return [make(k), make(v)];
}

/** The rows of a run: the tensor itself where they are all of its rows. */
export function rowsOf(x: Tensor, { start, length }: Rows, axis = 1): Tensor {
  return length === x.shape[axis] ? x : x.slice(axis, start, start + length);
}

/** Keys and gradients go in one exchange where both are on their way. */
export class RingExchange {
  readonly #communicator: Communicator;
  readonly #sent: Parcel[] = [];
  readonly #received: Parcel[] = [];
  /** Views and copies to send. */
  readonly #made: Tensor[] = [];

  constructor(communicator: Communicator) {
    this.#communicator = communicator;
  }

  /** This rank's keys to the rank that sees them at a step. Gives where those come that this one sees. */
  keys(own: KeyValues, { distance, sent, keys }: RingStep): KeyValues {
    const rows = own.map((x) => rowsOf(x, sent));
    this.#made.push(...rows.filter((x) => !own.includes(x)));
    return this.#swap(distance, rows, keys.length, own[0].dtype);
  }

  /** Gradients of the keys that came for a step, back to their owner. Gives where those of this rank's keys come. */
  gradients(made: KeyValues, { distance, sent }: RingStep): KeyValues {
    return this.#swap(-distance, made, sent.length, "float32");
  }

  start(): Pending<void> {
    const moved = this.#communicator.exchange(filled(this.#sent), filled(this.#received));
    release(this.#made);
    return moved;
  }

  /** To the rank so far ahead, and so many rows from the one so far behind. */
  #swap(ahead: number, tensors: readonly Tensor[], rows: number, dtype: DType): KeyValues {
    const { device } = this.#communicator;
    const [to, from] = [peerAt(this.#communicator, ahead), peerAt(this.#communicator, -ahead)];
    return tensors.map((x) => {
      const tensor = asContiguous(x);
      if (tensor !== x) this.#made.push(tensor);
      this.#sent.push({ peer: to, tensor });
      const coming = Tensor.empty(x.shape.with(1, rows), { dtype, device });
      this.#received.push({ peer: from, tensor: coming });
      return coming;
    }) as readonly Tensor[] as KeyValues;
  }
}
