// A rank among others over NCCL: how they meet, and how each hears of what becomes of the others.
import { Device, deviceOrDefault, handleOfDevice } from "../device.ts";
import { checkOptions, failure, type OptionNames, wrongKind } from "../errors.ts";
import { type Liveness, LivenessMember, LivenessRoot, type News } from "../launch/liveness.ts";
import { rankFromEnvironment } from "../launch/rank.ts";
import { addressOf, type ExchangeOptions, exchangeOptionNames, meet, place } from "../launch/rendezvous.ts";
import { type CommunicatorHandle, native } from "../native.ts";

const operation = "Communicator.nccl";

/** Where the ranks meet is as `exchange` has it: by default what `longseq launch` has set. */
export interface NcclOptions extends ExchangeOptions {
  /**
   * The GPU of this rank, another one for each. Default: the default device; where that is a GPU of several, and the rank
   * is the environment's, the one of its number on this host.
   */
  device?: Device;
  /** For all ranks to come, and how long a step may take once this rank's GPU has reached it. Default 600,000. */
  timeoutMs?: number;
  /**
   * Lets NCCL use NVLink multicast where there is any, as it decides itself. Without it, `NCCL_NVLS_ENABLE` is set to 0
   * unless it is set. What the first communicator of the process says counts.
   */
  multicast?: boolean;
}

const optionNames: OptionNames<NcclOptions> = {
  ...exchangeOptionNames,
  device: true,
  multicast: true,
};

/** What a communicator is made of. */
export interface NcclMember {
  readonly handle: CommunicatorHandle;
  readonly rank: number;
  readonly size: number;
  readonly device: Device;
  /** Before the communicator is closed. */
  leave(): void;
}

/** What each rank gives at the rendezvous. */
interface Card {
  /** Why it cannot take part. */
  problem?: string;
  /** Of rank 0. */
  id?: string;
  port?: number;
  secret?: string;
}

/** A failure of NCCL's, which is found by a thread of its own, is told to the others so soon. */
const lookMs = 200;

export async function meetOverNccl(options: NcclOptions): Promise<NcclMember> {
  checkOptions(operation, options, optionNames);
  const device = deviceOf(options);
  const { timeoutMs = 600_000, multicast = false } = options;
  if (typeof multicast !== "boolean") throw wrongKind(`${operation}: multicast`, "a boolean", multicast);
  const { rank, size } = place(operation, options);
  const host = size === 1 ? "" : addressOf(operation, options, rank).host;
  if (device.kind === "cpu") {
    throw failure(
      native.info().gpus === null ? "ERR_NO_CUDA" : "ERR_DEVICE",
      `${operation}: device is cpu, expected a GPU (Communicator.local joins CPUs of one process; ` +
        "processes on CPUs can exchange bytes by exchange())",
    );
  }
  const watch = new Watch(rank, size);
  const { card, problem } = await introduce(watch, host, multicast);
  const texts = await meet(operation, JSON.stringify(card), { ...options, rank, size, timeoutMs }).catch(
    (error: unknown) => {
      watch.fail("the ranks have not met");
      throw error;
    },
  );
  if (problem !== undefined) {
    watch.fail(`rank ${rank} cannot: ${messageOf(problem)}`);
    throw problem;
  }
  const cards = texts.map((text) => JSON.parse(String(text)) as Card);
  const unable = cards.findIndex((one) => one.problem !== undefined);
  if (unable >= 0) {
    const why = `rank ${unable} cannot: ${cards[unable]?.problem}`;
    watch.fail(why);
    throw failure("ERR_COMM", `${operation}: ${why}`);
  }
  const { id = "", port = 0, secret = "" } = cards[0] ?? {};
  watch.connect({ host, port }, Buffer.from(secret, "base64"));
  let handle: CommunicatorHandle;
  try {
    const bytes = Buffer.from(id, "base64");
    handle = native.communicatorNccl(handleOfDevice(device), bytes, rank, size, timeoutMs);
  } catch (error) {
    watch.fail(`rank ${rank} failed: ${messageOf(error)}`);
    throw error;
  }
  watch.begin(handle);
  const { signal } = options;
  const onAbort = () => native.communicatorEnd(handle, `rank ${rank} was interrupted`);
  signal?.addEventListener("abort", onAbort, { once: true });
  try {
    await native.communicatorSynchronize(handle);
  } catch (error) {
    watch.look();
    native.communicatorClose(handle);
    throw signal?.aborted ? signal.reason : error;
  } finally {
    signal?.removeEventListener("abort", onAbort);
  }
  return { handle, rank, size, device, leave: () => void watch.leave() };
}

