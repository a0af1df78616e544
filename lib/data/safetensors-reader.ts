// Reads safetensors files: tensors stream through one staging buffer, so a file of any size costs what is read of it and
// 16 MiB.
import { type FileHandle, open } from "node:fs/promises";
import type { Device } from "../device.ts";
import { Tensor } from "../tensor.ts";
import type { DType } from "../values.ts";
import { asFileError } from "./file-errors.ts";
import {
  type Entry,
  type FileType,
  headerLength,
  itemBytes,
  parseHeader,
  quote,
  stagingBytes,
} from "./safetensors-header.ts";

const dtypes: Readonly<Record<FileType, DType>> = {
  F32: "float32",
  BF16: "bfloat16",
  F16: "float16",
  I32: "int32",
  I64: "int32",
  U8: "uint8",
  BOOL: "uint8",
};

type ReadableEntry = Entry & { readonly type: FileType };

/** An open file, whose header is right. */
export class SafetensorsReader {
  readonly metadata: Record<string, string>;
  readonly #file: FileHandle;
  /** Where the tensors' bytes begin. */
  readonly #data: number;
  /** In the order of their bytes. */
  readonly #entries: ReadonlyMap<string, Entry>;
  #staging = new Uint8Array(0);

  private constructor(file: FileHandle, data: number, { entries, metadata }: ReturnType<typeof parseHeader>) {
    this.#file = file;
    this.#data = data;
    this.#entries = new Map(entries.map((entry) => [entry.name, entry]));
    this.metadata = metadata;
  }

  /** Runs `work` on the file; what is wrong with that is `ERR_FILE`, with the path. */
  static async reading<T>(
    operation: string,
    path: string,
    work: (reader: SafetensorsReader) => Promise<T>,
  ): Promise<T> {
    let file: FileHandle | undefined;
    try {
      file = await open(path, "r");
      const fileBytes = (await file.stat()).size;
      const prefix = await read(file, new Uint8Array(8), 0, Math.min(8, fileBytes));
      const length = headerLength(prefix, fileBytes);
      const json = await read(file, new Uint8Array(length), 8, length);
      const data = 8 + length;
      return await work(new SafetensorsReader(file, data, parseHeader(json, fileBytes - data)));
    } catch (error) {
      throw asFileError(operation, path, error);
    } finally {
      await file?.close();
    }
  }

  get names(): Iterable<string> {
    return this.#entries.keys();
  }

  /** What the header says of a tensor that can be read. */
  entry(name: string): ReadableEntry {
    const entry = this.#entries.get(name);
    if (entry === undefined) throw new Error(`there is no tensor ${quote(name)}`);
    if (entry.type === undefined) throw new Error(entry.unreadable);
    return entry as ReadableEntry;
  }

  /** It belongs to the scope here, also where it cannot be read to its end. */
  async tensor(name: string, device: Device): Promise<Tensor> {
    const entry = this.entry(name);
    const tensor = Tensor.empty(entry.shape, { dtype: dtypes[entry.type], device });
    await this.#fill(tensor, entry);
    return tensor;
  }

  async #fill(tensor: Tensor, entry: ReadableEntry): Promise<void> {
    const most = Math.min(stagingBytes, entry.end - entry.begin);
    if (this.#staging.length < most) this.#staging = new Uint8Array(most);
    const staging = this.#staging;
    using flat = tensor.reshape([entry.size]);
    const width = itemBytes[entry.type];
    const step = Math.floor(staging.length / width);
    for (let start = 0; start < entry.size; start += step) {
      const count = Math.min(step, entry.size - start);
      await read(this.#file, staging, this.#data + entry.begin + start * width, count * width);
      using part = flat.slice(0, start, start + count);
      part.write(valuesOf(entry, staging.buffer, count));
      // What is on its way takes memory too: never more than one piece.
      await tensor.device.synchronize();
    }
  }
}

function valuesOf({ name, type }: ReadableEntry, bytes: ArrayBuffer, count: number) {
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
