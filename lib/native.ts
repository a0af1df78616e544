// Finds the addon, and says in types what cuda/addon exports (test/mirror.test.ts holds the two together).
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { isMainThread } from "node:worker_threads";
import { failure } from "./errors.ts";
import type { Gpu, NcclLibrary } from "./info.ts";
import type { NativeOperations } from "./native-operations.ts";

declare const brand: unique symbol;
interface Handle<Name extends string> {
  readonly [brand]: Name;
}
export type DeviceHandle = Handle<"device">;
export type TensorHandle = Handle<"tensor">;
/** A tensor, or for the one call the elements [start, end) of an axis. */
export type TensorPlace =
  | TensorHandle
  | readonly [whole: TensorHandle, axis: number, start: number, end: number];
export type MaskHandle = Handle<"mask">;
export type MarkHandle = Handle<"mark">;
export type CommunicatorHandle = Handle<"communicator">;
export type FenceHandle = Handle<"fence">;
export type QueryGradientHandle = Handle<"query gradient">;
type MaskBuilderHandle = Handle<"mask builder">;

export interface NativeInfo {
  cpu: { model: string; instructionSet: string; threads: number; threadsFrom: string; memoryLimit: number };
  /** Null where the binary holds no CUDA engine. */
  gpus: Gpu[] | null;
  compiler: string;
}

interface NativeMaskInfo {
  queries: number;
  keys: number;
  kind: "intervals" | "blocks";
  bytes: number;
  /** Pairs. */
  visible: number;
}

export interface Native extends NativeOperations {
  info(): NativeInfo;
  /** The process is about to end: threads of this module stop when it does. */
  endProcess(): void;

  defaultDevice(): string;
  deviceOpen(name: string): DeviceHandle;
  deviceClose(device: DeviceHandle): void;
  deviceSynchronize(device: DeviceHandle): Promise<void>;
  deviceMemory(device: DeviceHandle): { liveBytes: number; peakBytes: number; tensors: number };
  deviceResetPeak(device: DeviceHandle): void;
  deviceMark(device: DeviceHandle): MarkHandle;
  markSince(device: DeviceHandle, mark: MarkHandle, earlier: MarkHandle): Promise<number>;

  tensorEmpty(device: DeviceHandle, dtype: number, shape: readonly number[]): TensorHandle;
  /** Of memory that another rank lends it in an exchange. */
  tensorBorrowed(device: DeviceHandle, dtype: number, shape: readonly number[]): TensorHandle;
  tensorTransfer(tensor: TensorHandle, device: DeviceHandle): TensorHandle;
  tensorView(
    tensor: TensorHandle,
    offset: number,
    shape: readonly number[],
    strides: readonly number[],
  ): TensorHandle;
  /** Whether it begins so many elements behind the first, in the same memory. */
  tensorIsBehind(first: TensorHandle, tensor: TensorHandle, elements: number): boolean;
  tensorDispose(tensor: TensorHandle): void;
  tensorWrite(tensor: TensorHandle, values: ArrayBufferView): void;
  tensorRead<T extends ArrayBufferView>(tensor: TensorHandle, out: T): Promise<T>;

  maskCausal(queries: number, keys: number): MaskHandle;
  maskWindow(queries: number, keys: number, left: number, right: number): MaskHandle;
  maskDocuments(boundaries: Int32Array | readonly number[]): MaskHandle;
  maskPrefix(tokens: number, prefix: number): MaskHandle;
  maskDense(queries: number, keys: number, values: Uint8Array): MaskHandle;
  maskBuilder(queries: number, keys: number): MaskBuilderHandle;
  maskBuilderNextRows(builder: MaskBuilderHandle): number;
  maskBuilderAdd(builder: MaskBuilderHandle, values: Uint8Array): void;
  maskBuilderFinish(builder: MaskBuilderHandle): MaskHandle;
  maskAnd(a: MaskHandle, b: MaskHandle): MaskHandle;
  maskOr(a: MaskHandle, b: MaskHandle): MaskHandle;
  maskNot(mask: MaskHandle): MaskHandle;
  /** Pieces as start and length, one after the other. */
  maskSelect(mask: MaskHandle, queries: readonly number[], keys: readonly number[]): MaskHandle;
  maskInfo(mask: MaskHandle): NativeMaskInfo;
  maskToDense(mask: MaskHandle, out: Uint8Array): void;
  maskDispose(mask: MaskHandle): void;

  communicatorsLocal(devices: readonly DeviceHandle[], timeoutMs: number): CommunicatorHandle[];
  communicatorJoinLocal(
    name: string,
    rank: number,
    size: number,
    device: DeviceHandle,
    timeoutMs: number,
  ): CommunicatorHandle;
  ncclLibrary(): NcclLibrary;
  ncclAllowMulticast(): void;
  ncclId(): Uint8Array;
  communicatorNccl(
    device: DeviceHandle,
    id: Uint8Array,
    rank: number,
    size: number,
    timeoutMs: number,
  ): CommunicatorHandle;
  /** Resolves once what is queued on it has run. */
  communicatorSynchronize(communicator: CommunicatorHandle): Promise<void>;
  /** How many this rank has come to; counted where ranks may leave one by one, over NCCL. */
  communicatorSteps(communicator: CommunicatorHandle): number;
  /** Empty while all is well. */
  communicatorFailure(communicator: CommunicatorHandle): string;
  communicatorEnd(communicator: CommunicatorHandle, why: string): void;
  communicatorLeft(communicator: CommunicatorHandle, rank: number, steps: number): void;
  communicatorGroup(communicator: CommunicatorHandle, ranks: readonly number[]): CommunicatorHandle;
  /** Whether its ranks can lend each other tensors. */
  communicatorSharesMemory(communicator: CommunicatorHandle): boolean;
  communicatorFollow(communicator: CommunicatorHandle): void;
  communicatorExchange(
    communicator: CommunicatorHandle,
    sent: readonly TensorHandle[],
    to: readonly number[],
    received: readonly TensorHandle[],
    from: readonly number[],
  ): void;
  communicatorBarrier(communicator: CommunicatorHandle): void;
  communicatorSum(communicator: CommunicatorHandle, terms: readonly TensorHandle[], y: TensorHandle): void;
  communicatorFence(communicator: CommunicatorHandle): FenceHandle;
  communicatorJoin(communicator: CommunicatorHandle, fence: FenceHandle): void;
  communicatorClose(communicator: CommunicatorHandle): void;
}

function load(): Native {
  const require = createRequire(import.meta.url);
  const find = require("node-gyp-build") as (root: string) => Native;
  try {
    return find(fileURLToPath(new URL("..", import.meta.url)));
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw failure(
      "ERR_NO_BINARY",
      `longseq: no binary for this machine (${reason}). \`npm rebuild longseq\` compiles one; it needs cmake and a C++20 compiler.`,
      { cause },
    );
  }
}

/** The addon: what was built here first, else the prebuilt binary for this platform. */
export const native: Native = load();

// A worker's end is not the process's.
if (isMainThread) process.once("exit", () => native.endProcess());
