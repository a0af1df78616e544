// What a rank of a ring sends and receives in one step of the ranks.
import { Tensor } from "../tensor.ts";
import type { Communicator } from "./communicator.ts";
import type { Parcel } from "./link.ts";
import { filled, type Landing, land, landing } from "./parcels.ts";
import type { Pending } from "./pending.ts";
import { release } from "./portions.ts";
import type { RingStep, Run } from "./ring-plan.ts";

/** [B, n, H, D] each: keys and values, or their gradients. */
export type KeyValues = readonly [k: Tensor, v: Tensor];

/** The rows of a run: the tensor itself where they are all of its rows. */
export function rowsOf(x: Tensor, { start, length }: Run, axis = 1): Tensor {
  return length === x.shape[axis] ? x : x.slice(axis, start, start + length);
}

/** Keys and gradients go in one exchange where both are on their way. */
export class RingExchange {
  readonly #communicator: Communicator;
  readonly #sent: Parcel[] = [];
  readonly #received: Parcel[] = [];
  readonly #landings: Landing[] = [];
  /** Views and copies to send. */
  readonly #made: Tensor[] = [];

  constructor(communicator: Communicator) {
    this.#communicator = communicator;
  }

  /** A run of rows to the next rank. Gives where those of the rank before come. */
  passOn(held: KeyValues, run: Run, incoming: number): KeyValues {
    this.#send(1, held, run);
    const coming = held.map(({ shape, dtype, device }) =>
      Tensor.empty(shape.with(1, incoming), { dtype, device }),
    );
    this.#received.push(...coming.map((tensor) => ({ peer: this.#peer(-1), tensor })));
    return coming as readonly Tensor[] as KeyValues;
  }

  /** Gradients of what a step held: to the keys' owner where they are whole, and from those who had this rank's. */
  giveBack(sums: KeyValues, { distance, returning, returned }: RingStep, own: KeyValues): void {
    for (const run of returning) this.#send(-distance, sums, run);
    for (const { start, length } of returned) {
      for (const x of own)
        this.#landings.push(landing(this.#peer(distance), x.slice(1, start, start + length)));
    }
  }

  start(): Pending<void> {
    const moved = this.#communicator.exchange(
      filled(this.#sent),
      filled([...this.#received, ...this.#landings]),
    );
    release(this.#made);
    return moved.map(() => this.#landings.forEach(land));
  }

  #send(ahead: number, held: KeyValues, run: Run): void {
    for (const x of held) {
      const rows = rowsOf(x, run);
      const tensor = rows.isContiguous ? rows : rows.contiguous();
      this.#sent.push({ peer: this.#peer(ahead), tensor });
      this.#made.push(...[rows, tensor].filter((made) => made !== x));
    }
  }

  #peer(ahead: number): number {
    const { rank, size } = this.#communicator;
    return (rank + ahead + size) % size;
  }
}
