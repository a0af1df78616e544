import { AsyncLocalStorage } from "node:async_hooks";
import { wrongKind } from "./errors.ts";
import { handleOf, Tensor } from "./tensor.ts";

/** Follows each chain of awaits, so that functions that run in turns do not adopt each other's tensors. */
const storage = new AsyncLocalStorage<Scope>();

/**
 * Owns the tensors made in it and disposes them at its end. `Scope.run` is the usual way, for a function that may be
 * async; `using scope = new Scope()` does the same for a block. Functions that run in turns, as several ranks in one
 * thread do, use `Scope.run`: a block's scope in an async function is also its caller's until the block ends.
 *
 * @example
 * {
 *   using scope = new Scope();
 *   const q = Tensor.normal([1, 128, 4, 64]);
 *   console.log(await attention(q, q, q, { causal: true }).data());
 * } // both tensors are disposed
 */
export class Scope implements Disposable {
  readonly #outer: Scope | undefined;
  readonly #owned = new Set<Tensor>();
  #open = true;

  /** Opens a scope, the innermost one from here on. */
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

  /**
   * Runs `work` in a scope of its own. The tensors that it returns, also within arrays, maps, sets and objects such as a
   * `GPT`, are kept: they belong to the scope around. What an object has in private fields is not seen.
   *
   * @param work may be async: the scope then ends when its promise settles.
   * @returns what `work` returns.
   * @throws what `work` throws; its tensors are disposed first. `ERR_OPTION` where it is no function.
   * @example
   * const out = await Scope.run(async () => {
   *   const q = Tensor.normal([1, 128, 4, 64]);
   *   const scores = attention(q, q, q, { causal: true });
   *   await scores.device.synchronize();
   *   return scores; // kept, q is disposed
   * });
   * out.disposed; // false
   */
  static run<T>(work: (scope: Scope) => T): T {
    if (typeof work !== "function") throw wrongKind("Scope.run: work", "a function", work);
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

  /**
   * Hands `tensor` to the scope around this one (or to nobody), so that it outlives this one.
   *
   * @returns the tensor.
   * @example
   * const total: Tensor[] = [];
   * Scope.run((scope) => total.push(scope.keep(Tensor.zeros([8]))));
   * total[0]?.disposed; // false
   */
  keep<T extends Tensor>(tensor: T): T {
    if (this.#owned.delete(tensor)) Scope.#own(this.#outer, tensor);
    return tensor;
  }

  /**
   * Makes this scope the owner of a tensor, or the one around it where this one has ended. The scope it was made in
   * stays its owner too: `disown` it there.
   *
   * @returns the tensor.
   * @throws `ERR_OPTION` for what is no Tensor; `ERR_DISPOSED`.
   * @example
   * const x = Tensor.zeros([8]); // outside any scope
   * Scope.run((scope) => void scope.adopt(x));
   * x.disposed; // true
   */
  adopt<T extends Tensor>(tensor: T): T {
    handleOf(tensor, "Scope.adopt: tensor");
    Scope.#own(this, tensor);
    return tensor;
  }

  /**
   * Nobody owns the tensor then: it lives until it is disposed.
   *
   * @example
   * const x = Scope.run((scope) => {
   *   const made = Tensor.zeros([8]);
   *   scope.disown(made);
   *   return () => made;
   * })();
   * x.disposed; // false
   */
  disown(tensor: Tensor): void {
    this.#owned.delete(tensor);
  }

  /** @internal Whether the tensor is disposed when this scope is. */
  owns(tensor: Tensor): boolean {
    return this.#owned.has(tensor);
  }

  /** Disposes what the scope owns. What is made later goes to the scope around it. Twice is harmless. */
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

  /** The scope's, or that of the first one around it that is open. */
  static #own(scope: Scope | undefined, tensor: Tensor): void {
    let owner = scope;
    while (owner !== undefined && !owner.#open) owner = owner.#outer;
    if (owner !== undefined) owner.#owned.add(tensor);
  }

  #release(result: unknown): void {
    try {
      for (const tensor of tensorsIn(result, this.#owned)) this.keep(tensor);
    } finally {
      this.dispose();
    }
  }
}

/** Those of `tensors` that are the value, or in it, at any depth. */
function tensorsIn(value: unknown, tensors: ReadonlySet<Tensor>): Set<Tensor> {
  const found = new Set<Tensor>();
  const seen = new Set<unknown>();
  const open = tensors.size === 0 ? [] : [value];
  while (open.length > 0) {
    const next = open.pop();
    if (typeof next !== "object" || next === null || seen.has(next) || ArrayBuffer.isView(next)) continue;
    seen.add(next);
    if (next instanceof Tensor) {
      if (tensors.has(next)) found.add(next);
    } else {
      for (const inner of valuesIn(next)) if (typeof inner === "object") open.push(inner);
    }
  }
  return found;
}

function valuesIn(value: object): Iterable<unknown> {
  if (value instanceof Map) return [...value.keys(), ...value.values()];
  return value instanceof Set ? value : (Object.values(value) as unknown[]);
}
