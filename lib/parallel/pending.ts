/** What is to be done around each wait. A wait may be made of others. */
export interface WaitWatcher {
  before(): void;
  after(): void;
}

let watcher: WaitWatcher | undefined;

/** Runs `work`, which returns before anything else runs on this thread, with a watcher of its waits: to time them. */
export function watchWaits<T>(watching: WaitWatcher, work: () => T): T {
  const outer = watcher;
  watcher = watching;
  try {
    return work();
  } finally {
    watcher = outer;
  }
}

/** What is under way on a communicator's queue, beside what the device computes. */
export class Pending<T> {
  #wait: (() => T) | undefined;
  #result: T | undefined;

  /** @internal `wait` queues the wait and gives the result; it is called once. */
  constructor(wait: () => T) {
    this.#wait = wait;
  }

  /**
   * Lets what is queued on the device from here on wait for it; returns at once. Until then, what was sent must not be
   * written to. Twice is harmless.
   *
   * @throws (from the next await on the device) `ERR_COMM` where a rank does not come in time, has failed or left, or
   * sends another size or dtype than is expected here.
   */
  wait(): T {
    if (this.#wait !== undefined) {
      watcher?.before();
      this.#result = this.#wait();
      watcher?.after();
    }
    this.#wait = undefined;
    return this.#result as T;
  }

  /** @internal With what is made of the result right after the wait. */
  map<U>(make: (result: T) => U): Pending<U> {
    return new Pending(() => make(this.wait()));
  }
}
