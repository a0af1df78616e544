// The header of a safetensors file: u64 length, that many bytes of JSON, then the tensors' bytes end to end.
// Everything it claims is checked against the file's size before anything is allocated, so a hostile file costs
// no more than its header; the tensors must fill the data exactly, without holes or overlaps, as the format says.

/** The types a file may hold. BOOL is read as uint8; I64 as int32 where every value fits. */
export type FileType = "F32" | "BF16" | "F16" | "I32" | "I64" | "U8" | "BOOL";

export const itemBytes: Readonly<Record<FileType, number>> = {
  F32: 4,
  BF16: 2,
  F16: 2,
  I32: 4,
  I64: 8,
  U8: 1,
  BOOL: 1,
};

/** What is in hand of a tensor on its way to or from a file. */
export const stagingBytes = 16 * 2 ** 20;

/** One tensor of a file: where its bytes are, counted from the end of the header. */
export interface Entry {
  readonly name: string;
  /** Undefined for one that cannot be read, as `unreadable` says: others of the file may be. */
  readonly type: FileType | undefined;
  readonly unreadable: string;
  readonly shape: readonly number[];
  readonly size: number;
  readonly begin: number;
  readonly end: number;
}

export interface Header {
  /** In the order of their bytes. */
  readonly entries: readonly Entry[];
  readonly metadata: Record<string, string>;
}

/** The format's own limit: a longer header is an attack or another kind of file. */
const maximumHeaderBytes = 100_000_000;
const maximumAxes = 32;

/** Checks the eight bytes at the start; throws an Error that says what is wrong. */
export function headerLength(prefix: Uint8Array, fileBytes: number): number {
  if (fileBytes < 8) throw new Error(`it has ${fileBytes} bytes, a safetensors file has at least 8`);
  const length = new DataView(prefix.buffer, prefix.byteOffset, 8).getBigUint64(0, true);
  if (length > BigInt(fileBytes - 8)) {
    throw new Error(`its header claims ${length} bytes, the file has ${fileBytes - 8} after the length`);
  }
  if (length > BigInt(maximumHeaderBytes)) {
    throw new Error(`its header claims ${length} bytes, at most ${maximumHeaderBytes} are allowed`);
  }
  return Number(length);
}

/** Reads and checks the JSON of a header; throws an Error that says what is wrong. */
export function parseHeader(json: Uint8Array, dataBytes: number): Header {
  const root = parseJson(json);
  let metadata: Record<string, string> = {};
  const entries: Entry[] = [];
  for (const [name, value] of Object.entries(root)) {
    if (name === "__metadata__") metadata = parseMetadata(value);
    else entries.push(parseEntry(name, value, dataBytes));
  }
  entries.sort((a, b) => a.begin - b.begin || a.end - b.end);
  let filled = 0;
  for (const { name, begin, end } of entries) {
    if (begin !== filled) {
      const what = begin < filled ? "overlaps the tensor before it" : "leaves a hole before it";
      throw new Error(`tensor ${quote(name)} begins at byte ${begin}, expected ${filled}: it ${what}`);
    }
    filled = end;
  }
  if (filled !== dataBytes) {
    throw new Error(`its tensors end at byte ${filled}, the file has ${dataBytes} bytes of data`);
  }
  return { entries, metadata };
}

function parseJson(json: Uint8Array): Record<string, unknown> {
  let root: unknown;
  try {
    root = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(json));
  } catch (cause) {
    throw new Error("its header is not JSON in UTF-8", { cause });
  }
  if (!isRecord(root)) throw new Error("its header is not a JSON object");
  return root;
}

function parseMetadata(value: unknown): Record<string, string> {
  if (!isRecord(value)) throw new Error("__metadata__ is not a JSON object");
  const pairs = Object.entries(value).map(([key, text]): [string, string] => {
    if (typeof text !== "string") throw new Error(`__metadata__ ${quote(key)} is not a string`);
    return [key, text];
  });
  // fromEntries defines own properties, so that a key named __proto__ is a key and nothing more.
  return Object.fromEntries(pairs);
}

function parseEntry(name: string, value: unknown, dataBytes: number): Entry {
  const what = `tensor ${quote(name)}`;
  if (!isRecord(value)) throw new Error(`${what} is not a JSON object`);
  const { dtype: type, shape, data_offsets: offsets } = value;
  if (!isIndexList(shape) || shape.length > maximumAxes) {
    throw new Error(`${what} has shape ${brief(shape)}, expected up to ${maximumAxes} sizes`);
  }
  if (!isIndexList(offsets) || offsets.length !== 2) {
    throw new Error(`${what} has data_offsets ${brief(offsets)}, expected [begin, end]`);
  }
  const [begin = 0, end = 0] = offsets;
  if (begin > end || end > dataBytes) {
    throw new Error(`${what} has data_offsets [${begin}, ${end}], the file has ${dataBytes} bytes of data`);
  }
  const size = shape.reduce((product, axis) => product * axis, 1);
  if (!isFileType(type)) {
    const known = Object.keys(itemBytes).join(", ");
    const unreadable = `${what} has dtype ${brief(type)}, expected one of ${known}`;
    return { name, type: undefined, unreadable, shape, size, begin, end };
  }
  // A product past 2^53 is inexact, and then far more than any file holds: the comparison still refuses it.
  if (size * itemBytes[type] !== end - begin) {
    throw new Error(
      `${what} has ${end - begin} bytes, expected ${size * itemBytes[type]} for ${type} ${brief(shape)}`,
    );
  }
  return { name, type, unreadable: "", shape, size, begin, end };
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isFileType(value: unknown): value is FileType {
  return typeof value === "string" && Object.hasOwn(itemBytes, value);
}

function isIndexList(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((item) => Number.isSafeInteger(item) && item >= 0);
}

/** A name or value from the file, kept short: messages must not carry a hostile megabyte. */
function brief(value: unknown): string {
  const text = JSON.stringify(value) ?? "nothing";
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}

export function quote(name: string): string {
  return brief(name);
}
