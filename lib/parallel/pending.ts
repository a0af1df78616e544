/** What is under way on a communicator's queue, beside what the device computes. */
export class Pending<T> {
  readonly #queueWait: () => void;
  readonly #result: T;
  #waited = false;

  /** @internal */
  constructor(queueWait: () => void, result: T) {
    this.#queueWait = queueWait;
    this.#result = result;
  }

  /**
   * Lets what is queued on the device from here on wait for it; returns at once. Until then, what was sent must not be
   * written to. Twice is harmless.
   *
   * @throws (from the next await on the device) `ERR_COMM` where a rank does not come in time, has failed or left, or
   * sends another size or dtype than is expected here.
   */
  wait(): T {
    if (!this.#waited) this.#queueWait();
    this.#waited = true;
    return this.#result;
  }

  /** @internal What is made of the result, without a wait: a view of it. */
  map<U>(view: (result: T) => U): Pending<U> {
    return new Pending(() => this.wait(), view(this.#result));
  }
}
