// Ranks of one thread that wait for each other, since one of them was awaited before the others were called: told of long
// before the timeout ends them.

/** How many steps each rank of a group has queued. Where some stay behind for long, it says so, once. */
export class LocalWatch {
  readonly #steps: number[];
  readonly #patienceMs: number;
  #timer: NodeJS.Timeout | undefined;
  #isOver = false;

  constructor(size: number, patienceMs = 10_000) {
    this.#steps = new Array<number>(size).fill(0);
    this.#patienceMs = patienceMs;
  }

  note(rank: number): void {
    this.#steps[rank] = (this.#steps[rank] ?? 0) + 1;
    if (this.#timer === undefined && !this.#isOver) this.#lookLater();
  }

  /** A rank has left: the others hear of that. */
  end(): void {
    this.#isOver = true;
    clearTimeout(this.#timer);
  }

  #lookLater(): void {
    const before = this.#steps.join();
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      const most = Math.max(...this.#steps);
      const behind = this.#steps.flatMap((steps, rank) => (steps < most ? [rank] : []));
      if (behind.length === 0) return;
      if (this.#steps.join() === before) this.#say(behind);
      else this.#lookLater();
    }, this.#patienceMs).unref();
  }

  #say(behind: readonly number[]): void {
    this.#isOver = true;
    const who = behind.length === 1 ? `rank ${behind[0]} has` : `ranks ${behind.join(", ")} have`;
    process.emitWarning(
      `Communicator.local: ${who} made fewer calls than others, which wait: call all ranks before anything of one is awaited`,
      { code: "RANKS_WAIT" },
    );
  }
}
