import { wrongKind } from "./errors.ts";
import { type DeviceHandle, native } from "./native.ts";

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
  readonly kind: "cpu" | "cuda";
  readonly #handle: DeviceHandle;

  static {
    isDevice = (value): value is Device => #handle in Object(value);
    handleOfDevice = (device) => device.#handle;
  }

  /**
   * @param name "cpu", "cuda" (the first GPU) or "cuda:N".
   * @throws `ERR_DEVICE` for another name; `ERR_NO_CUDA` where this build or this machine has no such GPU.
   */
  constructor(name = "cpu") {
    if (typeof name !== "string") throw wrongKind("Device: name", "a string", name);
    this.#handle = native.deviceOpen(name);
    this.name = name;
    this.kind = name === "cpu" ? "cpu" : "cuda";
  }

  /** The device of tensors that name none: one for each JavaScript thread, made when first needed. */
  static get default(): Device {
    shared ??= new Device();
    return shared;
  }

  /** What it is, for people: "AMD EPYC, avx512bf16, 2 threads". */
  get description(): string {
    const { cpu } = native.info();
    return `${cpu.model}, ${cpu.instructionSet}, ${cpu.threads} ${cpu.threads === 1 ? "thread" : "threads"}`;
  }

  /** Resolves once everything queued so far has run; rejects with the first error of those operations. */
  async synchronize(): Promise<void> {
    await native.deviceSynchronize(this.#handle);
  }

  /** Bytes that tensors and operations' scratch hold now, the most they held since `resetPeak`, and live storages. */
  memory(): { liveBytes: number; peakBytes: number; tensors: number } {
    return native.deviceMemory(this.#handle);
  }

  resetPeak(): void {
    native.deviceResetPeak(this.#handle);
  }

  /** Refuses further work; what is queued still runs, and tensors' memory stays until they are disposed. */
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
