// One case of reference vectors: a safetensors file with inputs, results and, in its metadata, the options as JSON.
import { readdir, stat } from "node:fs/promises";
import { basename, join } from "node:path";
import { type Device, loadSafetensors, type Tensor } from "../../index.ts";

/** The file is not what it should be: exit code 2. */
export class VectorFileError extends Error {
  readonly code = "ERR_FILE";
}

/** Files as they are; folders for the safetensors files in them, by name. */
export async function vectorPaths(paths: readonly string[]): Promise<string[]> {
  const found: string[] = [];
  for (const path of paths) {
    const status = await stat(path).catch((cause: NodeJS.ErrnoException) => {
      const reason = cause.code === "ENOENT" ? "there is no such file or folder" : cause.message;
      throw new VectorFileError(`${path}: ${reason}`, { cause });
    });
    if (!status.isDirectory()) {
      found.push(path);
      continue;
    }
    const names = (await readdir(path)).filter((name) => name.endsWith(".safetensors")).sort();
    if (names.length === 0) throw new VectorFileError(`${path}: the folder holds no .safetensors file`);
    found.push(...names.map((name) => join(path, name)));
  }
  return found;
}

export class VectorFile implements Disposable {
  readonly name: string;
  readonly path: string;
  readonly op: string;
  readonly options: ReadonlyMap<string, unknown>;
  readonly tensors: Readonly<Record<string, Tensor>>;

  private constructor(
    path: string,
    tensors: Record<string, Tensor>,
    options: Map<string, unknown>,
    op: string,
  ) {
    this.path = path;
    this.name = basename(path, ".safetensors");
    this.tensors = tensors;
    this.options = options;
    this.op = op;
  }

  static async load(path: string, device: Device): Promise<VectorFile> {
    const { tensors, metadata } = await loadSafetensors(path, { device });
    const { op, ...texts } = metadata;
    const options = new Map<string, unknown>();
    try {
      if (op === undefined) throw new VectorFileError(`${path}: its metadata names no op`);
      for (const [name, text] of Object.entries(texts)) options.set(name, parseOption(path, name, text));
      return new VectorFile(path, tensors, options, op);
    } catch (error) {
      for (const tensor of Object.values(tensors)) tensor.dispose();
      throw error;
    }
  }

  /** An input or result that must be there, of this shape; `undefined` stands for any size. */
  tensor(name: string, shape: readonly (number | undefined)[]): Tensor {
    const tensor = this.optionalTensor(name, shape);
    if (!tensor) throw new VectorFileError(`${this.path}: there is no tensor "${name}"`);
    return tensor;
  }

  optionalTensor(name: string, shape: readonly (number | undefined)[]): Tensor | undefined {
    const tensor = Object.hasOwn(this.tensors, name) ? this.tensors[name] : undefined;
    if (!tensor) return undefined;
    const fits =
      tensor.shape.length === shape.length &&
      shape.every((size, axis) => size === undefined || size === tensor.shape[axis]);
    if (!fits) {
      const expected = shape.map((size) => size ?? "any").join(", ");
      throw new VectorFileError(
        `${this.path}: tensor "${name}" has shape [${tensor.shape.join(", ")}], expected [${expected}]`,
      );
    }
    return tensor;
  }

  /** An option, undefined where it is absent or null; `isKind` says what it may be, `kind` names that. */
  option<T>(name: string, kind: string, isKind: (value: unknown) => value is T): T | undefined {
    const value = this.options.get(name) ?? undefined;
    if (value === undefined) return undefined;
    if (isKind(value)) return value;
    throw new VectorFileError(`${this.path}: option ${name} is ${JSON.stringify(value)}, expected ${kind}`);
  }

  [Symbol.dispose](): void {
    for (const tensor of Object.values(this.tensors)) tensor.dispose();
  }
}

/** Options that are one of several names. The vectors hold these as they are, not as JSON. */
const named = new Set(["reduction", "norm", "activation"]);

function parseOption(path: string, name: string, text: string): unknown {
  if (named.has(name)) return text;
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new VectorFileError(`${path}: option ${name} is no JSON text`, { cause });
  }
}

export const isNumber = (value: unknown): value is number =>
  typeof value === "number" && Number.isFinite(value);
export const isBoolean = (value: unknown): value is boolean => typeof value === "boolean";
export const isNumbers = (value: unknown): value is number[] => Array.isArray(value) && value.every(isNumber);
