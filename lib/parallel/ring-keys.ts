// Other ranks' keys on their way around a ring, and the gradients that are made of them.
import type { Communicator } from "./communicator.ts";
import { LentKeys } from "./lent-keys.ts";
import type { Pending } from "./pending.ts";
import type { KeyPlaces, KeyValues } from "./ring-exchange.ts";
import type { RingStep } from "./ring-plan.ts";
import { SentKeys } from "./sent-keys.ts";

/** Called for one step after the other: `begin`, then what the step's queries see of it, `end`. */
export interface RingKeys {
  /** What the step needs is there, and what the next one needs may be on its way. */
  begin(): void;
  /** The step's, of the rows that are seen. */
  keys(): KeyPlaces;
  /** Where their gradients belong, of float32: in the place of what is there, or added to it. */
  gradients(): { places: KeyPlaces; adds: boolean };
  end(): void;
  /** Behind the last step: the sums hold all gradients of this rank's keys, which are its own again. */
  finish(): Pending<void>;
}

/** `sums` are those of the gradients of this rank's shared keys, which the first step makes. */
export function ringKeys(
  communicator: Communicator,
  steps: readonly RingStep[],
  own: KeyValues,
  sums?: KeyValues,
): RingKeys {
  const Keys = communicator.sharesMemory ? LentKeys : SentKeys;
  return new Keys(communicator, steps, own, sums);
}