/** What this rank can say of itself. What it cannot do is told to all, who would wait for it. */
async function introduce(
  watch: Watch,
  host: string,
  multicast: boolean,
): Promise<{ card: Card; problem?: unknown }> {
  try {
    if (multicast) native.ncclAllowMulticast();
    native.ncclLibrary();
    return { card: watch.rank === 0 ? await watch.listen(host) : {} };
  } catch (problem) {
    return { card: { problem: messageOf(problem) }, problem };
  }
}

function deviceOf({ device, rank }: NcclOptions): Device {
  if (device === undefined && rank === undefined && native.defaultDevice() === "cuda") {
    const { localRank } = rankFromEnvironment();
    // A launcher may also show each process its own GPU alone.
    if ((native.info().gpus?.length ?? 0) > 1) return new Device(`cuda:${localRank}`);
  }
  return deviceOrDefault(operation, device);
}

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** Ties what NCCL finds to what the ranks tell each other. */
class Watch implements News {
  readonly rank: number;
  readonly #size: number;
  #liveness: Liveness | undefined;
  #handle: CommunicatorHandle | undefined;
  #timer: NodeJS.Timeout | undefined;
  #isLeaving = false;
  /** What came before there was a communicator. */
  #earlyFailure: string | undefined;

  constructor(rank: number, size: number) {
    this.rank = rank;
    this.#size = size;
  }

  /** Of rank 0. */
  async listen(host: string): Promise<Card> {
    const id = Buffer.from(native.ncclId()).toString("base64");
    if (this.#size === 1) return { id };
    const root = new LivenessRoot(this.#size, this);
    this.#liveness = root;
    return { id, port: await root.listen(host), secret: root.secret.toString("base64") };
  }

  /** Of all others. */
  connect(address: { host: string; port: number }, secret: Uint8Array): void {
    if (this.rank !== 0) this.#liveness = new LivenessMember(this.rank, address, secret, this);
  }

  begin(handle: CommunicatorHandle): void {
    this.#handle = handle;
    if (this.#earlyFailure !== undefined) native.communicatorEnd(handle, this.#earlyFailure);
    this.#timer = setInterval(() => this.look(), lookMs).unref();
    if (open.size === 0) process.on("exit", leaveAll);
    open.add(this);
  }

  /** There is no communicator, nor will there be. */
  fail(why: string): void {
    this.#liveness?.fail(why);
  }

  onFailure(why: string): void {
    if (this.#handle === undefined) this.#earlyFailure = why;
    else native.communicatorEnd(this.#handle, why);
    this.#end();
  }

  onLeft(rank: number, steps: number): void {
    if (this.#handle !== undefined) native.communicatorLeft(this.#handle, rank, steps);
  }

  /** Tells the others what has failed here. */
  look(): void {
    if (this.#handle === undefined) return;
    const why = native.communicatorFailure(this.#handle);
    if (why === "") return;
    this.#liveness?.fail(why.replace(/^communicator: /, ""));
    this.#end();
  }

  /** Once all of its steps have ended, for others may still be waiting for these. */
  async leave(): Promise<void> {
    if (this.#handle === undefined || this.#isLeaving || !open.has(this)) return;
    this.#isLeaving = true;
    await native.communicatorSynchronize(this.#handle).catch(() => this.look());
    this.leaveAtOnce();
  }

  /** At the end of the process too: what is not done by then is done nowhere. */
  leaveAtOnce(): void {
    if (this.#handle === undefined || !open.has(this)) return;
    this.#end();
    this.#liveness?.leave(native.communicatorSteps(this.#handle));
  }

  #end(): void {
    clearInterval(this.#timer);
    open.delete(this);
    if (open.size === 0) process.off("exit", leaveAll);
  }
}

const open = new Set<Watch>();

// A process that ends well has left; of one that does not, the others see its connection close.
function leaveAll(code: number): void {
  if (code === 0) for (const watch of open) watch.leaveAtOnce();
}
