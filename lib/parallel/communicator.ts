import { type Device, deviceOrDefault, handleOfDevice } from "../device.ts";
import { wrongKind } from "../errors.ts";
import { native } from "../native.ts";
import { noteWrite, type Tensor } from "../tensor.ts";
import { allGather, allReduce, allToAll, fromRoot, reduceScatter, type SumOptions } from "./collectives.ts";
import { checkParcels, Link, type Parcel } from "./link.ts";
import { joinLocal, type LocalOptions, type LocalPlace, timeoutOf } from "./local.ts";
import { LocalWatch } from "./local-watch.ts";
import { meetOverNccl, type NcclOptions } from "./nccl.ts";
import type { Pending } from "./pending.ts";

/**
 * A rank's place in a group of ranks, a rank being a device. On every rank of the group the same calls are made in the
 * same order; each is queued and returns at once. It runs on a queue of the communicator's own, behind what was queued
 * on the device before the call: `Pending.wait` puts the device behind it. Sums are made in float32 and in the order
 * of the ranks, so they have the same bits on each of them and in every run.
 *
 * Rows are along the first axis. No tape notes any of it: what a `Strategy` does is differentiable. What cannot be is
 * refused at the call: `ERR_SHAPE`, `ERR_DTYPE`, `ERR_OPTION`, `ERR_DEVICE` for a tensor of another device,
 * `ERR_DISPOSED`, `ERR_OUT_OF_MEMORY`. What only the others' calls show ends the group: `ERR_COMM`, from the next await on
 * each device; so does `dispose` on a rank, as in a `finally` where a rank's work may throw.
 *
 * @example
 * const devices = [new Device("cpu"), new Device("cpu")];
 * const sums = Communicator.local(devices).map((communicator) => {
 *   const x = Tensor.from([communicator.rank + 1, 10], [2], { device: communicator.device });
 *   return communicator.allReduce(x).wait();
 * });
 * await sums[0]?.data(); // [3, 20]
 */
export class Communicator implements Disposable {
  readonly rank: number;
  readonly size: number;
  readonly device: Device;
  readonly #link: Link;
  readonly #leave: (() => void) | undefined;

  private constructor(link: Link, leave?: () => void) {
    this.#link = link;
    this.#leave = leave;
    this.rank = link.rank;
    this.size = link.size;
    this.device = link.device;
  }

  /**
   * The ranks of one process and one JavaScript thread: a communicator for each device, in order. Several devices may
   * be queues of one GPU, or of the CPU. Make a call on all ranks before awaiting what it gives on any: else that waits
   * for ranks that cannot come (which a warning says after some seconds), until the timeout ends the group.
   *
   * @throws `ERR_OPTION` where there are none; `ERR_DEVICE` where one is named twice, or they are not of one kind.
   * @example
   * const ranks = Communicator.local([new Device("cpu"), new Device("cpu"), new Device("cpu")]);
   * ranks.map(({ rank, size }) => [rank, size]); // [[0, 3], [1, 3], [2, 3]]
   */
  static local(devices: readonly Device[], options: LocalOptions = {}): Communicator[] {
    if (!Array.isArray(devices))
      throw wrongKind("Communicator.local: devices", "an array of Devices", devices);
    const given = devices.map((device) => deviceOrDefault("Communicator.local", device));
    const handles = native.communicatorsLocal(given.map(handleOfDevice), timeoutOf(options));
    const watch = new LocalWatch(handles.length);
    return handles.map((handle, rank) => {
      return new Communicator(new Link(handle, rank, given.length, given[rank] as Device, watch));
    });
  }

  /**
   * A rank of this process whose others are in other threads (workers): all name the same group.
   *
   * @throws `ERR_OPTION` where the rank is taken, or the others gave another size.
   * @example
   * using alone = Communicator.join({ name: "example", rank: 0, size: 1, device: new Device("cpu") });
   * await alone.allReduce(Tensor.from([5], [1], { device: alone.device })).wait().data(); // [5]
   */
  static join(place: LocalPlace): Communicator {
    const { handle, device } = joinLocal(place);
    return new Communicator(new Link(handle, place.rank, place.size, device));
  }

