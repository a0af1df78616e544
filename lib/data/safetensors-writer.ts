// Writes safetensors files, tensor after tensor through one staging buffer. A file is written beside its destination and
// renamed, so readers see the old file or the whole new one.
import { randomUUID } from "node:crypto";
import { type FileHandle, open, realpath, rename, stat, unlink } from "node:fs/promises";
import { failure, wrongKind } from "../errors.ts";
import type { Tensor } from "../tensor.ts";
import { type DType, itemBytes } from "../values.ts";
import { asContiguous, referenceTo } from "../view.ts";
import { asFileError } from "./file-errors.ts";
import { type FileType, quote, stagingBytes } from "./safetensors-header.ts";

const fileTypes: Readonly<Record<DType, FileType>> = {
  float32: "F32",
  bfloat16: "BF16",
  float16: "F16",
  int32: "I32",
  uint8: "U8",
};

/** What the header says of a tensor. */
export interface Described {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
}

export type Metadata = Readonly<Record<string, string>>;

/** Wider items first, as the format's own writer does: every tensor then begins at a multiple of its item. */
export function byWidth(a: { readonly dtype: DType }, b: { readonly dtype: DType }): number {
  return itemBytes[b.dtype] - itemBytes[a.dtype];
}

/** A file of what `described` says, whose tensors come one after the other; `operation` is what errors name. */
export async function writeSafetensors(
  operation: string,
  path: string,
  described: readonly Described[],
  metadata: Metadata,
  tensors: Iterable<Tensor> | AsyncIterable<Tensor>,
): Promise<void> {
  const header = headerOf(operation, described, metadata);
  let file: FileHandle | undefined;
  let temporary = "";
  try {
    const { destination, mode } = await destinationOf(path);
    // Beside the destination: a rename is atomic only within a file system.
    temporary = `${destination}.${process.pid}.${randomUUID()}.tmp`;
    file = await open(temporary, "wx", mode);
    if (mode !== undefined) await file.chmod(mode);
    await file.writeFile(header);
    for await (const tensor of tensors) await writeTensor(file, tensor);
    await file.sync();
    await file.close();
    await rename(temporary, destination);
  } catch (error) {
    await file?.close().catch(() => {});
    if (file) await unlink(temporary).catch(() => {});
    throw asFileError(operation, path, error);
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

function headerOf(operation: string, described: readonly Described[], metadata: Metadata): Uint8Array {
  if (typeof metadata !== "object" || metadata === null)
    throw wrongKind(`${operation}: metadata`, "an object of strings", metadata);
  const entries: [string, unknown][] = [];
  const texts = Object.entries(metadata);
  for (const [key, text] of texts) {
    if (typeof text !== "string") throw wrongKind(`${operation}: metadata ${quote(key)}`, "a string", text);
  }
  if (texts.length > 0) entries.push(["__metadata__", Object.fromEntries(texts)]);
  let begin = 0;
  for (const { name, dtype, shape } of described) {
    if (name === "__metadata__") {
      throw failure(
        "ERR_OPTION",
        `${operation}: a tensor is named "__metadata__", which the format reserves`,
      );
    }
    const end = begin + shape.reduce((product, size) => product * size, itemBytes[dtype]);
    entries.push([name, { dtype: fileTypes[dtype], shape, data_offsets: [begin, end] }]);
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
  using own = referenceTo(tensor); // on no tape
  using dense = asContiguous(own);
  using flat = dense.reshape([tensor.size]);
  const step = stagingBytes / itemBytes[tensor.dtype];
  for (let start = 0; start < tensor.size; start += step) {
    using part = flat.slice(0, start, Math.min(start + step, tensor.size));
    const bits = await part.bits();
    await file.writeFile(new Uint8Array(bits.buffer, bits.byteOffset, bits.byteLength));
  }
}
