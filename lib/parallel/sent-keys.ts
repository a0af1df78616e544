// A ring whose ranks are apart: keys go from their owner to whoever sees them, their gradients back to it in float32,
// both beside the step before or behind, and are summed there in the order of the steps.
import { handleOf, Tensor } from "../tensor.ts";
import { asContiguous } from "../view.ts";
import type { Communicator } from "./communicator.ts";
import { addInto } from "./key-values.ts";
import { Pending } from "./pending.ts";
import { release } from "./portions.ts";
import { type KeyPlaces, type KeyValues, pair, RingExchange, rowsOf } from "./ring-exchange.ts";
import type { RingKeys } from "./ring-keys.ts";
import type { RingStep } from "./ring-plan.ts";

/** What came back for the keys that were sent for a step. */
interface Terms {
  of: RingStep;
  values: KeyValues;
}

export class SentKeys implements RingKeys {
  readonly #communicator: Communicator;
  readonly #steps: readonly RingStep[];
  readonly #own: KeyValues;
  readonly #sums: KeyValues | undefined;
  #at = -1;
  #held: KeyValues;
  #next: KeyValues | undefined;
  /** Gradients of the step's keys. Where none are seen, none came: they stand for their gradients. */
  #made: KeyValues | undefined;
  #terms: Terms | undefined;
  #arriving: Pending<void> | undefined;

  constructor(
    communicator: Communicator,
    steps: readonly RingStep[],
    own: KeyValues,
    sums: KeyValues | undefined,
  ) {
    this.#communicator = communicator;
    this.#steps = steps;
    this.#own = sentOften(own, steps);
    this.#held = this.#own;
    this.#sums = sums;
  }

  begin(): void {
    const before = this.#steps[this.#at];
    this.#at++;
    const following = this.#steps[this.#at + 1];
    const exchange = new RingExchange(this.#communicator);
    this.#next = following && exchange.keys(this.#own, following);
    this.#terms = before && this.#sendBack(exchange, before);
    this.#arriving = this.#next || this.#terms ? exchange.start() : undefined;
    if (this.#made) release(this.#made);
    this.#made = this.#sums && this.#at > 0 ? this.#held : undefined;
  }

  keys(): KeyPlaces {
    return pair(this.#held, handleOfKeys);
  }

  gradients(): { places: KeyPlaces; adds: boolean } {
    this.#made = pair(this.#held, ({ shape, device }) => Tensor.empty(shape, { device }));
    return { places: pair(this.#made, handleOfKeys), adds: false };
  }

  end(): void {
    if (this.#held !== this.#own && this.#held !== this.#made) release(this.#held);
    this.#arriving?.wait();
    this.#add();
    this.#held = this.#next ?? this.#own;
  }

  finish(): Pending<void> {
    const exchange = new RingExchange(this.#communicator);
    this.#terms = this.#sendBack(exchange, this.#steps[this.#at] as RingStep);
    if (this.#terms === undefined) return new Pending(() => undefined);
    const moved = exchange.start();
    if (this.#made) release(this.#made);
    return moved.map(() => this.#add());
  }

  #sendBack(exchange: RingExchange, of: RingStep): Terms | undefined {
    return this.#made && { of, values: exchange.gradients(this.#made, of) };
  }

  #add(): void {
    if (this.#terms === undefined) return;
    const { of, values } = this.#terms;
    const shared = (this.#steps[0] as RingStep).shared;
    for (const [i, term] of values.entries()) {
      if (of.sent.length > 0) {
        const sum = (this.#sums as KeyValues)[i as 0 | 1];
        addInto(rowsOf(sum, { start: of.sent.start - shared.start, length: of.sent.length }), term);
      }
      term.dispose();
    }
  }
}

/** In row-major order, as they are sent: one copy where there are several steps to send them at. */
function sentOften(own: KeyValues, steps: readonly RingStep[]): KeyValues {
  return steps.length <= 2 ? own : pair(own, asContiguous);
}

const handleOfKeys = (x: Tensor) => handleOf(x, "keys");
