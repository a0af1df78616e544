import { failure, wrongKind } from "./errors.ts";
import { type DeviceHandle, type MarkHandle, native } from "./native.ts";

/** A point of a device's work: `device.mark()`. */
export interface Mark {
  /**
   * Resolves, once this point is reached, with the milliseconds that the device took from an earlier one of its own.
   *
   * @throws (as a rejection) the first error of the operations before it.
   */
  since(earlier: Mark): Promise<number>;
}

const markHandles = new WeakMap<Mark, { device: Device; handle: MarkHandle }>();

let shared: Device | undefined;
/** Also where `instanceof` would be deceived by a prototype. */
let isDevice: (value: unknown) => value is Device;
let handleOfDevice: (device: Device) => DeviceHandle;

/**
 * An in-order queue of operations. Every tensor belongs to one device; an operation is put on the queue of its inputs'
 * device and returns at once. Several devices may live in one process and in several worker threads.
 *
 * @example
 * const device = new Device("cpu");
 * const x = Tensor.zeros([2, 3], { device });
 * await device.synchronize();
 */
export class Device implements Disposable {
  /** "cpu", "cuda:0" */
  readonly name: string;
  /** What runs its operations. */
  readonly kind: "cpu" | "cuda";
  readonly #handle: DeviceHandle;

  static {
    isDevice = (value): value is Device => #handle in Object(value);
    handleOfDevice = (device) => device.#handle;
  }

  /**
   * @param name "cpu", "cuda" (the first GPU) or "cuda:N". Default: "cuda" where this build and this machine have a GPU,
   * else "cpu"; the environment's `LONGSEQ_DEVICE` goes before that.
   * @throws `ERR_DEVICE` for another name; `ERR_NO_CUDA` where this build or this machine has no such GPU; `ERR_OPTION`
   * where it is no string.
   */
  constructor(name = native.defaultDevice()) {
    if (typeof name !== "string") throw wrongKind("Device: name", "a string", name);
    this.#handle = native.deviceOpen(name);
    this.name = name;
    this.kind = name === "cpu" ? "cpu" : "cuda";
  }

  /**
   * The device of tensors that name none: one for each JavaScript thread, made when first needed, and again once it was
   * disposed.
   */
  static get default(): Device {
    shared ??= new Device();
    return shared;
  }

  /** What it is, for people: "AMD EPYC, avx512bf16, 2 threads", "NVIDIA H100 80GB HBM3 (cuda:0)". */
  get description(): string {
    const { cpu, gpus } = native.info();
    if (this.kind === "cuda") {
      const ordinal = Number(this.name.split(":")[1] ?? 0);
      return `${gpus?.[ordinal]?.name} (cuda:${ordinal})`;
    }
    return `${cpu.model}, ${cpu.instructionSet}, ${cpu.threads} ${cpu.threads === 1 ? "thread" : "threads"}`;
  }

  /**
   * Resolves once everything queued so far has run.
   *
   * @throws (as a rejection) the first error of those operations: `ERR_OUT_OF_MEMORY` where one found no scratch.
   * @example
   * const q = Tensor.normal([1, 1024, 8, 64]);
   * const start = performance.now();
   * attention(q, q, q);
   * await q.device.synchronize();
   * console.log(performance.now() - start, "ms");
   */
  async synchronize(): Promise<void> {
    await native.deviceSynchronize(this.#handle);
  }

  /**
   * What tensors and operations' scratch hold now and the most they held since `resetPeak`, in bytes, as allocated: a
   * block is a little larger than what was asked for. A tensor takes its memory when the queue comes to it. `tensors` counts
   * live storages; views share one.
   *
   * @example
   * using device = new Device("cpu");
   * using x = Tensor.zeros([256, 256], { device });
   * device.memory().tensors; // 1
   * await device.synchronize();
   * device.memory().liveBytes >= x.bytes; // true
   */
  memory(): { liveBytes: number; peakBytes: number; tensors: number } {
    return native.deviceMemory(this.#handle);
  }

  /**
   * Marks this point of the queue, to time what is between two of them: on a GPU by its own clock.
   *
   * @example
   * const q = Tensor.normal([1, 1024, 8, 64]);
   * const start = q.device.mark();
   * attention(q, q, q);
   * console.log(await q.device.mark().since(start), "ms");
   */
  mark(): Mark {
    const own = { device: this, handle: native.deviceMark(this.#handle) };
    const mark: Mark = {
      since: async (earlier) => {
        const other = markHandles.get(earlier);
        if (other === undefined) throw wrongKind("Mark.since: earlier", "a Mark", earlier);
        if (other.device !== this) throw failure("ERR_DEVICE", "Mark.since: earlier is of another device");
        return native.markSince(this.#handle, own.handle, other.handle);
      },
    };
    markHandles.set(mark, own);
    return mark;
  }

  /**
   * Makes `memory().peakBytes` what is held now.
   *
   * @example
   * const { device } = Tensor.zeros([256, 256]);
   * await device.synchronize();
   * device.resetPeak();
   * device.memory().peakBytes === device.memory().liveBytes; // true
   */
  resetPeak(): void {
    native.deviceResetPeak(this.#handle);
  }

  /**
   * Refuses further work with `ERR_DISPOSED`, reading included; what is queued still runs, and tensors' memory stays
   * until they are disposed. Twice is harmless.
   */
  dispose(): void {
    native.deviceClose(this.#handle);
    if (shared === this) shared = undefined;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** The device that an option names, or the default one. */
export function deviceOrDefault(what: string, device: Device | undefined): Device {
  if (device === undefined) return Device.default;
  if (!isDevice(device)) throw wrongKind(`${what}: device`, "a Device", device);
  return device;
}

export { handleOfDevice };
