import { AsyncLocalStorage } from "node:async_hooks";
import type { Tensor } from "./tensor.ts";

/** Follows each chain of awaits, so that functions that run in turns do not adopt each other's tensors. */
const storage = new AsyncLocalStorage<Scope>();

/**
 * Owns the tensors made in it and disposes them at its end. `Scope.run` is the usual way, for a function that may be
 * async; `using scope = new Scope()` does the same for a block.
 *
 * @example
 * const out = await Scope.run(async () => {
 *   const q = Tensor.normal([1, 128, 4, 64]);
 *   const scores = attention(q, q, q, { causal: true });
 *   return scores; // kept, q is disposed
 * });
 */
export class Scope implements Disposable {
  readonly #outer: Scope | undefined;
  readonly #owned = new Set<Tensor>();
  #open = true;

  constructor() {
    this.#outer = Scope.current;
    storage.enterWith(this);
  }

  /** The innermost scope that is open here. */
  static get current(): Scope | undefined {
    let scope = storage.getStore();
    while (scope !== undefined && !scope.#open) scope = scope.#outer;
    return scope;
  }

  /** Runs `work` in a scope of its own. The tensors that it returns, also in arrays and plain objects, are kept. */
  static run<T>(work: (scope: Scope) => T): T {
    const outside = storage.getStore();
    const scope = new Scope();
    // `run` is what keeps the scope from the caller, who goes on while an async `work` waits.
    storage.enterWith(outside as Scope);
    let result: T;
    try {
      result = storage.run(scope, work, scope);
    } catch (error) {
      scope.dispose();
      throw error;
    }
    if (!(result instanceof Promise)) {
      scope.#release(result);
      return result;
    }
    return result.then(
      (value) => {
        scope.#release(value);
        return value;
      },
      (error: unknown) => {
        scope.dispose();
        throw error;
      },
    ) as T;
  }

  /** Hands `tensor` to the scope around this one (or to nobody), so that it outlives this one. */
  keep<T extends Tensor>(tensor: T): T {
    if (this.#owned.delete(tensor)) this.#outer?.adopt(tensor);
    return tensor;
  }

  /** Makes this scope the owner of a tensor. */
  adopt<T extends Tensor>(tensor: T): T {
    if (this.#open) this.#owned.add(tensor);
    else this.#outer?.adopt(tensor);
    return tensor;
  }

  /** Nobody owns the tensor then: it lives until it is disposed. */
  disown(tensor: Tensor): void {
    this.#owned.delete(tensor);
  }

  /** Disposes what the scope owns. What is made later goes to the scope around it. */
  dispose(): void {
    if (!this.#open) return;
    this.#open = false;
    for (const tensor of this.#owned) tensor.dispose();
    this.#owned.clear();
    if (storage.getStore() === this) storage.enterWith(this.#outer as Scope);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #release(result: unknown): void {
    for (const tensor of this.#owned) {
      if (holds(result, tensor)) this.keep(tensor);
    }
    this.dispose();
  }
}

/** Whether `tensor` is the value, or in it: in arrays and plain objects, at any depth. */
function holds(value: unknown, tensor: Tensor): boolean {
  if (value === tensor) return true;
  if (typeof value !== "object" || value === null) return false;
  const prototype = Object.getPrototypeOf(value) as unknown;
  if (!Array.isArray(value) && prototype !== Object.prototype && prototype !== null) return false;
  return Object.values(value).some((inner) => holds(inner, tensor));
}
