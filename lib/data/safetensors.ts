// Safetensors in and out. Tensors stream through one staging buffer, so a file of any size costs its tensors and
// 16 MiB; a file is written beside its destination and renamed, so readers see the old file or the whole new one.
import { randomUUID } from "node:crypto";
import { type FileHandle, open, realpath, rename, stat, unlink } from "node:fs/promises";
import { type Device, deviceOrDefault } from "../device.ts";
import { checkOptions, failure, wrongKind } from "../errors.ts";
import { handleOf, Tensor } from "../tensor.ts";
import type { DType } from "../values.ts";
import { asFileError, checkPath } from "./file-errors.ts";
import {
  type Entry,
  type FileType,
  headerLength,
  itemBytes,
  parseHeader,
  quote,
} from "./safetensors-header.ts";

const stagingBytes = 16 * 2 ** 20;

const dtypes: Readonly<Record<FileType, DType>> = {
  F32: "float32",
  BF16: "bfloat16",
  F16: "float16",
  I32: "int32",
  I64: "int32",
  U8: "uint8",
  BOOL: "uint8",
};
const fileTypes: Readonly<Record<DType, FileType>> = {
  float32: "F32",
  bfloat16: "BF16",
  float16: "F16",
  int32: "I32",
  uint8: "U8",
};

/** What a safetensors file holds: its tensors by name, and the strings of its header. */
export interface SafetensorsFile {
  /** To be disposed by whoever loads them. */
  tensors: Record<string, Tensor>;
  /** Empty where the header has none. */
  metadata: Record<string, string>;
}

/**
 * Reads all tensors of a safetensors file (the format of huggingface/safetensors) onto a device (default:
 * `Device.default`). F32, BF16, F16, I32 and U8 keep their type, BOOL becomes uint8, and I64 becomes int32 where every
 * value fits. It takes the tensors' memory and 16 MiB.
 *
 * @throws (as a rejection) `ERR_FILE`, with the path, where the file cannot be read, is damaged, or holds another type;
 * `ERR_SHAPE` for more than 6 axes; `ERR_OUT_OF_MEMORY`.
 * @example
 * await saveSafetensors("model.safetensors", { weight: Tensor.normal([4, 8]) }, { step: "100" });
 * const { tensors, metadata } = await loadSafetensors("model.safetensors");
 * tensors.weight?.shape; // [4, 8]
 * metadata.step; // "100"
 */
export async function loadSafetensors(
  path: string,
  options: { device?: Device } = {},
): Promise<SafetensorsFile> {
  checkPath("loadSafetensors", path);
  checkOptions("loadSafetensors", options, { device: true });
  const device = deviceOrDefault("loadSafetensors", options.device);
  const tensors = new Map<string, Tensor>();
  let file: FileHandle | undefined;
  try {
    file = await open(path, "r");
    const fileBytes = (await file.stat()).size;
    const length = headerLength(await read(file, new Uint8Array(8), 0, Math.min(8, fileBytes)), fileBytes);
    const data = 8 + length;
    const { entries, metadata } = parseHeader(
      await read(file, new Uint8Array(length), 8, length),
      fileBytes - data,
    );
    const largest = entries.reduce((most, { begin, end }) => Math.max(most, end - begin), 0);
    const staging = new Uint8Array(Math.min(stagingBytes, largest));
    for (const entry of entries) {
      const tensor = Tensor.empty(entry.shape, { dtype: dtypes[entry.type], device });
      tensors.set(entry.name, tensor);
      await fill(tensor, entry, file, data, staging);
    }
    return { tensors: Object.fromEntries(tensors), metadata };
  } catch (error) {
    for (const tensor of tensors.values()) tensor.dispose();
    throw asFileError("loadSafetensors", path, error);
  } finally {
    await file?.close();
  }
}

async function fill(tensor: Tensor, entry: Entry, file: FileHandle, data: number, staging: Uint8Array) {
  using flat = tensor.reshape([entry.size]);
  const width = itemBytes[entry.type];
  const step = Math.floor(staging.length / width);
  for (let start = 0; start < entry.size; start += step) {
    const count = Math.min(step, entry.size - start);
    await read(file, staging, data + entry.begin + start * width, count * width);
    using part = flat.slice(0, start, start + count);
    part.write(valuesOf(entry, staging.buffer as ArrayBuffer, count));
    // The staging buffer is filled again next, so the write must have run.
    await tensor.device.synchronize();
  }
}

function valuesOf({ name, type }: Entry, bytes: ArrayBuffer, count: number) {
  switch (type) {
    case "F32":
      return new Float32Array(bytes, 0, count);
    case "BF16":
    case "F16":
      return new Uint16Array(bytes, 0, count);
    case "I32":
      return new Int32Array(bytes, 0, count);
    case "U8":
    case "BOOL":
      return new Uint8Array(bytes, 0, count);
    case "I64":
      return Int32Array.from(new BigInt64Array(bytes, 0, count), (value) => {
        if (value !== BigInt.asIntN(32, value)) {
          throw new Error(`tensor ${quote(name)} holds the I64 value ${value}, which int32 does not`);
        }
        return Number(value);
      });
  }
}

