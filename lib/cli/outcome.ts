// What became of each process's part of something that all do together.
import { RemoteFailure } from "./output.ts";

/** Its value, or its error. */
export interface Outcome<T> {
  readonly value?: T;
  readonly error?: { readonly code?: string; readonly message: string };
}

export function failed(error: unknown): Outcome<never> {
  const { code } = error as { code?: unknown };
  const message = error instanceof Error ? error.message : String(error);
  return { error: typeof code === "string" ? { code, message } : { message } };
}

/**
 * What this rank rejects with where one has failed: its own error where that says most, else the words of the rank whose
 * error does. Undefined where none has failed; one that has no outcome yet has not.
 */
export function failureAmong(
  outcomes: readonly (Outcome<unknown> | null)[],
  rank: number,
  own: unknown,
): { readonly error: unknown } | undefined {
  const at = mostTelling(outcomes);
  if (at === undefined) return undefined;
  if (at === rank) return { error: own };
  const { code, message = "" } = outcomes[at]?.error ?? {};
  return { error: new RemoteFailure(`rank ${at}: ${message}`, code, rank > 0) };
}

/** The ranks of one that has failed hear that it left: that says least. Having no memory says what to do about it. */
function mostTelling(outcomes: readonly (Outcome<unknown> | null)[]): number | undefined {
  const of = (isMeant: (code: string | undefined) => boolean) => {
    const at = outcomes.findIndex((outcome) => outcome?.error !== undefined && isMeant(outcome.error.code));
    return at < 0 ? undefined : at;
  };
  return of((code) => code === "ERR_OUT_OF_MEMORY") ?? of((code) => code !== "ERR_COMM") ?? of(() => true);
}
