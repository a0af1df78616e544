import type { Tensor } from "../tensor.ts";

/** Runs `queue`; when it refuses, the results that were made for it are let go. */
export function queued<T>(results: readonly Tensor[], queue: () => T): T {
  try {
    return queue();
  } catch (error) {
    for (const tensor of results) tensor.dispose();
    throw error;
  }
}
