// A ring whose ranks share memory: all see each other's keys in their place, and the sums of their gradients go from
// rank to rank, who add to them. Nothing is copied; an exchange says who has what now.
import type { Tensor } from "../tensor.ts";
import { borrowed } from "../view.ts";
import type { Communicator } from "./communicator.ts";
import type { Parcel } from "./link.ts";
import { filled } from "./parcels.ts";
import type { Pending } from "./pending.ts";
import { type KeyValues, rowsOf } from "./ring-exchange.ts";
import type { RingKeys } from "./ring-keys.ts";
import type { RingStep, Rows } from "./ring-plan.ts";

export class LentKeys implements RingKeys {
  readonly #communicator: Communicator;
  readonly #steps: readonly RingStep[];
  readonly #own: KeyValues;
  /** What others see of them. */
  readonly #shared: KeyValues;
  readonly #sums: KeyValues | undefined;
  /** At each step, the keys that its owner shares. */
  readonly #lent: readonly KeyValues[];
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
    this.#own = own;
    this.#sums = sums;
    this.#held = sums;
    const [{ shared }, ...others] = steps as [RingStep, ...RingStep[]];
    this.#shared = pair(own, (x) => inRowMajor(rowsOf(x, shared)));
    this.#lent = steps.map((step) => pair(own, (x) => this.#comingLike(x, step.shared)));
    const sent = others.filter(({ sent }) => sent.length > 0);
    const seen = others.filter(({ keys }) => keys.length > 0);
    this.#arriving = this.#exchange(
      sent.flatMap(({ distance }) => this.#parcels(distance, this.#shared)),
      seen.flatMap((step) => this.#parcels(-step.distance, this.#lentAt(step))),
    );
  }

  begin(): void {
    this.#at++;
    if (this.#at === 0) return;
    this.#arriving.wait();
    const [before, step] = [this.#steps[this.#at - 1] as RingStep, this.#step];
    if (this.#held === undefined) return;
    // Whoever had this step's keys at the step before is as far behind as the steps are apart.
    const ahead = step.distance - before.distance;
    const coming = pair(this.#held, (x) => this.#comingLike(x, step.shared));
    this.#exchange(this.#parcels(ahead, this.#held), this.#parcels(-ahead, coming)).wait();
    this.#held = coming;
  }

  keys(): KeyValues {
    if (this.#at === 0) return this.#own;
    return pair(this.#lentAt(this.#step), (x) => rowsOf(x, this.#seenRows));
  }

  gradients(): { places: KeyValues; adds: boolean } {
    return { places: pair(this.#held as KeyValues, (x) => rowsOf(x, this.#seenRows)), adds: true };
  }

  end(): void {}

  finish(): Pending<void> {
    const [, ...others] = this.#steps;
    const sent = others.filter(({ sent }) => sent.length > 0);
    const seen = others.filter(({ keys }) => keys.length > 0);
    const { distance } = this.#step;
    const [held, sums] = [this.#held ?? [], this.#sums ?? []];
    return this.#exchange(
      [
        ...seen.flatMap((step) => this.#parcels(-step.distance, this.#lentAt(step))),
        ...this.#parcels(-distance, held),
      ],
      [
        ...sent.flatMap(({ distance }) => this.#parcels(distance, this.#shared)),
        ...this.#parcels(distance, sums),
      ],
    );
  }

  get #step(): RingStep {
    return this.#steps[this.#at] as RingStep;
  }

  /** Among the rows that the owner shares. */
  get #seenRows(): Rows {
    const { keys, shared } = this.#step;
    return { start: keys.start - shared.start, length: keys.length };
  }

  #lentAt(step: RingStep): KeyValues {
    return this.#lent[this.#steps.indexOf(step)] as KeyValues;
  }

  #comingLike({ shape, dtype, device }: Tensor, { length }: Rows): Tensor {
    return borrowed(shape.with(1, length), { dtype, device });
  }

  /** To, or from, the rank so far ahead. */
  #parcels(ahead: number, tensors: readonly Tensor[]): Parcel[] {
    const { rank, size } = this.#communicator;
    return tensors.map((tensor) => ({ peer: (rank + ahead + size) % size, tensor }));
  }

  #exchange(sent: readonly Parcel[], received: readonly Parcel[]): Pending<void> {
    return this.#communicator.exchange(filled(sent), filled(received));
  }
}

function pair(from: KeyValues, make: (x: Tensor) => Tensor): KeyValues {
  return from.map(make) as readonly Tensor[] as KeyValues;
}

function inRowMajor(x: Tensor): Tensor {
  return x.isContiguous ? x : x.contiguous();
}