async function read(
  file: FileHandle,
  into: Uint8Array,
  position: number,
  count: number,
): Promise<Uint8Array> {
  for (let done = 0; done < count; ) {
    const { bytesRead } = await file.read(into, done, count - done, position + done);
    if (bytesRead === 0) throw new Error(`it ends at byte ${position + done}, expected ${position + count}`);
    done += bytesRead;
  }
  return into;
}

/**
 * Writes tensors, of any dtype and strides, to a safetensors file, with string `metadata` in its header. The file
 * appears whole or not at all.
 *
 * @throws (as a rejection) `ERR_OPTION` for a tensor that is none or is named `__metadata__`, or metadata that is no string;
 * `ERR_FILE` where the file cannot be written; `ERR_DISPOSED`.
 * @example
 * using weight = Tensor.normal([512, 64], { dtype: "bfloat16" });
 * await saveSafetensors("weights.safetensors", { weight }, { step: "100" });
 */
export async function saveSafetensors(
  path: string,
  tensors: Readonly<Record<string, Tensor>>,
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  checkPath("saveSafetensors", path);
  if (typeof tensors !== "object" || tensors === null)
    throw wrongKind("saveSafetensors: tensors", "an object of Tensors", tensors);
  if (typeof metadata !== "object" || metadata === null)
    throw wrongKind("saveSafetensors: metadata", "an object of strings", metadata);
  for (const [name, tensor] of Object.entries(tensors)) handleOf(tensor, `saveSafetensors: ${quote(name)}`);
  const sorted = sortedForAlignment(tensors);
  const header = headerOf(sorted, metadata);
  let file: FileHandle | undefined;
  let temporary = "";
  try {
    const { destination, mode } = await destinationOf(path);
    // Beside the destination: a rename is atomic only within a file system.
    temporary = `${destination}.${process.pid}.${randomUUID()}.tmp`;
    file = await open(temporary, "wx", mode);
    if (mode !== undefined) await file.chmod(mode);
    await file.writeFile(header);
    for (const [, tensor] of sorted) await writeTensor(file, tensor);
    await file.sync();
    await file.close();
    await rename(temporary, destination);
  } catch (error) {
    await file?.close().catch(() => {});
    if (file) await unlink(temporary).catch(() => {});
    throw asFileError("saveSafetensors", path, error);
  }
}

/** What the file takes the place of: the one that a link names, whose mode it keeps. */
async function destinationOf(path: string): Promise<{ destination: string; mode: number | undefined }> {
  const there = await stat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== "ENOENT") throw error;
  });
  if (there === undefined) return { destination: path, mode: undefined };
  if (!there.isFile()) throw new Error("it is there, and is no file");
  return { destination: await realpath(path), mode: there.mode & 0o777 };
}

/** Wider items first, as the format's own writer does: every tensor then begins at a multiple of its item. */
function sortedForAlignment(tensors: Readonly<Record<string, Tensor>>): [string, Tensor][] {
  const width = (tensor: Tensor) => itemBytes[fileTypes[tensor.dtype]];
  return Object.entries(tensors).sort(
    ([nameA, a], [nameB, b]) => width(b) - width(a) || (nameA < nameB ? -1 : 1),
  );
}

function headerOf(tensors: [string, Tensor][], metadata: Readonly<Record<string, string>>): Uint8Array {
  const entries: [string, unknown][] = [];
  const texts = Object.entries(metadata);
  for (const [key, text] of texts) {
    if (typeof text !== "string") {
      throw failure(
        "ERR_OPTION",
        `saveSafetensors: metadata ${quote(key)} is a ${typeof text}, expected a string`,
      );
    }
  }
  if (texts.length > 0) entries.push(["__metadata__", Object.fromEntries(texts)]);
  let begin = 0;
  for (const [name, tensor] of tensors) {
    if (name === "__metadata__") {
      throw failure(
        "ERR_OPTION",
        'saveSafetensors: a tensor is named "__metadata__", which the format reserves',
      );
    }
    const end = begin + tensor.size * itemBytes[fileTypes[tensor.dtype]];
    entries.push([name, { dtype: fileTypes[tensor.dtype], shape: tensor.shape, data_offsets: [begin, end] }]);
    begin = end;
  }
  const json = new TextEncoder().encode(JSON.stringify(Object.fromEntries(entries)));
  // Spaces after the JSON keep the data aligned to 8 bytes for readers that map the file.
  const padded = Math.ceil(json.length / 8) * 8;
  const header = new Uint8Array(8 + padded).fill(0x20);
  new DataView(header.buffer).setBigUint64(0, BigInt(padded), true);
  header.set(json, 8);
  return header;
}

async function writeTensor(file: FileHandle, tensor: Tensor) {
  using dense = tensor.contiguous();
  using flat = dense.reshape([tensor.size]);
  const step = stagingBytes / itemBytes[fileTypes[tensor.dtype]];
  for (let start = 0; start < tensor.size; start += step) {
    using part = flat.slice(0, start, Math.min(start + step, tensor.size));
    const bits = await part.bits();
    await file.writeFile(new Uint8Array(bits.buffer, bits.byteOffset, bits.byteLength));
  }
}