  /**
   * A rank whose others are in other processes, or in this one: over NCCL, each with a GPU of its own. Which rank, how
   * many and where they meet is by default what `longseq launch` or another launcher says. Resolves once all have come.
   *
   * All of them end with `ERR_COMM`, from the next await on each device, where a rank dies, fails or leaves, or where a
   * step takes longer than `timeoutMs`; groups end with the communicator that they are made of. Sizes that do not match
   * are not found by NCCL: such a step ends late, or with wrong values.
   *
   * @throws (as a rejection) `ERR_COMM` where ranks do not come in time, by their numbers; `ERR_NO_NCCL` without NCCL
   * 2.14 or later, `ERR_NO_CUDA` and `ERR_DEVICE` without a GPU; `ERR_OPTION`, also for what the environment lacks.
   * @example
   * const device = new Device();
   * if (device.kind === "cuda") {
   *   using alone = await Communicator.nccl({ device, rank: 0, size: 1 });
   *   await alone.allReduce(Tensor.from([5], [1], { device })).wait().data(); // [5]
   * }
   */
  static async nccl(options: NcclOptions = {}): Promise<Communicator> {
    const { handle, rank, size, device, leave } = await meetOverNccl(options);
    return new Communicator(new Link(handle, rank, size, device), leave);
  }

