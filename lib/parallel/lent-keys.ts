// A ring whose ranks share memory: all see each other's keys in their place, and the sums of their gradients go from
// rank to rank, who add to them. Nothing is copied; an exchange says who has what now.
import type { Tensor } from "../tensor.ts";
import { asContiguous, borrowed, placeOf } from "../view.ts";
import type { Communicator } from "./communicator.ts";
import type { Parcel } from "./link.ts";
import { filled, peerAt } from "./parcels.ts";
import type { Pending } from "./pending.ts";
import { type KeyPlaces, type KeyValues, pair, rowsOf } from "./ring-exchange.ts";
import type { RingKeys } from "./ring-keys.ts";
import type { Rows } from "./ring-meeting.ts";
import type { RingStep } from "./ring-plan.ts";

export class LentKeys implements RingKeys {
  readonly #communicator: Communicator;
  readonly #steps: readonly RingStep[];
  readonly #sums: KeyValues | undefined;
  /** What others see of this rank's keys, for each of them; and of others' keys what their owners share. */
  readonly #lent: readonly Parcel[];
  readonly #borrowed = new Map<RingStep, readonly Parcel[]>();
  readonly #arriving: Pending<void>;
  #at = -1;
  /** Of the step's keys: this rank adds to them in its turn. */
  #held: KeyValues | undefined;

  constructor(
    communicator: Communicator,
    steps: readonly RingStep[],
    own: KeyValues,
    sums: KeyValues | undefined,
  ) {
    this.#communicator = communicator;
    this.#steps = steps;
    this.#sums = sums;
    this.#held = sums;
    const [{ shared }, ...others] = steps as [RingStep, ...RingStep[]];
    const rows = pair(own, (x) => asContiguous(rowsOf(x, shared)));
    this.#lent = others
      .filter(({ sent }) => sent.length > 0)
      .flatMap(({ distance }) => this.#parcels(distance, rows));
    for (const step of others.filter(({ keys }) => keys.length > 0)) {
      const coming = pair(own, (x) => comingLike(x, step.shared));
      this.#borrowed.set(step, this.#parcels(-step.distance, coming));
    }
    this.#arriving = this.#exchange(this.#lent, [...this.#borrowed.values()].flat());
  }

  begin(): void {
    this.#at++;
    if (this.#at === 0) return;
    this.#arriving.wait();
    const [before, step] = [this.#steps[this.#at - 1] as RingStep, this.#step];
    if (this.#held === undefined) return;
    // Whoever had this step's keys at the step before is as far behind as the steps are apart.
    const ahead = step.distance - before.distance;
    const coming = pair(this.#held, (x) => comingLike(x, step.shared));
    this.#exchange(this.#parcels(ahead, this.#held), this.#parcels(-ahead, coming)).wait();
    this.#held = coming;
  }

  keys(): KeyPlaces {
    const [k, v] = this.#borrowed.get(this.#step) as readonly [Parcel, Parcel];
    return this.#seenOf([k.tensor, v.tensor]);
  }

  gradients(): { places: KeyPlaces; adds: boolean } {
    return { places: this.#seenOf(this.#held as KeyValues), adds: true };
  }

  end(): void {
    // What is borrowed stays until the others have it back.
  }

  finish(): Pending<void> {
    const { distance } = this.#step;
    return this.#exchange(
      [...[...this.#borrowed.values()].flat(), ...this.#parcels(-distance, this.#held ?? [])],
      [...this.#lent, ...this.#parcels(distance, this.#sums ?? [])],
    );
  }

  get #step(): RingStep {
    return this.#steps[this.#at] as RingStep;
  }

  /** Of the rows that the owner shares. */
  #seenOf(values: KeyValues): KeyPlaces {
    const { keys, shared } = this.#step;
    return pair(values, (x) => placeOf(x, { start: keys.start - shared.start, length: keys.length }));
  }

  /** To, or from, the rank so far ahead. */
  #parcels(ahead: number, tensors: readonly Tensor[]): Parcel[] {
    const peer = peerAt(this.#communicator, ahead);
    return tensors.map((tensor) => ({ peer, tensor }));
  }

  #exchange(sent: readonly Parcel[], received: readonly Parcel[]): Pending<void> {
    return this.#communicator.lend(filled(sent), filled(received));
  }
}

function comingLike({ shape, dtype, device }: Tensor, { length }: Rows): Tensor {
  return borrowed(shape.with(1, length), { dtype, device });
}