  /**
   * The group of some of the ranks, in the order in which they are named: each of them calls this with the same ranks.
   *
   * @throws `ERR_OPTION` where this rank is not among them, or one is named twice or is none.
   * @example
   * const ranks = Communicator.local([1, 2, 3, 4].map(() => new Device("cpu")));
   * const pairs = ranks.map((all) => all.group(all.rank < 2 ? [0, 1] : [2, 3]));
   * pairs.map(({ rank, size }) => [rank, size]); // [[0, 2], [1, 2], [0, 2], [1, 2]]
   */
  group(ranks: readonly number[]): Communicator {
    if (!Array.isArray(ranks) || !ranks.every(Number.isSafeInteger))
      throw wrongKind("group: ranks", "an array of integers", ranks);
    const handle = native.communicatorGroup(this.#link.handle, ranks);
    return new Communicator(new Link(handle, ranks.indexOf(this.rank), ranks.length, this.device));
  }

  /**
   * The step that all others are made of. What a rank sends to another is received there in the same order, of the same
   * dtype and number of elements. Every rank comes to it, also with nothing.
   *
   * @example
   * const received = Communicator.local([new Device("cpu"), new Device("cpu")]).map((all) => {
   *   const [mine, theirs] = [all.rank, 0].map((n) => Tensor.from([n], [1], { device: all.device })) as [Tensor, Tensor];
   *   const peer = 1 - all.rank;
   *   all.exchange([{ peer, tensor: mine }], [{ peer, tensor: theirs }]).wait();
   *   return theirs;
   * });
   * await received[0]?.data(); // [1]
   */
  exchange(send: readonly Parcel[], receive: readonly Parcel[]): Pending<void> {
    checkParcels("send", send);
    checkParcels("receive", receive);
    return this.#link.start(() => {
      this.#link.exchange(send, receive);
      for (const { tensor } of receive) noteWrite(tensor);
    }, undefined);
  }

  /** @internal As `exchange`, but notes no write: what comes back was only read, or has never been on a tape. */
  lend(send: readonly Parcel[], receive: readonly Parcel[]): Pending<void> {
    return this.#link.start(() => this.#link.exchange(send, receive), undefined);
  }

  /**
   * All ranks' rows, one behind the other.
   *
   * @param x [n, ..], n this rank's count.
   * @param counts the ranks' numbers of rows, where they differ.
   * @returns [sum of counts, ..].
   * @example
   * const all = Communicator.local([new Device("cpu"), new Device("cpu")]).map((ranks) =>
   *   ranks.allGather(Tensor.zeros([ranks.rank + 1, 8], { device: ranks.device }), [1, 2]).wait());
   * all[0]?.shape; // [3, 8]
   */
  allGather(x: Tensor, counts?: readonly number[]): Pending<Tensor> {
    return allGather(this.#link, x, counts);
  }

  /**
   * This rank's rows of the sum over all ranks.
   *
   * @param x [sum of counts, ..] in float32, bfloat16 or float16.
   * @param counts as in `allGather`; default: equal ones.
   * @param options outDtype: "float32" leaves the sum unrounded.
   * @returns [this rank's count, ..] of x's dtype.
   * @example
   * const parts = Communicator.local([new Device("cpu"), new Device("cpu")]).map((ranks) =>
   *   ranks.reduceScatter(Tensor.from([1, 2], [2], { device: ranks.device })).wait());
   * await parts[1]?.data(); // [4]
   */
  reduceScatter(x: Tensor, counts?: readonly number[], options: SumOptions = {}): Pending<Tensor> {
    return reduceScatter(this.#link, x, counts, options);
  }

  /**
   * The sum over all ranks, on each of them.
   *
   * @param x of any shape, float32, bfloat16 or float16.
   * @example
   * const sums = Communicator.local([new Device("cpu"), new Device("cpu")]).map((ranks) =>
   *   ranks.allReduce(Tensor.from([0.5], [], { device: ranks.device })).wait());
   * await sums[1]?.data(); // [1]
   */
  allReduce(x: Tensor, options: SumOptions = {}): Pending<Tensor> {
    return allReduce(this.#link, x, options);
  }

  /**
   * Rows from every rank to every rank: of x's rows, in order, as many to each rank as `sendCounts` says.
   *
   * @param x [sum of sendCounts, ..].
   * @param sendCounts the numbers of rows that go to each rank.
   * @param receiveCounts those that come from each; default: sendCounts.
   * @returns [sum of receiveCounts, ..], in the order of the ranks.
   * @example
   * const parts = Communicator.local([new Device("cpu"), new Device("cpu")]).map((ranks) =>
   *   ranks.allToAll(Tensor.from([ranks.rank, ranks.rank + 10], [2], { device: ranks.device }), [1, 1]).wait());
   * await parts[1]?.data(); // [10, 11]
   */
  allToAll(x: Tensor, sendCounts: readonly number[], receiveCounts = sendCounts): Pending<Tensor> {
    return allToAll(this.#link, x, sendCounts, receiveCounts);
  }

  /**
   * One rank's values to all others.
   *
   * @param x contiguous: what `root` sends, and where the others receive it.
   * @example
   * const all = Communicator.local([new Device("cpu"), new Device("cpu")]).map((ranks) => {
   *   const x = Tensor.from([ranks.rank + 7], [1], { device: ranks.device });
   *   ranks.broadcast(x, 1).wait();
   *   return x;
   * });
   * await all[0]?.data(); // [8]
   */
  broadcast(x: Tensor, root: number): Pending<void> {
    return fromRoot(this.#link, x, root);
  }

  /**
   * Passed once all ranks have come to it.
   * @example
   * using alone = Communicator.join({ name: "barrier", rank: 0, size: 1, device: new Device("cpu") });
   * alone.barrier().wait();
   * await alone.device.synchronize();
   */
  barrier(): Pending<void> {
    return this.#link.start(() => native.communicatorBarrier(this.#link.handle), undefined);
  }

  /** @internal All ranks are queues of one memory: what is received as `borrowed` is the sender's tensor itself. */
  get sharesMemory(): boolean {
    return native.communicatorSharesMemory(this.#link.handle);
  }

  /**
   * Refuses further calls. What is queued still runs; then this rank has left, and whoever waits for it gets `ERR_COMM`.
   * Twice is harmless.
   */
  dispose(): void {
    this.#leave?.();
    this.#link.watch?.end();
    native.communicatorClose(this.#link.handle);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
